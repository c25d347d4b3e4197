//! The client, against a socket that says what a Firecracker would.

use std::os::unix::net::UnixListener as StdListener;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;

/// Answers each connection with one of `answers`, and returns what it was asked.
fn serve(answers: Vec<&'static str>) -> (tempfile::TempDir, tokio::task::JoinHandle<Vec<String>>) {
    let dir = tempfile::tempdir().unwrap();
    let listener = StdListener::bind(dir.path().join(SOCKET)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = UnixListener::from_std(listener).unwrap();
    let task = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut text = Vec::new();
            let mut buffer = [0; 4096];
            while !complete(&text) {
                let count = stream.read(&mut buffer).await.unwrap();
                assert!(count > 0, "the request ended early");
                text.extend_from_slice(&buffer[..count]);
            }
            asked.push(String::from_utf8(text).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    (dir, task)
}

fn complete(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.to_ascii_lowercase().lines().find_map(|line| {
        line.strip_prefix("content-length: ").and_then(|length| length.parse().ok())
    });
    body.len() >= length.unwrap_or(0)
}

fn api(dir: &tempfile::TempDir) -> Api {
    Api::of(std::process::id() as i32, dir.path())
}

#[tokio::test]
async fn a_request_carries_its_body_and_gets_its_answer() {
    let answers = vec![
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 19\r\n\r\n{\"state\":\"Running\"}",
    ];
    let (dir, task) = serve(answers);
    api(&dir).patch("/vm", &json!({"state": "Paused"})).await.unwrap();
    assert_eq!(api(&dir).get("/").await.unwrap(), json!({"state": "Running"}));
    let asked = task.await.unwrap();
    assert!(asked[0].starts_with("PATCH /vm HTTP/1.1\r\n"), "{asked:?}");
    assert!(asked[0].ends_with("{\"state\":\"Paused\"}"), "{asked:?}");
    assert!(asked[1].starts_with("GET / HTTP/1.1\r\n"), "{asked:?}");
}

#[tokio::test]
async fn a_refusal_is_told_in_firecrackers_words() {
    let answer =
        "HTTP/1.1 400 Bad Request\r\nContent-Length: 27\r\n\r\n{\"fault_message\":\"no disk\"}";
    let (dir, _task) = serve(vec![answer]);
    let error = api(&dir).put("/drives/root", &json!({})).await.unwrap_err();
    let text = error.to_string();
    assert_eq!(text, "Firecracker refused /drives/root: no disk");
}

#[tokio::test]
async fn one_that_ends_in_the_middle_is_a_broken_connection() {
    let (dir, _task) = serve(vec!["HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"]);
    let error = api(&dir).get("/").await.unwrap_err();
    assert!(matches!(error, ApiError::Broken(_)), "{error:?}");
}

#[tokio::test]
async fn a_socket_of_another_process_is_not_talked_to() {
    let (dir, task) = serve(vec![""]);
    let error = Api::of(1, dir.path()).get("/").await.unwrap_err();
    assert!(matches!(error, ApiError::Impostor { expected: 1, .. }), "{error:?}");
    task.abort();
}

#[tokio::test]
async fn one_that_listens_late_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SOCKET);
    let late = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        UnixListener::bind(path).unwrap()
    });
    api(&dir).wait().await.unwrap();
    drop(late.await.unwrap());
}

#[tokio::test]
async fn an_answer_without_an_end_is_given_up() {
    let long = "x".repeat(8 << 20);
    let chunks = "10000\r\n".to_owned() + &"x".repeat(0x10000) + "\r\n";
    for answer in [
        format!("HTTP/1.1 200 OK\r\nContent-Length: 8388608\r\n\r\n{long}"),
        format!("HTTP/1.1 400 Bad\r\nContent-Length: 8388608\r\n\r\n{long}"),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}", chunks.repeat(100)),
        format!("HTTP/1.1 200 OK\r\nX: {long}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: x\r\n".repeat(1 << 20)),
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(100) + "HTTP/1.1 200 " + &long,
    ] {
        let (dir, _task) = serve(vec![answer.leak()]);
        let error = api(&dir).get("/").await.unwrap_err();
        assert!(matches!(error, ApiError::Broken(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_fault_is_short_and_cannot_drive_a_terminal() {
    let body = format!("{{\"fault_message\":\"\\u001b[2J{}\"}}", "x".repeat(100_000));
    let answer = format!("HTTP/1.1 400 Bad\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (dir, _task) = serve(vec![answer.leak()]);
    let text = api(&dir).get("/").await.unwrap_err().to_string();
    assert!(text.starts_with("Firecracker refused /: \\u{1b}[2Jxxx"), "{text:.100}");
    assert!(text.len() < 1100, "{} bytes", text.len());
}
