//! Requests for servers in sandboxes that are wrong, and servers and clients that are.

use std::time::{Duration, Instant};

use actix_web::rt;
use futures::StreamExt;
use nestbox::http::{Ports, TOKEN_HEADER};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::exec_trouble::peak_mib;
use crate::nest::{Answer, DOMAIN, Nest, eventually};
use crate::ports::{OK, Server, below, head, name};

const ID: &str = "aaaaaaaaaaaaaaaaaaaa";

#[actix_web::test]
async fn what_is_no_port_is_refused_by_name_by_path_and_at_create() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for port in ["0", "65536", "99999999999", "http", "-1", "49983", "08"] {
        let host = format!("{port}-{id}.{DOMAIN}");
        let request = nest.anonymous(Method::GET, "/").header("host", host);
        let message = Answer::of(request).await.error(400, "invalid_request");
        assert!(message.contains("port"), "{port}: {message}");
        let path = format!("/v1/sandboxes/{id}/ports/{port}/");
        let message = nest.get(&path).await.error(400, "invalid_request");
        assert!(message.contains("port"), "{port}: {message}");
    }
    nest.get("/v1/sandboxes/NO/ports/80/").await.error(400, "invalid_request");
    let long: Vec<u32> = (1..=129).collect();
    for ports in [json!([0]), json!([65536]), json!([49983]), json!(["80"]), json!(80), json!(long)]
    {
        let answer = nest.post("/v1/sandboxes", json!({"public_ports": ports})).await;
        answer.error(400, "invalid_request");
    }
}

#[actix_web::test]
async fn a_sandbox_that_does_not_run_has_no_ports() {
    let nest = Nest::start().await;
    let (port, _heads) = Server::answering(OK).await;
    nest.get(&below(ID, port)).await.error(404, "not_found");
    Answer::of(nest.by_name(Method::GET, ID, port, "/")).await.error(404, "not_found");

    let id = nest.create(json!({"public_ports": [port]})).await;
    let named = async || Answer::of(nest.by_name(Method::GET, &id, port, "/")).await;
    assert_eq!(named().await.status, 200);
    assert_eq!(nest.pause(&id).await.status, 200);
    let message = named().await.error(409, "invalid_state");
    assert!(message.contains("paused"), "{message}");
    nest.get(&below(&id, port)).await.error(409, "invalid_state");
    assert_eq!(nest.resume(&id).await.status, 200);
    assert_eq!(named().await.status, 200);
    assert_eq!(nest.destroy(&id).await.status, 204);
    named().await.error(409, "invalid_state");
}

#[actix_web::test]
async fn a_server_that_does_not_answer_as_it_should_is_a_502_in_words() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let message = nest.get(&below(&id, closed)).await.error(502, "agent_error");
    assert!(message.contains("nothing listens"), "{message}");
    let huge: &'static str =
        format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1 << 20)).leak();
    for (said, word) in [
        ("", "closed the connection"),
        ("220 smtp.example ESMTP\r\n", "not with HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "not with HTTP"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "closed the connection"),
        ("HTTP/1.1 101 Sure\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "switched protocols"),
        (huge, "not with HTTP"),
    ] {
        let (port, _heads) = Server::answering(said).await;
        let answer = nest.get(&below(&id, port)).await;
        let message = answer.error(502, "agent_error");
        assert!(message.contains(word), "{said:.40}: {message}");
        assert!(message.contains(&port.to_string()), "{message}");
    }
}

#[actix_web::test]
async fn a_server_that_never_answers_is_waited_for_while_something_is_sent() {
    let limit = Duration::from_secs(1);
    let nest = Nest::with_ports(Ports { answer_limit: limit, ..Ports::new(DOMAIN) }).await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let started = Instant::now();
    let answer = nest.get(&below(&id, server.port)).await;
    let message = answer.error(504, "timeout");
    assert!(message.contains("1 s"), "{message}");
    assert!((1..10).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    let mut connection = server.connection().await;
    head(&mut connection).await;
    assert_eq!(connection.read(&mut [0]).await.unwrap(), 0, "the server is let go");

    // Longer than the limit in all, but never silent for as long.
    let pieces = futures::stream::iter(0..6).then(|_| async {
        rt::time::sleep(Duration::from_millis(400)).await;
        Ok::<_, std::io::Error>("piece")
    });
    let request = nest.request(Method::POST, &below(&id, server.port));
    let request = request.body(reqwest::Body::wrap_stream(Box::pin(pieces)));
    let answer = rt::spawn(Answer::of(request));
    let mut connection = server.connection().await;
    let mut seen = Vec::new();
    while !seen.ends_with(b"0\r\n\r\n") {
        assert_ne!(connection.read_buf(&mut seen).await.unwrap(), 0, "it is still there");
    }
    connection.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(answer.await.unwrap().status, 200);
}

#[actix_web::test]
async fn a_server_that_takes_no_connection_is_not_waited_for_for_ever() {
    let limit = Duration::from_millis(500);
    let nest = Nest::with_ports(Ports { connect_limit: limit, ..Ports::new(DOMAIN) }).await;
    let id = nest.create(json!({})).await;
    // With a full queue the kernel does not answer.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(Ok(one)) = rt::time::timeout(limit, TcpStream::connect(address)).await {
        queue.push(one);
    }
    let answer = nest.get(&below(&id, address.port())).await;
    let message = answer.error(504, "timeout");
    assert!(message.contains("took no connection"), "{message}");
}

#[actix_web::test]
async fn a_pause_ends_what_is_under_way_and_says_so_where_it_still_can() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let waiting = rt::spawn(Answer::of(nest.request(Method::GET, &below(&id, server.port))));
    let mut unanswered = server.connection().await;
    let reading = rt::spawn(nest.request(Method::GET, &below(&id, server.port)).send());
    let mut half = server.connection().await;
    head(&mut half).await;
    half.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    let mut reading = reading.await.unwrap().unwrap();
    assert_eq!(reading.chunk().await.unwrap().unwrap(), "half");

    assert_eq!(nest.pause(&id).await.status, 200);
    let message = waiting.await.unwrap().error(409, "invalid_state");
    assert!(message.contains("paus"), "{message}");
    assert!(reading.chunk().await.is_err(), "half of an answer does not look like a whole one");
    head(&mut unanswered).await;
    for connection in [&mut unanswered, &mut half] {
        assert_eq!(connection.read(&mut [0]).await.unwrap_or(0), 0, "it has ended");
    }
    assert_eq!(nest.resume(&id).await.status, 200);
    nest.kill_vm(&id);
    nest.becomes(&id, "error").await;
}

