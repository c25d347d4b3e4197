//! Leases on sandboxes that are to live no longer than we do: killed, we cannot destroy them, and then
//! the daemon does.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use reqwest::StatusCode;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::client::{Client, ClientError};
use crate::domain::lifecycle::LEASES;

/// How long a sandbox lives after we were last heard of: also what a session is given whose client takes
/// nothing any more.
pub(super) const LEASE_SEC: u32 = 60;
/// It is renewed so many times in that time: it survives a renewal that fails, and a daemon that starts
/// again.
const RENEWALS: u32 = 4;
/// One that failed is tried again after that at most.
const RETRY: Duration = Duration::from_secs(2);

/// How long what is made here outlives us.
#[derive(Debug, Clone, Copy, Args)]
pub struct LeaseArgs {
    /// Seconds after which what was made here is destroyed when this program was killed, or stands still
    #[arg(long, value_name = "SECONDS", default_value_t = LEASE_SEC,
          value_parser = clap::value_parser!(u32).range(i64::from(*LEASES.start())..=i64::from(*LEASES.end())))]
    pub(super) lease_sec: u32,
}

/// Renews a lease until it is dropped.
pub(super) struct Renewal(JoinHandle<()>);

impl Renewal {
    /// Renews that of this sandbox.
    pub fn start(client: &Arc<Client>, id: &str, lease_sec: u32) -> Self {
        let (client, id) = (client.clone(), id.to_owned());
        let period = Duration::from_secs(lease_sec.into()) / RENEWALS;
        Self(tokio::spawn(async move {
            loop {
                let renewed = timeout(period, client.renew_lease(&id, lease_sec)).await;
                let pause = match renewed {
                    Ok(Ok(())) => period,
                    // It is gone, or on its way.
                    Ok(Err(ClientError::Refused {
                        status: StatusCode::NOT_FOUND | StatusCode::CONFLICT,
                        ..
                    })) => return,
                    Ok(Err(_)) | Err(_) => RETRY.min(period),
                };
                sleep(pause).await;
            }
        }))
    }
}

impl Renewal {
    /// Whether the sandbox was gone when it was to be renewed.
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.0.abort();
    }
}
