//! What keeps the pool of slots as it should be while it is open: tasks that end when it closes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::{Phase, Shared};
use crate::domain::slot::SlotIndex;
use crate::vmm::network::host::{self, Filter};
use crate::vmm::network::namespace::on_thread;

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Starts the filler, the janitor, which removes what comes through `dropped`, and the keeper.
pub(super) fn start(
    pool: &Arc<Shared>,
    dropped: mpsc::UnboundedReceiver<SlotIndex>,
) -> Vec<JoinHandle<()>> {
    vec![
        tokio::spawn(fill(pool.clone())),
        tokio::spawn(clean(pool.clone(), dropped)),
        tokio::spawn(keep(pool.clone())),
    ]
}

/// Keeps the pool full.
async fn fill(pool: Arc<Shared>) {
    let mut retry = FIRST_RETRY;
    while !pool.closing.is_cancelled() {
        if pool.state().ready.len() >= pool.pool_size {
            tokio::select! {
                () = pool.closing.cancelled() => return,
                () = pool.taken.notified() => continue,
            }
        }
        // Not abandoned halfway when the pool closes: what was begun has to be known to be removed.
        match pool.build().await {
            Ok(built) => {
                retry = FIRST_RETRY;
                let index = built.index;
                let phase = {
                    let mut state = pool.state();
                    if state.phase == Phase::Open {
                        state.ready.push_back(built);
                    }
                    state.phase
                };
                if phase == Phase::Closed
                    && let Err(error) = pool.remove(index).await
                {
                    tracing::warn!(%error, "a ready network slot could not be removed");
                }
            }
            Err(error) => {
                tracing::warn!(%error, retry_after = ?retry, "cannot build a network slot ahead of need");
                sleep_unless_closing(&pool, &mut retry).await;
            }
        }
    }
}

/// Removes slots that were dropped or could not be removed at first. One that resists does not hold
/// up the others.
async fn clean(pool: Arc<Shared>, mut dropped: mpsc::UnboundedReceiver<SlotIndex>) {
    let mut removals = JoinSet::new();
    loop {
        tokio::select! {
            // What was dropped before the pool closed is removed before it is closed.
            biased;
            Some(index) = dropped.recv() => {
                removals.spawn(remove_patiently(pool.clone(), index));
            }
            Some(_) = removals.join_next() => {}
            () = pool.closing.cancelled() => break,
        }
    }
    removals.join_all().await;
}

/// Tries to remove a slot until that succeeds or the pool closes.
async fn remove_patiently(pool: Arc<Shared>, index: SlotIndex) {
    let mut retry = FIRST_RETRY;
    while let Err(error) = pool.remove(index).await {
        tracing::warn!(%error, retry_after = ?retry, "cannot remove a network slot");
        if pool.closing.is_cancelled() {
            return;
        }
        sleep_unless_closing(&pool, &mut retry).await;
    }
}

/// Restores the host's packet filter and forwarding when somebody took them away.
async fn keep(pool: Arc<Shared>) {
    loop {
        tokio::select! {
            () = pool.closing.cancelled() => return,
            () = tokio::time::sleep(pool.keep_period) => {}
        }
        match on_thread("nestbox-netkeep", host::ensure).await {
            Ok(Filter::WasLoaded) => {}
            Ok(Filter::WasMissing) => {
                tracing::warn!("the host's packet filter was gone; loaded it again");
            }
            Err(error) => tracing::error!(%error, "cannot check the host's packet filter"),
        }
    }
}

async fn sleep_unless_closing(pool: &Shared, delay: &mut Duration) {
    tokio::select! {
        () = pool.closing.cancelled() => {}
        () = tokio::time::sleep(*delay) => {}
    }
    *delay = (*delay * 2).min(LAST_RETRY);
}
