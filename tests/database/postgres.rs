//! What is special about PostgreSQL.

use std::error::Error;

use super::*;

/// The error with its causes, as `main` would print it.
async fn refusal(url: &str) -> String {
    let error = Database::open(url).await.err().unwrap();
    let mut text = format!("{error:?}; {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_without_the_password() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = refusal(&format!("postgres://bird:s3cret@127.0.0.1:{port}/nest")).await;
    assert!(text.contains(&format!("postgres://bird@127.0.0.1:{port}/nest")), "{text}");
    assert!(text.contains("refused"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_url_that_cannot_be_read_does_not_show_its_password() {
    for url in ["postgres://bird:s3cret@host:port/nest", "postgres://bird:s3cret@[::1/nest"] {
        let text = refusal(url).await;
        assert!(text.contains("cannot be read"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_an_error_at_once() {
    let Some(url) = server::database().await else { return };
    let text = refusal(&url.replace(server::PASSWORD, "s3cret")).await;
    assert!(text.contains("password authentication failed"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}
