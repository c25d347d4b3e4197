//! A QEMU that a guest has taken over, at the other end of its control socket.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncReadExt;
use tokio::time::sleep;

use super::*;

fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    (Connection::of(ours), theirs)
}

/// Says the same again and again, until nobody listens; counts the bytes that were taken.
fn repeat(mut to: UnixStream, what: String) -> Arc<AtomicUsize> {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    tokio::spawn(async move {
        while to.write_all(what.as_bytes()).await.is_ok() {
            count.fetch_add(what.len(), Ordering::SeqCst);
        }
    });
    taken
}

async fn stop(connection: &mut Connection) -> Result<Value, QmpError> {
    connection.execute("stop", json!({})).await
}

#[tokio::test]
async fn a_line_without_an_end_is_given_up() {
    let (mut connection, theirs) = pair();
    let taken = repeat(theirs, "x".repeat(1 << 16));
    let error = stop(&mut connection).await.expect_err("no answer");
    assert!(matches!(error, QmpError::Senseless(_)), "{error:?}");
    assert_eq!(connection.line.capacity(), 0, "nothing of it is kept");
    // Where its next message begins nobody knows.
    let before = taken.load(Ordering::SeqCst);
    let error = stop(&mut connection).await.expect_err("no answer");
    assert!(matches!(error, QmpError::Senseless(_)), "{error:?}");
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken < LINE_LIMIT + (2 << 20), "{taken} bytes");
    assert!(taken - before < 2 << 20, "no more than a socket holds");
}

#[tokio::test]
async fn events_are_kept_as_far_as_anybody_asks_for_them() {
    let (mut connection, mut theirs) = pair();
    tokio::spawn(async move {
        // With more beside it, which must not be kept.
        let more = format!("[{}0]", "{\"\":0},".repeat(20));
        for event in ["NIC_RX_FILTER_CHANGED", MIGRATION] {
            for number in 0..2000 {
                let status = if number == 2000 - EVENTS { "failed" } else { "active" };
                let data = format!("{{\"status\":\"{status}\",\"more\":{more}}}");
                let line = format!("{{\"event\":\"{event}\",\"data\":{data}}}\n");
                theirs.write_all(line.as_bytes()).await.expect("taken");
            }
        }
        // The answers to others, one of which is an event as well.
        let lines =
            "{\"id\":7,\"return\":1}\n{\"id\":1,\"event\":\"X\"}\n{\"id\":1,\"return\":2}\n";
        theirs.write_all(lines.as_bytes()).await.expect("taken");
        sleep(PATIENCE).await;
    });
    assert_eq!(stop(&mut connection).await.expect("an answer"), 2);
    // The latest, and of each no more than what it says of a load.
    let mut kept = vec![Loading::Failed];
    kept.resize(EVENTS, Loading::Ahead);
    assert_eq!(connection.events, kept);
    assert_eq!(connection.event().await.expect("an event"), Loading::Failed);
}

#[tokio::test]
async fn what_is_no_message_is_given_up() {
    let deep = "[".repeat(100_000);
    let many = format!("[{}0]", "{},".repeat(300_000));
    for said in ["", "no JSON", "\u{0}", "{\"id\":1,\"return\":1", &deep, &many, "\"\\ud800\""] {
        let (mut connection, mut theirs) = pair();
        let said = format!("{said}\n");
        tokio::spawn(async move { theirs.write_all(said.as_bytes()).await });
        let error = stop(&mut connection).await.expect_err("no answer");
        assert!(matches!(error, QmpError::Senseless(_)), "{error:?}");
    }
    // Messages that are none of ours, and then nothing.
    let (mut connection, mut theirs) = pair();
    tokio::spawn(
        async move { theirs.write_all(b"1\n[]\nnull\n{}\n{\"id\":\"1\"}\n\"id\"\n").await },
    );
    let error = stop(&mut connection).await.expect_err("no answer");
    assert!(matches!(error, QmpError::Broken(_)), "{error:?}");
}

/// Says something again and again, so that it is never silent for long.
async fn drip(mut to: UnixStream, first: &'static [u8], then: &'static [u8]) {
    let _ = to.write_all(first).await;
    while to.write_all(then).await.is_ok() {
        sleep(PATIENCE / 100).await;
    }
}

/// All at once, for each takes as long as the daemon is patient.
#[tokio::test]
async fn nothing_is_waited_for_for_ever_whatever_comes_meanwhile() {
    let asked = async |said: &'static [u8]| {
        let (mut connection, theirs) = pair();
        tokio::spawn(drip(theirs, b"", said));
        stop(&mut connection).await.map(drop)
    };
    // Both commands of a load are answered, and then only what has nothing to do with it comes.
    let loaded = async {
        let (connection, theirs) = pair();
        let answers = b"{\"id\":1,\"return\":{}}\n{\"id\":2,\"return\":{}}\n";
        tokio::spawn(drip(theirs, answers, b"{\"event\":\"STOP\"}\n"));
        Qmp(Mutex::new(connection)).load(3).await
    };
    // A command that is not taken.
    let sent = async {
        let (mut connection, _theirs) = pair();
        connection.execute("stop", json!({"x": "x".repeat(1 << 20)})).await.map(drop)
    };
    let all = async { tokio::join!(asked(b"{\"event\":\"STOP\"}\n"), asked(b"x"), loaded, sent) };
    let outcomes = timeout(PATIENCE * 2, all).await.expect("it has an end");
    for outcome in [outcomes.0, outcomes.1, outcomes.2, outcomes.3] {
        let error = outcome.expect_err("no answer");
        assert!(matches!(error, QmpError::Silent { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn descriptors_that_it_sends_are_not_kept() {
    let (mut connection, mut theirs) = pair();
    let (mut reader, writer) = io::pipe().expect("a pipe");
    let answering = tokio::spawn(async move {
        theirs.read_exact(&mut [0; 10]).await.expect("a command");
        let line = b"{\"id\":1,\"return\":{}}\n";
        let fds = [writer.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let flags = MsgFlags::empty();
        theirs
            .async_io(Interest::WRITABLE, || {
                let data = [IoSlice::new(line)];
                Ok(sendmsg::<()>(theirs.as_raw_fd(), &data, &rights, flags, None)?)
            })
            .await
            .expect("sent");
        drop(OwnedFd::from(writer));
        theirs
    });
    stop(&mut connection).await.expect("an answer");
    let _theirs = answering.await.expect("it answers");
    // While anybody had its other end open this would not return.
    assert_eq!(reader.read(&mut [0]).expect("its end"), 0);
}

#[tokio::test]
async fn what_it_says_of_a_refusal_is_short_and_cannot_drive_a_terminal() {
    let (mut connection, mut theirs) = pair();
    let desc = format!("\\u001b]0;owned\\u0007{}", "x".repeat(500_000));
    let line = format!("{{\"id\":1,\"error\":{{\"desc\":\"{desc}\"}}}}\n");
    tokio::spawn(async move { theirs.write_all(line.as_bytes()).await });
    let error = stop(&mut connection).await.expect_err("a refusal").to_string();
    assert!(error.starts_with("QEMU refused stop: \\u{1b}]0;owned\\u{7}xxx"), "{error:.100}");
    assert!(error.len() < 1100, "{} bytes", error.len());
}
