//! What can only be seen from inside: actors that panic, news that is slow.

use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::System;
use tokio::time::sleep;

use super::bench::{Bench, UNWANTED_PANICS, eventually, spec, works};
use super::error::OperationError;
use super::instance::Instance;
use super::lease::WorkError;
use crate::domain::lifecycle::{Refusal, Refused, SandboxState};
use crate::domain::status::SandboxStatus;
use crate::domain::trace::Trace;
use crate::vmm::machine::Machines;
use crate::vmm::simulated::{Fault, Mode, Step};

#[test]
fn a_panicking_actor_is_rebuilt_and_its_sandbox_runs_on() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        assert!(works(&handle).await);
        for _ in 0..2 {
            handle.crash();
            eventually("it works again", async || works(&handle).await.then_some(())).await;
        }
        assert_eq!(handle.status().state, SandboxState::Running);
        assert_eq!((bench.machines.boots(), bench.machines.present().len()), (1, 1));
        handle.destroy().await.expect("ends");
        eventually("nothing is left", async || bench.machines.present().is_empty().then_some(()))
            .await;
    });
}

#[test]
fn a_sandbox_says_what_became_of_it_while_its_actor_ends_and_after() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        handle.destroy().await.expect("ends");
        let gone = |refused: &Refused| matches!(refused.refusal, Refusal::Gone(_));
        let seen = bench.manager.clone();
        eventually("its actor has ended", async || {
            assert!(matches!(&handle.begin_work().await, Err(WorkError::Refused(r)) if gone(r)));
            let forked = handle.fork(Trace::default()).await;
            assert!(matches!(&forked, Err(OperationError::Refused(r)) if gone(r)));
            seen.find(handle.id()).is_none().then_some(())
        })
        .await;
        assert!(matches!(&handle.begin_work().await, Err(WorkError::Refused(r)) if gone(r)));
    });
}

#[test]
fn an_actor_that_panics_while_its_machine_boots_leaves_no_machine() {
    System::new().block_on(async {
        let bench = Bench::new();
        bench.machines.set_mode(Step::Boot, Mode::SingleStep);
        let manager = bench.manager.clone();
        let creating = tokio::spawn(async move { manager.create(spec(), Trace::default()).await });
        let held = bench.machines.held(Step::Boot).await;
        let handle = bench.manager.find(&held.id).expect("lives here");
        handle.crash();
        assert!(creating.await.expect("does not panic").is_err(), "nobody can say that it runs");
        eventually("it is over", async || {
            (handle.status().state == SandboxState::Error).then_some(())
        })
        .await;
        eventually("nothing is left", async || bench.machines.present().is_empty().then_some(()))
            .await;
    });
}

#[test]
fn an_actor_that_panics_while_it_destroys_is_rebuilt_and_goes_on() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.machines.set_mode(Step::Destroy, Mode::SingleStep);
        let destroying = handle.clone();
        tokio::spawn(async move { destroying.destroy().await });
        let first = bench.machines.held(Step::Destroy).await;
        handle.crash();
        bench.machines.held(Step::Destroy).await.succeed();
        first.succeed();
        eventually("it is over", async || {
            (handle.status().state == SandboxState::Stopped).then_some(())
        })
        .await;
        assert!(bench.machines.present().is_empty());
    });
}

#[test]
fn an_actor_that_panics_while_it_pauses_finds_its_sandbox_running() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.machines.set_mode(Step::Pause, Mode::SingleStep);
        let pausing = handle.clone();
        let pausing = tokio::spawn(async move { pausing.pause(Trace::default()).await });
        let _held = bench.machines.held(Step::Pause).await;
        handle.crash();
        assert!(
            pausing.await.expect("does not panic").is_err(),
            "nobody can say that it is paused"
        );
        eventually("it works again", async || works(&handle).await.then_some(())).await;
        assert_eq!(handle.status().state, SandboxState::Running);
        bench.machines.set_mode(Step::Pause, Mode::Automatic);
        handle.pause(Trace::default()).await.expect("can still be paused");
    });
}

/// What it worked on is over before it is built again: nobody else works on the same machine.
#[test]
fn an_actor_that_panics_while_a_pause_does_not_end_waits_for_what_becomes_of_it() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.machines.set_mode(Step::Pause, Mode::SingleStepDeaf);
        let pausing = handle.clone();
        tokio::spawn(async move { pausing.pause(Trace::default()).await });
        let held = bench.machines.held(Step::Pause).await;
        handle.crash();
        sleep(Duration::from_millis(200)).await;
        assert_eq!(handle.status().state, SandboxState::Pausing);
        held.succeed();
        eventually("it is paused", async || {
            (handle.status().state == SandboxState::Paused).then_some(())
        })
        .await;
        handle.resume(Trace::default()).await.expect("resumes");
        assert!(works(&handle).await);
    });
}