#[actix_web::test]
async fn a_vm_that_ends_is_the_reason_that_its_server_did_not_answer() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let waiting = rt::spawn(Answer::of(nest.request(Method::GET, &below(&id, server.port))));
    let connection = server.connection().await;
    nest.kill_vm(&id);
    drop(connection);
    let message = waiting.await.unwrap().error(502, "agent_error");
    assert!(message.contains("VM"), "{message}");
}

/// Sends bytes as they are; gives what is answered to the end.
async fn raw(nest: &Nest, bytes: &str) -> String {
    let mut stream = TcpStream::connect(nest.url.strip_prefix("http://").unwrap()).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ =
        rt::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[actix_web::test]
async fn a_request_whose_end_is_not_clear_goes_nowhere() {
    let nest = Nest::start().await;
    let mut server = Server::listen().await;
    let id = nest.create(json!({"public_ports": [server.port]})).await;
    let host = name(&id, server.port);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 0",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;x=y",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: identity, chunked, identity",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding:\r\n chunked",
        "X: a\r\n Transfer-Encoding: chunked",
        "X: a\n\tContent-Length: 5",
        "X: a\rTransfer-Encoding: chunked",
        "Transfer-Encoding\0: chunked",
        "Transfer_Encoding: x\r\nContent-Length: 0x5",
        "Content-Length: 5\u{b}",
        "Content-Length: -1",
        "Content-Length: 18446744073709551621",
        "Content-Length: 5\r\n\tx: y",
        ": nameless",
        "no colon",
        "Host: elsewhere",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n\r\n0\r\n\r\n{smuggled}");
        let answer = raw(&nest, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{headers}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{headers}: {answer}");
        assert!(server.is_alone(), "{headers}");
    }
    let request = format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert!(raw(&nest, &request).await.starts_with("HTTP/1.1 4"));
    let request = format!("TRACE / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    assert!(raw(&nest, &request).await.starts_with("HTTP/1.1 405 "));
    assert!(server.is_alone());
}

#[actix_web::test]
async fn chunks_that_two_might_read_in_two_ways_are_not_passed_on_as_they_are() {
    let nest = Nest::start().await;
    let mut server = Server::listen().await;
    let id = nest.create(json!({"public_ports": [server.port]})).await;
    let host = name(&id, server.port);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for (body, passes) in [
        // Extensions are for this hop.
        ("5;name=value\r\nhello\r\n0;x\r\n\r\n".to_owned(), true),
        ("5\r\nhello\r\n0\r\n\r\n".to_owned(), true),
        // A bare line feed ends a line to some, and to others is part of an extension.
        (format!("5;\n{smuggled}\r\nhello\r\n0\r\n\r\n"), false),
        ("5\nhello\r\n0\r\n\r\n".to_owned(), false),
        ("5\r\nhello0\r\n\r\n".to_owned(), false),
        ("0x5\r\nhello\r\n0\r\n\r\n".to_owned(), false),
        ("-5\r\nhello\r\n0\r\n\r\n".to_owned(), false),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n".to_owned(), false),
        ("\r\nhello\r\n0\r\n\r\n".to_owned(), false),
    ] {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\
             Connection: close\r\n\r\n{body}{smuggled}"
        );
        let asked = rt::spawn({
            let address = nest.url.strip_prefix("http://").unwrap().to_owned();
            async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let _ = stream.write_all(request.as_bytes()).await;
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                String::from_utf8_lossy(&answer).into_owned()
            }
        });
        // It may be connected to before the body turns out to be wrong; then it is let go of.
        let mut seen = Vec::new();
        let mut connection = loop {
            if let Some(connection) = server.arrived() {
                break Some(connection);
            }
            if asked.is_finished() {
                break server.arrived();
            }
            rt::time::sleep(Duration::from_millis(5)).await;
        };
        if let Some(connection) = &mut connection {
            while !seen.ends_with(b"\r\n0\r\n\r\n") {
                match connection.read_buf(&mut seen).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            let _ = connection.write_all(OK.as_bytes()).await;
        }
        drop(connection);
        let answer = asked.await.unwrap();
        let seen = String::from_utf8_lossy(&seen);
        assert_eq!(seen.matches(" HTTP/1.1").count(), usize::from(!seen.is_empty()), "{seen}");
        assert!(!seen.contains("smuggled"), "{body:.30}: {seen}");
        // Where a body has a clear end, what follows is a request to the daemon.
        let most = 1 + usize::from(passes);
        assert!(answer.matches("HTTP/1.1 ").count() <= most, "{body:.30}: {answer}");
        match passes {
            true => assert!(seen.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{seen}"),
            // Half of a body does not look like a whole one.
            false => assert!(!seen.ends_with("\r\n0\r\n\r\n"), "{body:.30}: {seen}"),
        }
    }
}

#[actix_web::test]
async fn a_servers_redirect_is_the_clients_to_follow() {
    let nest = Nest::start().await;
    let canary = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let target = format!("http://{}/x", canary.local_addr().unwrap());
    for status in [301, 302, 303, 307, 308] {
        let said =
            format!("HTTP/1.1 {status} X\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n");
        let (port, _heads) = Server::answering(said.leak()).await;
        let id = nest.create(json!({"public_ports": [port]})).await;
        let request =
            format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", name(&id, port));
        let answer = raw(&nest, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.to_lowercase().contains(&format!("location: {target}")), "{answer}");
    }
    assert!(canary.accept().is_err(), "the daemon went where a guest had sent it");
}

#[actix_web::test]
async fn what_follows_a_websocket_that_was_declined_is_no_request() {
    let nest = Nest::start().await;
    let (port, mut heads) =
        Server::answering("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno").await;
    let id = nest.create(json!({"public_ports": [port]})).await;
    let host = name(&id, port);
    let answer = raw(
        &nest,
        &format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Content-Length: 3\r\n\r\nabcGET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n"
        ),
    )
    .await;
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    let head = heads.recv().await.unwrap();
    assert!(!head.contains("content-length"), "{head}");
    assert!(heads.try_recv().is_err());
}

#[actix_web::test]
async fn headers_that_are_too_big_are_refused_and_those_that_fit_pass() {
    let nest = Nest::start().await;
    let (port, mut heads) = Server::answering(OK).await;
    let id = nest.create(json!({"public_ports": [port]})).await;
    let host = name(&id, port);
    let request = |value: usize, count: usize| {
        let more: String =
            (0..count).map(|n| format!("X-{n}: {}\r\n", "x".repeat(value))).collect();
        format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n")
    };
    for (value, count) in [(1 << 20, 1), (10, 1000)] {
        let answer = raw(&nest, &request(value, count)).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        assert!(heads.try_recv().is_err());
    }
    let answer = raw(&nest, &request(1000, 60)).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(heads.recv().await.unwrap().len() > 60_000);
}

#[actix_web::test]
async fn a_client_that_vanishes_is_not_heard_by_the_server_any_more() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 2})).await;
    let mut server = Server::listen().await;
    // While the server thinks.
    let request = rt::spawn(nest.request(Method::GET, &below(&id, server.port)).send());
    let mut connection = server.connection().await;
    head(&mut connection).await;
    request.abort();
    assert_eq!(connection.read(&mut [0]).await.unwrap_or(0), 0);
    // In the middle of an answer.
    let request = rt::spawn(nest.request(Method::GET, &below(&id, server.port)).send());
    let mut connection = server.connection().await;
    head(&mut connection).await;
    connection.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").await.unwrap();
    drop(request.await.unwrap().unwrap());
    assert_eq!(connection.read(&mut [0]).await.unwrap_or(0), 0);
    // In the middle of an upload: half of it must not look like all of it.
    let length = 1000;
    for framing in [format!("Content-Length: {length}"), "Transfer-Encoding: chunked".to_owned()] {
        let path = below(&id, server.port);
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {}\r\n{framing}\r\n\r\n4\r\nhalf\r\n",
            nest.key
        );
        let address = nest.url.strip_prefix("http://").unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut connection = server.connection().await;
        head(&mut connection).await;
        connection.read_exact(&mut [0; 9]).await.unwrap();
        drop(client);
        let mut rest = Vec::new();
        let _ = connection.read_to_end(&mut rest).await;
        assert_eq!(rest, b"", "{framing}");
    }
    // Nothing holds the sandbox any more.
    nest.becomes(&id, "stopped").await;
}

