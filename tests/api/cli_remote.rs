//! The command line and a daemon elsewhere: over TLS, and one that does not answer.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use nestbox::domain::id::SandboxId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::nest::{Nest, PATIENCE};

/// What a daemon stands behind elsewhere: it speaks TLS and passes on.
struct TlsProxy {
    url: String,
    /// Its certificate, in PEM.
    certificate: tempfile::NamedTempFile,
}

impl TlsProxy {
    async fn before(nest: &Nest) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let (acceptor, to) = (TlsAcceptor::from(Arc::new(config)), nest.url.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        actix_web::rt::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, to) = (acceptor.clone(), to.clone());
                actix_web::rt::spawn(async move {
                    // A client that does not trust us ends here.
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut daemon = TcpStream::connect(&to["http://".len()..]).await.unwrap();
                    let _ = copy_bidirectional(&mut stream, &mut daemon).await;
                });
            }
        });
        let certificate = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(certificate.path(), made.cert.pem()).unwrap();
        Self { url, certificate }
    }
}

/// The program for a daemon that is named by its URL.
fn remote(url: &str, key: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestbox"));
    command.env("NESTBOX_URL", url).env("NESTBOX_API_KEY", key).env("NESTBOX_DATA_DIR", "");
    command.env_remove("NESTBOX_CA").stdin(Stdio::null());
    command
}

async fn run(mut command: Command) -> Output {
    actix_web::rt::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

#[actix_web::test]
async fn a_daemon_behind_tls_is_used_like_any_other() {
    let nest = Nest::start().await;
    let proxy = TlsProxy::before(&nest).await;
    let id = nest.create(json!({})).await;
    let trusting = |args: &[&str]| {
        // As people paste it.
        let mut command = remote(&format!("{}/v1/", proxy.url), &nest.key);
        command.env("NESTBOX_CA", proxy.certificate.path()).args(args);
        command
    };
    let listed = run(trusting(&["ls"])).await;
    assert!(listed.status.success() && said(&listed).contains(&id), "{}", said(&listed));
    // A WebSocket.
    let executed = run(trusting(&["exec", &id, "--", "echo", "through TLS"])).await;
    assert!(executed.status.success(), "{}", said(&executed));
    assert_eq!(executed.stdout, b"through TLS\n");
    // A body that streams both ways.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; 300_000]).unwrap();
    let (here, there) = (file.path().to_str().unwrap(), nest.dir.path().join("copied"));
    let copied = run(trusting(&["cp", here, &format!("{id}:{}", there.display())])).await;
    assert!(copied.status.success(), "{}", said(&copied));
    assert_eq!(std::fs::read(&there).unwrap(), vec![7; 300_000]);
    let back = run(trusting(&["cp", &format!("{id}:{}", there.display()), "-"])).await;
    assert_eq!(back.stdout, vec![7; 300_000], "{}", String::from_utf8_lossy(&back.stderr));
}

#[actix_web::test]
async fn a_daemon_that_nobody_vouches_for_does_not_get_the_key() {
    let nest = Nest::start().await;
    let proxy = TlsProxy::before(&nest).await;
    let id = nest.create(json!({})).await;
    for args in [&["ls"] as &[&str], &["exec", &id, "--", "true"]] {
        let mut command = remote(&proxy.url, &nest.key);
        command.args(args);
        let refused = run(command).await;
        assert_eq!(refused.status.code(), Some(125), "{args:?}");
        assert!(said(&refused).contains("set NESTBOX_CA to a file"), "{}", said(&refused));
    }
    let mut command = remote(&nest.url.replace("http:", "https:"), &nest.key);
    command.arg("ls");
    let plain = run(command).await;
    assert!(said(&plain).contains("is it meant to be http://?"), "{}", said(&plain));
    let mut command = remote("nest.example", &nest.key);
    command.arg("ls");
    let unclear = run(command).await;
    assert!(said(&unclear).contains("write https://nest.example, or"), "{}", said(&unclear));
}

#[actix_web::test]
async fn an_empty_url_is_none() {
    let nest = Nest::start().await;
    let mut command = remote("", "");
    command.env("NESTBOX_DATA_DIR", nest.dir.path()).arg("ls");
    let listed = run(command).await;
    assert!(listed.status.success(), "{}", said(&listed));
}

/// A server that takes a connection and its request, and says nothing.
async fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[actix_web::test]
async fn one_signal_is_enough_while_the_daemon_does_not_answer() {
    let id = SandboxId::random().to_string();
    let id = id.as_str();
    let (listener, url) = silent().await;
    for args in [
        &["exec", id, "--", "true"] as &[&str],
        &["port-forward", id, "0:80"],
        &["logs", "--follow", id, "tag"],
        &["run", "--", "true"],
    ] {
        let mut command = remote(&url, "key");
        command.args(args).stderr(Stdio::null()).stdout(Stdio::null());
        // Ended with the test if the signal does not end it.
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let accepted = timeout(PATIENCE, listener.accept()).await;
        let (mut stream, _) = accepted.expect("the program connects").unwrap();
        let mut request = [0; 16];
        stream.read_exact(&mut request).await.unwrap();
        let pid = child.id().expect("it was not waited for").cast_signed();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        let ended = timeout(PATIENCE, child.wait()).await;
        let code = ended.expect("one signal ends it").unwrap().code();
        // By the signal itself, with the code that says so, or with what it means for a sandbox.
        assert!(matches!(code, None | Some(143 | 125)), "{args:?}: {code:?}");
    }
}