#[test]
fn an_actor_that_panics_while_its_sandbox_is_frozen_finds_it_so() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        handle.pause(Trace::default()).await.expect("pauses");
        handle.crash();
        eventually("it can be resumed", async || handle.resume(Trace::default()).await.ok()).await;
        assert!(works(&handle).await);

        handle.pause(Trace::default()).await.expect("pauses");
        bench.machines.set_mode(Step::Resume, Mode::SingleStep);
        let resuming = handle.clone();
        tokio::spawn(async move { resuming.resume(Trace::default()).await });
        let _held = bench.machines.held(Step::Resume).await;
        handle.crash();
        eventually("it is paused", async || {
            (handle.status().state == SandboxState::Paused).then_some(())
        })
        .await;
        handle.destroy().await.expect("ends");
        eventually("nothing is left", async || bench.machines.present().is_empty().then_some(()))
            .await;
        assert_eq!(UNWANTED_PANICS.load(Ordering::SeqCst), 0);
    });
}

/// Nothing that is done to a sandbox waits for the control plane; the answer comes when that was told.
#[test]
fn a_pause_and_a_resume_go_on_while_the_control_plane_does_not_answer() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        for (step, after) in
            [(Step::Pause, SandboxState::Paused), (Step::Resume, SandboxState::Running)]
        {
            bench.machines.set_mode(step, Mode::SingleStep);
            bench.sink.open.send_replace(false);
            let asking = handle.clone();
            let mut done = tokio::spawn(async move {
                match step {
                    Step::Pause => asking.pause(Trace::default()).await,
                    _ => asking.resume(Trace::default()).await,
                }
            });
            bench.machines.held(step).await.succeed();
            eventually("it is done", async || (handle.status().state == after).then_some(())).await;
            let early = tokio::time::timeout(Duration::from_millis(100), &mut done);
            assert!(early.await.is_err(), "answered before the control plane was told");
            bench.sink.open.send_replace(true);
            done.await.expect("does not panic").expect("succeeds");
            assert_eq!(bench.told().last(), Some(&after), "the answer comes after the state");
        }
        assert!(works(&handle).await);
    });
}

/// F15: what is cancelled before it began never begins.
#[test]
fn a_pause_that_is_overtaken_by_a_destroy_leaves_nothing() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.machines.set_mode(Step::Pause, Mode::SingleStepDeaf);
        let pausing = handle.clone();
        let pausing = tokio::spawn(async move { pausing.pause(Trace::default()).await });
        let held = bench.machines.held(Step::Pause).await;
        let destroying = handle.clone();
        let destroying = tokio::spawn(async move { destroying.destroy().await });
        eventually("it stops", async || {
            (handle.status().state == SandboxState::Stopping).then_some(())
        })
        .await;
        held.succeed();
        destroying.await.expect("does not panic").expect("ends");
        assert!(pausing.await.expect("does not panic").is_err());
        assert!(bench.machines.present().is_empty());
        assert_eq!(UNWANTED_PANICS.load(Ordering::SeqCst), 0);
    });
}

/// What a host takes away it takes away whether or not a database hears of it.
#[test]
fn a_destroy_takes_the_machine_away_while_the_control_plane_does_not_answer() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.sink.open.send_replace(false);
        let destroying = handle.clone();
        let destroying = tokio::spawn(async move { destroying.destroy().await });
        eventually("nothing is left", async || bench.machines.present().is_empty().then_some(()))
            .await;
        bench.sink.open.send_replace(true);
        destroying.await.expect("does not panic").expect("ends");
        assert_eq!(bench.told().last(), Some(&SandboxState::Stopped));
    });
}

/// A row that was closed by mistake, or came back from a backup: the host is right about its sandbox.
#[test]
fn a_status_that_the_control_plane_finds_stale_is_told_by_a_later_number() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.sink.known.store(40, Ordering::SeqCst);
        handle.pause(Trace::default()).await.expect("pauses");
        assert_eq!(bench.told().last(), Some(&SandboxState::Paused));
        handle.resume(Trace::default()).await.expect("resumes");
        assert_eq!(bench.told().last(), Some(&SandboxState::Running));
        assert!(handle.status().generation > 40, "{:?}", handle.status());
        // Nor does what changes no state go back to the number that its actor knows.
        bench.sink.known.store(80, Ordering::SeqCst);
        let told = bench.told().len();
        handle.set_lease(Some(60)).await.expect("is there");
        eventually("it is told by a later number", async || {
            (bench.told().len() > told).then_some(())
        })
        .await;
        handle.set_lease(Some(61)).await.expect("is there");
        // A later daemon goes on from there.
        let next = bench.next();
        next.adopt_survivors().await;
        let adopted = next.find(handle.id()).expect("lives here");
        assert!(adopted.status().generation > 80, "{:?}", adopted.status());
    });
}

