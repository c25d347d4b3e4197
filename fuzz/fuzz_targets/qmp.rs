//! A QEMU that somebody has taken over, at its control socket. It has said everything before it is
//! asked anything, and then hangs up.

#![no_main]

use std::os::fd::AsFd;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use nestbox_fuzz::measure;
use nestbox_fuzz::said::{expanded, is_fit};
use nestbox_fuzz::vmm::hypervisor::console;
use nestbox_fuzz::vmm::hypervisor::qemu::qmp::{Qmp, QmpError, unexpected};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A line of a megabyte, with the most values that one may hold.
const MEMORY: usize = 24 << 20;

/// As `vmm::hypervisor::qemu::qmp` has it, in bytes.
const LONGEST_LINE: usize = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let said = expanded(input);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    measure::within(MEMORY, || runtime.block_on(talk(&said)));
});

async fn talk(said: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    console::NEXT.set(Some(ours));
    let (mut heard, mut speaks) = theirs.into_split();
    let speaking = async move {
        // It breaks off when nobody listens any more.
        let _ = speaks.write_all(said).await;
        let _ = speaks.shutdown().await;
    };
    let hearing = async {
        let mut buffer = vec![0; 64 << 10];
        while matches!(heard.read(&mut buffer).await, Ok(1..)) {}
    };
    let asking = async {
        let outcome = ask().await;
        let first = said.split(|byte| *byte == b'\n').next().map_or(0, <[u8]>::len);
        if first > LONGEST_LINE {
            assert!(matches!(outcome, Err(QmpError::Senseless(_))), "{first} bytes: {outcome:?}");
        }
        if let Err(error) = outcome {
            is_fit(&error);
        }
    };
    // Whoever asks is through when the other hangs up.
    tokio::select! {
        biased;
        () = asking => {}
        _ = async { tokio::join!(speaking, hearing) } => unreachable!("it hears until it is told"),
    }
}

async fn ask() -> Result<(), QmpError> {
    let qmp = Qmp::connect(Path::new("/nowhere")).await?;
    let status = qmp.execute("query-status", json!({})).await?;
    assert!(unexpected(&status).len() <= 1 << 10);
    let file = std::fs::File::open("/dev/null").expect("it is there");
    let outcome = match qmp.add_fd(file.as_fd()).await {
        Ok(set) => qmp.forget_fd(set).await,
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        is_fit(&error);
        if matches!(error, QmpError::Senseless(_)) {
            let next = qmp.execute("stop", json!({})).await;
            assert!(matches!(next, Err(QmpError::Senseless(_))), "it is believed again");
        }
    }
    qmp.load(3).await
}
