//! Forks: children go on as their parent does, and share nothing with it that can be changed.

use std::collections::BTreeSet;

use crate::support::{Sandbox, Witness, in_a_lab};

#[test]
fn children_go_on_where_their_parent_does() {
    in_a_lab(4, async |lab| {
        let mut daemon = lab.daemon().await;
        let parent = daemon.create().await;
        let mut witness = Witness::start(&parent).await;
        let children = parent.fork(3).await;
        for child in &children {
            witness.clone().goes_on(child).await;
        }
        witness.goes_on(&parent).await;

        let all: Vec<&Sandbox> = children.iter().chain([&parent]).collect();
        let of_each =
            |f: fn(&Sandbox) -> String| all.iter().map(|it| f(it)).collect::<BTreeSet<_>>();
        assert_eq!(of_each(|it| it.id.clone()).len(), 4);
        assert_eq!(of_each(|it| it.slot().to_string()).len(), 4);
        assert_eq!(of_each(|it| it.record()["access_token"].to_string()).len(), 4);
        let mut told = BTreeSet::new();
        for sandbox in &all {
            told.insert(sandbox.sh("hostname; cat /proc/sys/kernel/random/uuid").await);
        }
        assert_eq!(told.len(), 4, "{told:?}");
        for sandbox in all {
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

#[test]
fn what_one_writes_no_other_reads() {
    in_a_lab(3, async |lab| {
        let mut daemon = lab.daemon().await;
        let parent = daemon.create().await;
        parent.sh("echo before > /home/user/note; sync").await;
        let children = parent.fork(2).await;
        let all = [&parent, &children[0], &children[1]];
        for (number, sandbox) in all.iter().enumerate() {
            assert_eq!(sandbox.sh("cat /home/user/note").await, "before");
            let write = format!(
                "echo {number} > /home/user/note; echo {number} > /home/user/own-{number}; sync; \
                 head -c 3000000 /dev/urandom > /home/user/much; sync"
            );
            sandbox.sh(&write).await;
        }
        for (number, sandbox) in all.iter().enumerate() {
            let drop_caches = "echo 3 > /proc/sys/vm/drop_caches";
            sandbox.sh_as_root(drop_caches).await;
            let seen = sandbox.sh("cat /home/user/note; ls /home/user/own-*").await;
            assert_eq!(seen, format!("{number}\n/home/user/own-{number}"));
        }
        for sandbox in all {
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

#[test]
fn a_child_can_be_forked_and_paused_and_outlives_its_parent() {
    in_a_lab(3, async |lab| {
        let mut daemon = lab.daemon().await;
        let parent = daemon.create().await;
        let mut witness = Witness::start(&parent).await;
        let child = parent.fork(1).await.remove(0);
        witness.goes_on(&child).await;
        let grandchild = child.fork(1).await.remove(0);
        parent.destroy().await;
        child.pause().await;
        witness.clone().goes_on(&grandchild).await;
        child.resume().await;
        witness.goes_on(&child).await;
        assert!(child.generations().await > 1);
        for sandbox in [child, grandchild] {
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

#[test]
fn only_one_to_sixteen_children_of_a_running_parent_are_made() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let parent = daemon.create().await;
        for count in [0, 17] {
            parent.try_fork(count).await.is_error(400, "invalid_request");
        }
        parent.pause().await;
        parent.try_fork(1).await.is_error(409, "invalid_state");
        parent.destroy().await;
        parent.try_fork(1).await.is_error(409, "invalid_state");
        daemon.stop().await;
    });
}
