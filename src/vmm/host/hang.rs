//! Notices hypervisors that live and do nothing any more: of such a VM nobody would hear otherwise.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::vmm::hypervisor::Vm;

/// How often a hypervisor is asked within the time after which it counts as hung.
const ASKS: u32 = 4;

/// Waits until a hypervisor has not answered for so long. Never returns without a limit.
///
/// What is waited for counts from the first question without an answer, each of which is given a part
/// of the limit: a daemon that itself stood still for a while takes nobody for hung.
pub(super) async fn hangs(vm: &dyn Vm, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    let period = limit / ASKS;
    let mut silent_since = None;
    loop {
        sleep(period).await;
        let asked = Instant::now();
        if let Ok(Ok(())) = timeout(period, vm.answers()).await {
            silent_since = None;
            continue;
        }
        let since = *silent_since.get_or_insert_with(|| {
            tracing::warn!(
                pid = vm.process().pid,
                ?limit,
                "a hypervisor does not answer: it is ended if that goes on for the limit"
            );
            asked
        });
        if since.elapsed() >= limit {
            return;
        }
    }
}
