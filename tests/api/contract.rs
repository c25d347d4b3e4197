//! Arbitrary requests that schemathesis makes from the served document: no answer is a 500, and each
//! has a status, a type and a form that the document knows.
//!
//! Simulated machines are processes of this host, and a request may well be to delete `/`. So all of
//! it happens in a place of its own, which bubblewrap makes: nothing can be written there but a
//! directory in memory, and there are neither other processes nor a network.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use actix_web::web;
use nestbox::actors::host::Limits;
use nestbox::startup::limits;
use serde_json::json;

use crate::nest::Nest;

/// Says to the test below that it is in that place, and for how many seconds it asks. With none it asks
/// all that there is once.
const CONFINED: &str = "NESTBOX_TEST_CONFINED";

/// Sandboxes of a run are so few, lest the host be full of processes: for more there is a 503.
const MEMORY_MIB: u64 = 2048;

/// How many requests are made of one operation by chance, beside those that the document suggests.
const EXAMPLES: &str = "20";

/// Seconds after which a run has failed, beside those that it is to ask for.
const MOST_SECONDS: u32 = 1200;

/// For how many seconds it asks where length is the point.
const LONG_SECONDS: u32 = 600;

#[test]
fn the_server_keeps_to_its_document_whatever_it_is_asked() {
    ask_confined(None);
}

#[test]
#[ignore = "takes long: ten minutes of requests by chance, see `make test-long`"]
fn takes_long_the_server_keeps_to_its_document_however_long_it_is_asked() {
    ask_confined(Some(LONG_SECONDS));
}

/// Starts the test below in the place where it can do no harm.
fn ask_confined(seconds: Option<u32>) {
    let seconds = seconds.map_or_else(String::new, |seconds| seconds.to_string());
    let mut place = Command::new("bwrap");
    place.args(["--ro-bind", "/", "/", "--tmpfs", "/tmp", "--dev", "/dev", "--proc", "/proc"]);
    place.args(["--unshare-all", "--die-with-parent", "--new-session"]);
    place.args(["--setenv", "HOME", "/tmp", "--setenv", "TMPDIR", "/tmp"]);
    place.args(["--setenv", CONFINED, &seconds]);
    let test = ["contract::confined_requests_are_answered_as_documented", "--exact", "--ignored"];
    place.arg("--").arg(std::env::current_exe().unwrap()).args(test).arg("--nocapture");
    let output = place.stdin(Stdio::null()).output();
    let output = output.expect("bwrap is missing: run `scripts/setup.sh tests`");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "the test that is meant was not found: {text}");
}

#[actix_web::test]
#[ignore = "deletes what it can: only the tests above may run it, confined"]
async fn confined_requests_are_answered_as_documented() {
    let seconds = std::env::var(CONFINED);
    let error = std::fs::File::create("/nestbox-test").map(drop).map_err(|error| error.kind());
    assert!(
        seconds.is_ok() && error == Err(ErrorKind::ReadOnlyFilesystem),
        "not confined: {error:?}"
    );
    let program =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("target/schemathesis/bin/schemathesis");
    assert!(program.exists(), "schemathesis is missing: run `scripts/setup.sh tests`");

    let real = limits(Some(0)).unwrap();
    let nest = Nest::with_limits(Limits { cpus: 2, memory_mib: MEMORY_MIB, ..real }).await;
    // So that requests about a sandbox have one to be about.
    nest.create(json!({"template": "debian"})).await;
    // The key that it comes with would be among those that it takes away.
    let seconds = seconds.unwrap().parse().ok();
    assert!(ask(&nest, seconds, &["--exclude-operation-id", "deleteApiKey"]).await > 50);
    assert_eq!(nest.get("/v1/sandboxes").await.status, 200, "the key is gone");
    assert_eq!(ask(&nest, None, &["--include-operation-id", "deleteApiKey"]).await, 1);
}

/// Makes requests to some operations, and fails if one is not answered as it should be. Gives the
/// number of operations.
async fn ask(nest: &Nest, seconds: Option<u32>, operations: &[&str]) -> u32 {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join("target/schemathesis/bin/schemathesis");
    assert!(program.exists(), "schemathesis is missing: run `scripts/setup.sh tests`");
    let mut run = Command::new("timeout");
    run.arg((MOST_SECONDS + seconds.unwrap_or(0)).to_string()).arg(program);
    run.env("SCHEMATHESIS_HOOKS", root.join("tests/api/contract/bodies.py"));
    run.arg("--config-file").arg(root.join("tests/api/contract/settings.toml"));
    run.arg("run").arg(format!("{}/openapi.json", nest.url));
    run.arg("--header").arg(format!("X-API-Key: {}", nest.key));
    run.args(["--max-examples", EXAMPLES]).args(operations);
    if let Some(seconds) = seconds {
        // No bound: it goes on until it has spent them.
        run.args(["--max-time", &seconds.to_string()]);
    }
    run.stdin(Stdio::null()).current_dir("/tmp");
    let output = web::block(move || run.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tested = text.split_once("Tested: ").expect("a summary").1.lines().next();
    tested.expect("a line").trim().parse().expect("a number")
}