/// Memory is the whole process's, so the work is done in a process of its own.
#[test]
fn a_slow_client_of_100_mb_costs_no_memory() {
    let alone = "ports_trouble::one_hundred_megabytes_alone";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", alone, "--ignored", "--test-threads", "1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[actix_web::test]
#[ignore = "run in a process of its own by another test"]
async fn one_hundred_megabytes_alone() {
    const SIZE: usize = 100_000_000;
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let (port, token) = (server.port, nest.ports_token(&id).await);
    let sent = std::rc::Rc::new(std::cell::Cell::new(0));
    let counter = sent.clone();
    rt::spawn(async move {
        let mut connection = server.connection().await;
        head(&mut connection).await;
        let start = format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n");
        connection.write_all(start.as_bytes()).await.unwrap();
        let piece = vec![b'x'; 100_000];
        while counter.get() < SIZE {
            connection.write_all(&piece).await.unwrap();
            counter.set(counter.get() + piece.len());
        }
    });
    let before = peak_mib();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1 << 16).unwrap();
    let address = nest.url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut client = socket.connect(address).await.unwrap();
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {}\r\n{TOKEN_HEADER}: {token}\r\nConnection: close\r\n\r\n",
        name(&id, port)
    );
    client.write_all(request.as_bytes()).await.unwrap();
    // The server stands still, with as much on its way as sockets hold.
    let stands_still = async || {
        let before = sent.get();
        rt::time::sleep(Duration::from_millis(500)).await;
        (before > 0 && sent.get() == before).then_some(before)
    };
    let on_its_way = eventually("it stands still", stands_still).await;
    assert!(on_its_way < SIZE / 2, "{on_its_way} bytes are on their way");
    let mut received = 0;
    let mut piece = vec![0; 1 << 16];
    loop {
        match client.read(&mut piece).await.unwrap() {
            0 => break,
            size => received += size,
        }
    }
    assert!(received > SIZE && received < SIZE + 1000, "{received}");
    let grown = peak_mib() - before;
    assert!(grown < 20, "grew by {grown} MiB");
}

