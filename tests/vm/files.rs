//! Files of a sandbox, and its disk.

use serde_json::json;

use crate::support::{Said, Socket, in_a_lab};

#[test]
fn a_large_file_comes_back_as_it_went() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        // No period that a block or a piece could hide behind.
        let mut state: u32 = 1;
        let content: Vec<u8> = (0..20_000_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        sandbox.write("/tmp/deep/er/file", content.clone()).await;
        assert_eq!(sandbox.sh("stat -c %s /tmp/deep/er/file").await, "20000000");
        assert!(sandbox.read("/tmp/deep/er/file").await == content, "the content differs");
        sandbox.write("empty", "").await;
        assert!(sandbox.read("empty").await.is_empty());
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_path_that_cannot_be_is_refused() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        sandbox.try_read("/no/such/file").await.is_error(404, "not_found");
        sandbox.try_read("/etc").await.is_error(400, "invalid_request");
        sandbox.try_write("/etc", "x").await.is_error(400, "invalid_request");
        sandbox.try_write("/etc/passwd/below", "x").await.is_error(400, "invalid_request");
        let speed = sandbox.try_read("/sys/class/net/lo/speed").await;
        let message = speed.is_error(400, "invalid_request").message();
        assert!(message.contains("nvalid argument"), "{message}");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn tmp_is_on_the_disk_and_files_are_reached_with_the_users_own_rights() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let where_is = "stat -c %a /tmp; df --output=target /tmp | tail -n 1";
        assert_eq!(sandbox.sh(where_is).await, "1777\n/");
        // More than the guest has memory.
        sandbox.sh("head -c 300M /dev/zero > /tmp/large && rm /tmp/large").await;

        // The kernel follows such a link for its owner alone, not even for root.
        sandbox.sh("echo mine > /tmp/orig; ln -s orig /tmp/link").await;
        assert_eq!(sandbox.read("/tmp/link").await, b"mine\n");
        sandbox.write("/tmp/link", "written").await;
        assert_eq!(sandbox.sh("test -L /tmp/link && cat /tmp/orig").await, "written");

        sandbox.sh_as_root("umask 077; echo secret > /tmp/secret").await;
        let denied = [
            sandbox.try_read("/tmp/secret").await,
            sandbox.try_write("/tmp/secret", "x").await,
            sandbox.try_write("/etc/cron.d/x", "x").await,
            sandbox.try_write("/proc/sys/kernel/core_pattern", "x").await,
            sandbox.delete("/files?path=/tmp/secret").await,
            sandbox.get("/files/list?path=/root").await,
        ];
        for answer in denied {
            let message = answer.is_error(400, "invalid_request").message();
            let reasons = ["ermission denied", "not permitted"];
            assert!(reasons.iter().any(|reason| message.contains(reason)), "{message}");
        }
        assert_eq!(sandbox.sh_as_root("cat /tmp/secret").await, "secret");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_full_disk_is_told_and_the_guest_goes_on() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let fill = "fallocate -l $(df --output=avail -B1 / | tail -n 1) /fill; \
                    dd if=/dev/zero of=/fill2 bs=64k 2>/dev/null; df --output=avail / | tail -n 1";
        assert_eq!(sandbox.sh_as_root(fill).await, "0");

        sandbox.try_write("/home/user/big", vec![7; 8 << 20]).await.is_error(507, "no_space");
        assert_eq!(sandbox.sh("ls -A /home/user | grep -c big || true").await, "0", "none of it");
        assert_eq!(sandbox.sh("echo on").await, "on");

        sandbox.sh_as_root("rm /fill /fill2").await;
        sandbox.write("/home/user/big", vec![7; 8 << 20]).await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

/// Waits until a watch tells this; what the kernel tells besides is passed over.
async fn hears(watch: &mut Socket, kind: &str, name: &str) {
    loop {
        match watch.next().await {
            Said::Message(told) if told["type"] == kind && told["name"] == name => return,
            Said::Message(_) => {}
            other => panic!("{other:?} instead of {kind} {name}"),
        }
    }
}

#[test]
fn a_watch_tells_what_happens_in_a_guest_until_it_is_paused() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        sandbox.sh("mkdir box").await;
        let watch = async || {
            let mut watch = sandbox.socket("/files/watch?path=box&recursive=true").await;
            assert_eq!(watch.next().await, Said::Message(json!({ "type": "start" })));
            watch
        };
        let mut first = watch().await;
        sandbox.sh("mkdir box/in; echo x > box/in/note; chmod 600 box/in/note").await;
        hears(&mut first, "create", "in").await;
        hears(&mut first, "write", "in/note").await;
        hears(&mut first, "chmod", "in/note").await;
        sandbox.sh("mv box/in/note box/out; rm box/out").await;
        hears(&mut first, "rename", "in/note").await;
        hears(&mut first, "create", "out").await;
        hears(&mut first, "remove", "out").await;
        sandbox.pause().await;
        assert_eq!(first.close_code().await, 4001);

        // What was watched before is not watched twice.
        sandbox.resume().await;
        let mut second = watch().await;
        sandbox.write("box/sent", "whole").await;
        let Said::Message(told) = second.next().await else { panic!("no message") };
        assert_eq!((&told["name"], &told["entry"]["size"]), (&json!("sent"), &json!(5)));
        sandbox.destroy().await;
        assert_eq!(second.close_code().await, 4002);
        daemon.stop().await;
    });
}
