//! One host, one actor: lets the database hear of it.

use std::time::Duration;

use actix::{Actor, ArbiterHandle, AsyncContext, Context};
use chrono::Utc;

use crate::actors::mailbox::CAPACITY;
use crate::actors::supervisor::{ExitSignal, Supervised};
use crate::entity::Database;

/// How often a host says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);

struct HostActor {
    id: String,
    database: Database,
    _exit: ExitSignal,
}

/// Starts the actor of the host that this process is. It lives as long as its arbiter; nobody has anything
/// to ask of it yet.
pub fn start_host(arbiter: &ArbiterHandle, id: String, database: Database) {
    let make = move |exit| HostActor { id: id.clone(), database: database.clone(), _exit: exit };
    Supervised::start(arbiter, "host", make);
}

impl Actor for HostActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(CAPACITY);
        ctx.run_interval(HEARTBEAT, |host, _| {
            let (database, id) = (host.database.clone(), host.id.clone());
            tokio::spawn(async move {
                if let Err(error) = database.hosts().heartbeat(&id, Utc::now()).await {
                    tracing::warn!(host_id = %id, error = %crate::chain(&error),
                        "a heartbeat was not recorded");
                }
            });
        });
    }
}