#[actix_web::test]
async fn names_that_are_not_a_servers_lead_to_the_daemon_or_nowhere() {
    let nest = Nest::start().await;
    let request = nest.anonymous(Method::GET, "/health").header("host", DOMAIN);
    assert_eq!(Answer::of(request).await.json()["status"], Value::from("ok"));
    for host in [format!("api.{DOMAIN}"), format!("8000-short.{DOMAIN}")] {
        let request = nest.anonymous(Method::GET, "/health").header("host", &host);
        Answer::of(request).await.error(421, "misdirected");
    }
    let request = nest.anonymous(Method::GET, "/health").header("host", name(ID, 80));
    Answer::of(request).await.error(404, "not_found");
}

#[actix_web::test]
async fn without_a_domain_there_are_no_names() {
    let nest = Nest::with_ports(Ports::new("")).await;
    let (port, _heads) = Server::answering(OK).await;
    let id = nest.create(json!({"public_ports": [port]})).await;
    let request = nest.by_name(Method::GET, &id, port, "/health");
    Answer::of(request).await.error(421, "misdirected");
    let list = nest.get(&format!("/v1/sandboxes/{id}/ports")).await.json();
    assert_eq!((&list["url"], &list["ports"][0]["url"]), (&Value::Null, &Value::Null));
    assert_eq!(nest.get(&below(&id, port)).await.status, 200);
}