#[test]
fn a_sandbox_whose_actor_panics_again_and_again_is_given_up_and_says_so() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        let status = eventually("it is given up", async || {
            handle.crash();
            Some(handle.status()).filter(|status| status.state == SandboxState::Error)
        })
        .await;
        assert!(status.reason.is_some_and(|reason| reason.contains("bug")));
        eventually("nothing is left", async || bench.machines.present().is_empty().then_some(()))
            .await;
        eventually("it is told", async || {
            (bench.told().last() == Some(&SandboxState::Error)).then_some(())
        })
        .await;
        eventually("it lives here no more", async || {
            bench.manager.find(handle.id()).is_none().then_some(())
        })
        .await;
    });
}

/// Of a sandbox that is still pending when its creator fails, the control plane takes the row away.
#[test]
fn a_boot_that_failed_is_answered_when_everybody_can_read_it() {
    System::new().block_on(async {
        let bench = Bench::new();
        bench.machines.set_mode(Step::Boot, Mode::Failing { times: 1, fault: Fault::EndedEarly });
        bench.sink.open.send_replace(false);
        let (manager, spec) = (bench.manager.clone(), spec());
        let creating = manager.create(spec, Trace::default());
        tokio::pin!(creating);
        let early = tokio::time::timeout(Duration::from_millis(200), &mut creating).await;
        assert!(early.is_err(), "answered before it was known");
        bench.sink.open.send_replace(true);
        creating.await.expect("is queued").expect_err("does not boot");
        assert_eq!(bench.told().last(), Some(&SandboxState::Error));
    });
}

/// F15: a cancelled boot may be over before the control plane has heard of the stop.
#[test]
fn a_boot_that_ends_before_its_stop_is_known_ends_the_sandbox_once() {
    for fault in [None, Some(Fault::EndedEarly)] {
        System::new().block_on(async {
            let bench = Bench::new();
            let (handle, held) = bench.create_held().await;
            bench.sink.open.send_replace(false);
            let destroying = handle.clone();
            let destroyed = tokio::spawn(async move { destroying.destroy().await });
            eventually("it stops", async || {
                (handle.status().state == SandboxState::Stopping).then_some(())
            })
            .await;
            match fault {
                Some(fault) => held.fail(fault),
                None => held.succeed(),
            }
            eventually("it is over", async || {
                (handle.status().state == SandboxState::Stopped).then_some(())
            })
            .await;
            eventually("nothing is left", async || {
                bench.machines.present().is_empty().then_some(())
            })
            .await;
            bench.sink.open.send_replace(true);
            destroyed.await.expect("does not panic").expect("ends");
            eventually("it lives here no more", async || {
                bench.manager.find(handle.id()).is_none().then_some(())
            })
            .await;
            let told = bench.told();
            let last = &told[told.len() - 2..];
            assert_eq!(last, [SandboxState::Stopping, SandboxState::Stopped], "{told:?}");
            assert_eq!(handle.status().generation, 3);
            assert_eq!(UNWANTED_PANICS.load(Ordering::SeqCst), 0);
        });
    }
}

/// A former daemon may have ended before what had happened was on its disk.
#[test]
fn a_sandbox_is_what_is_found_of_it_whatever_was_last_said() {
    use SandboxState::*;
    System::new().block_on(async {
        for (frozen, said, is) in [
            (false, Pausing, Some(Running)),
            (false, Resuming, Some(Running)),
            (false, Paused, Some(Running)),
            (false, Stopping, None),
            (true, Running, Some(Paused)),
            (true, Pausing, Some(Paused)),
            (true, Resuming, Some(Paused)),
            (true, Paused, Some(Paused)),
            (true, Stopping, None),
        ] {
            let bench = Bench::new();
            let handle = bench.create().await;
            if frozen {
                handle.pause(Trace::default()).await.expect("pauses");
            }
            let status = SandboxStatus { state: said, ..handle.status() };
            let found = Instance::from(bench.machines.adopt(handle.id()).await.expect("is there"));
            found.keep(&status).expect("keeps");

            let next = bench.next();
            let adoption = next.adopt_survivors().await;
            assert_eq!(adoption.adopted, [handle.id().clone()]);
            match is {
                Some(state) => {
                    let handle = next.find(handle.id()).expect("lives here");
                    eventually("it finds itself", async || {
                        (handle.status().state == state).then_some(())
                    })
                    .await;
                    handle.resume(Trace::default()).await.expect("runs");
                    assert!(works(&handle).await, "{frozen} {said}");
                }
                None => {
                    let gone = async || bench.machines.present().is_empty().then_some(());
                    eventually("nothing is left", gone).await;
                }
            }
            assert_eq!(UNWANTED_PANICS.load(Ordering::SeqCst), 0);
        }
    });
}

#[test]
fn a_state_that_the_control_plane_does_not_take_is_told_until_it_does() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.sink.away.store(true, Ordering::SeqCst);
        // A kill does not wait for the control plane for ever.
        handle.destroy().await.expect("it is queued");
        assert_eq!(handle.status().state, SandboxState::Stopped);
        assert_eq!(bench.told().last(), Some(&SandboxState::Running));
        bench.sink.away.store(false, Ordering::SeqCst);
        let told = async || (bench.told().last() == Some(&SandboxState::Stopped)).then_some(());
        eventually("its end is known", told).await;
    });
}
