//! Servers in sandboxes, from outside. The "guests" of simulated machines share this host's network,
//! so the servers are tasks of the tests, and see each byte that reaches them.

use std::time::Duration;

use actix_web::rt;
use futures::{SinkExt, StreamExt};
use nestbox::http::TOKEN_HEADER;
use reqwest::{Method, RequestBuilder, redirect};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Message, handshake};

use crate::nest::{Answer, DOMAIN, Nest, eventually};

/// A server in a "guest".
pub struct Server {
    pub port: u16,
    connections: mpsc::UnboundedReceiver<TcpStream>,
}

impl Server {
    /// One that the test plays itself.
    pub async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (taken, connections) = mpsc::unbounded_channel();
        rt::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                if taken.send(connection).is_err() {
                    break;
                }
            }
        });
        Self { port, connections }
    }

    /// One that reads the head of each request and answers with `answer`; gives the heads.
    pub async fn answering(answer: &'static str) -> (u16, mpsc::UnboundedReceiver<String>) {
        let mut server = Self::listen().await;
        let port = server.port;
        let (seen, heads) = mpsc::unbounded_channel();
        rt::spawn(async move {
            while let Some(mut connection) = server.connections.recv().await {
                let head = head(&mut connection).await;
                let _ = connection.write_all(answer.as_bytes()).await;
                if seen.send(head).is_err() {
                    break;
                }
            }
        });
        (port, heads)
    }

    pub async fn connection(&mut self) -> TcpStream {
        self.connections.recv().await.expect("it listens")
    }

    /// Whoever has connected already and was not taken.
    pub fn arrived(&mut self) -> Option<TcpStream> {
        self.connections.try_recv().ok()
    }

    /// Whether nobody has connected that was not taken.
    pub fn is_alone(&mut self) -> bool {
        self.connections.try_recv().is_err()
    }
}

/// Reads to the end of a request's head, in small letters but for its first line.
pub async fn head(connection: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => bytes.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// The values of a header in a head.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
}

pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// The name of a server.
pub fn name(id: &str, port: u16) -> String {
    format!("{port}-{id}.{DOMAIN}")
}

pub fn below(id: &str, port: u16) -> String {
    format!("/v1/sandboxes/{id}/ports/{port}")
}

impl Nest {
    /// A request by the name of a server, without any token.
    pub fn by_name(&self, method: Method, id: &str, port: u16, path: &str) -> RequestBuilder {
        self.anonymous(method, path).header("host", name(id, port))
    }

    /// The token of a sandbox's ports.
    pub async fn ports_token(&self, id: &str) -> String {
        let answer = self.get(&format!("/v1/sandboxes/{id}/ports")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["token"].as_str().unwrap().to_owned()
    }
}

#[actix_web::test]
async fn a_request_reaches_its_server_by_name_and_by_path_as_it_was_sent() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let token = nest.ports_token(&id).await;
    let (port, mut heads) = Server::answering(
        "HTTP/1.1 418 Short And Stout\r\nContent-Length: 3\r\nX-Request-Id: theirs\r\n\
         Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\npot",
    )
    .await;
    let path = "/a%2Fb//c?x=%20&y&nestbox=1";
    let named = nest.by_name(Method::PUT, &id, port, path).header(TOKEN_HEADER, &token);
    let pathed = nest.request(Method::PUT, &format!("{}{path}", below(&id, port)));
    for (request, prefix) in [(named, None), (pathed, Some(below(&id, port)))] {
        let request = request
            .header("x-api-key", &nest.key)
            .header("cookie", format!("mine=1; nestbox_token={token}"))
            .header("connection", "x-hop-too")
            .header("x-hop-too", "1")
            .body("body");
        let answer = Answer::of(request).await;
        assert_eq!((answer.status, &answer.body[..]), (418, &b"pot"[..]), "an error of theirs");
        assert_eq!(answer.header("x-request-id"), Some("theirs"));
        assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
        assert_eq!(answer.header("x-hop"), None);
        let policy = prefix.is_some().then_some("sandbox");
        assert_eq!(answer.header("content-security-policy"), policy);

        let head = heads.recv().await.unwrap();
        assert_eq!(head.lines().next(), Some(format!("PUT {path} HTTP/1.1").as_str()));
        assert_eq!(values(&head, "content-length"), ["4"]);
        assert_eq!(values(&head, "cookie"), ["mine=1"]);
        assert_eq!(values(&head, "x-forwarded-for"), ["127.0.0.1"]);
        let prefixes: Vec<&str> = prefix.iter().map(String::as_str).collect();
        assert_eq!(values(&head, "x-forwarded-prefix"), prefixes);
        assert!(!head.contains(&token) && !head.contains(&nest.key), "{head}");
        assert!(!head.contains("x-hop-too"), "{head}");
    }
}

#[actix_web::test]
async fn a_private_port_is_opened_by_its_sandboxs_token_and_a_public_one_by_nothing() {
    let nest = Nest::start().await;
    let (private, _one) = Server::answering(OK).await;
    let (public, _two) = Server::answering(OK).await;
    let id = nest.create(json!({"public_ports": [public]})).await;
    let other = nest.create(json!({})).await;
    assert_eq!(nest.sandbox(&id).await["public_ports"], json!([public]));
    assert_eq!(nest.sandbox(&other).await["public_ports"], json!([]));
    let ask = async |port, header: &str, value: &str| {
        let request = nest.by_name(Method::GET, &id, port, "/").header(header, value);
        Answer::of(request).await
    };
    // No token has been handed out yet, so none is right.
    ask(private, TOKEN_HEADER, "").await.error(401, "unauthorized");
    let (token, foreign) = (nest.ports_token(&id).await, nest.ports_token(&other).await);
    assert_eq!(token, nest.ports_token(&id).await, "it stays the same");
    assert_ne!(token, foreign);

    assert_eq!(ask(public, "accept", "*/*").await.status, 200);
    assert_eq!(ask(private, TOKEN_HEADER, &token).await.status, 200);
    assert_eq!(ask(private, "cookie", &format!("x=1; nestbox_token={token}")).await.status, 200);
    for (header, value) in [
        ("accept", "*/*".to_owned()),
        (TOKEN_HEADER, foreign.clone()),
        (TOKEN_HEADER, String::new()),
        ("cookie", format!("nestbox_token={foreign}")),
        ("cookie", format!("nestbox={token}")),
        ("x-api-key", nest.key.clone()),
    ] {
        let message = ask(private, header, &value).await.error(401, "unauthorized");
        assert!(message.contains(TOKEN_HEADER), "{header}: {message}");
    }
    // Whoever can give its visitors cookies for all of the domain cannot lock them out.
    let both = format!("nestbox_token=forged; nestbox_token={token}");
    assert_eq!(ask(private, "cookie", &both).await.status, 200);
}

#[actix_web::test]
async fn a_browser_trades_the_token_for_a_cookie_of_that_name_alone() {
    let nest = Nest::start().await;
    let (port, mut heads) = Server::answering(OK).await;
    let id = nest.create(json!({})).await;
    let token = nest.ports_token(&id).await;
    let browser =
        reqwest::Client::builder().no_proxy().redirect(redirect::Policy::none()).build().unwrap();
    let visit = async |path: &str, header: &str, value: &str| {
        let request = browser.get(format!("{}{path}", nest.url)).header("host", name(&id, port));
        Answer::of(request.header(header, value)).await
    };
    let path = format!("/tree/?a=%20b&nestbox_token={token}&c");
    let answer = visit(&path, "accept", "*/*").await;
    assert_eq!((answer.status, answer.header("location")), (303, Some("/tree/?a=%20b&c")));
    let cookie = answer.header("set-cookie").unwrap().to_owned();
    let parts: Vec<&str> = cookie.split("; ").collect();
    assert_eq!(parts[1..], ["Path=/", "HttpOnly", "SameSite=Lax"], "and no Domain");
    let answer = visit("/tree/", "cookie", parts[0]).await;
    assert_eq!(answer.status, 200);
    assert!(heads.recv().await.unwrap().starts_with("GET /tree/ HTTP"));

    let answer = visit(&path, "x-forwarded-proto", "https").await;
    assert!(answer.header("set-cookie").unwrap().ends_with("; Secure"));
    // What looks like another host's name is a path here.
    for path in ["//evil.example/", "/\\evil.example/"] {
        let answer = visit(&format!("{path}?nestbox_token={token}"), "accept", "*/*").await;
        assert_eq!(answer.header("location"), Some("/evil.example/"), "{path}");
    }
    for wrong in ["/?nestbox_token=", "/?nestbox_token=wrong"] {
        visit(wrong, "accept", "*/*").await.error(401, "unauthorized");
    }
    assert!(heads.try_recv().is_err(), "the token never reached the server");
}

#[actix_web::test]
async fn a_cookie_is_of_no_use_to_another_sites_pages() {
    let nest = Nest::start().await;
    let (port, _heads) = Server::answering(OK).await;
    let id = nest.create(json!({})).await;
    let cookie = format!("nestbox_token={}", nest.ports_token(&id).await);
    let ask = async |origin: &str| {
        let request = nest.by_name(Method::POST, &id, port, "/").header("cookie", &cookie);
        Answer::of(request.header("origin", origin)).await
    };
    assert_eq!(ask(&format!("http://{}", name(&id, port))).await.status, 200);
    let sibling = format!("http://{}", name(&id, port ^ 1));
    for origin in ["null", "http://evil.example", &sibling, DOMAIN] {
        ask(origin).await.error(401, "unauthorized");
    }
}

#[actix_web::test]
async fn by_path_only_a_header_opens_anything_whatever_is_public() {
    let nest = Nest::start().await;
    let (port, _heads) = Server::answering(OK).await;
    let id = nest.create(json!({"public_ports": [port]})).await;
    let other = nest.create(json!({})).await;
    let token = nest.ports_token(&id).await;
    let path = below(&id, port);
    for path in [path.clone(), format!("{path}/"), format!("{path}/deep/er?x")] {
        let request = nest.anonymous(Method::GET, &path).header(TOKEN_HEADER, &token);
        assert_eq!(Answer::of(request).await.status, 200, "{path}");
        assert_eq!(nest.get(&path).await.status, 200, "{path}");
    }
    let foreign = nest.ports_token(&other).await;
    for (header, value) in [
        ("accept", "*/*"),
        ("cookie", &format!("nestbox_token={token}")),
        (TOKEN_HEADER, &foreign),
        ("x-api-key", "nb_wrong"),
    ] {
        let request = nest.anonymous(Method::GET, &path).header(header, value);
        Answer::of(request).await.error(401, "unauthorized");
    }
    let request = nest.anonymous(Method::GET, &format!("{path}/?nestbox_token={token}"));
    Answer::of(request).await.error(401, "unauthorized");
}

#[actix_web::test]
async fn bodies_are_passed_on_as_they_come() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let (pieces, body) = mpsc::unbounded_channel::<Result<&'static str, std::io::Error>>();
    let body = futures::stream::unfold(body, |mut body| async { Some((body.recv().await?, body)) });
    let request = nest
        .request(Method::POST, &format!("{}/up", below(&id, server.port)))
        .body(reqwest::Body::wrap_stream(body));
    let answer = rt::spawn(request.send());
    pieces.send(Ok("one")).unwrap();
    let mut connection = server.connection().await;
    let head = head(&mut connection).await;
    assert_eq!(values(&head, "transfer-encoding"), ["chunked"]);
    assert!(values(&head, "content-length").is_empty());
    let mut read = async |expected: &str| {
        let mut bytes = vec![0; expected.len()];
        connection.read_exact(&mut bytes).await.unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    };
    read("3\r\none\r\n").await;
    pieces.send(Ok("two")).unwrap();
    read("3\r\ntwo\r\n").await;
    drop(pieces);
    read("0\r\n\r\n").await;

    let say = async |connection: &mut TcpStream, text: &str| {
        connection.write_all(text.as_bytes()).await.unwrap();
    };
    say(&mut connection, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await;
    let mut answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        say(&mut connection, event).await;
        assert_eq!(answer.chunk().await.unwrap().unwrap(), event);
    }
    drop(connection);
    assert_eq!(answer.chunk().await.unwrap(), None);
}

#[actix_web::test]
async fn answers_without_a_body_have_none() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for (method, said, status, length) in [
        (Method::HEAD, "200 OK\r\nContent-Length: 42", 200, Some("42")),
        (Method::GET, "204 No Content", 204, None),
        (Method::GET, "304 Not Modified\r\nContent-Length: 42", 304, Some("42")),
        (Method::GET, "200 OK\r\nContent-Length: 0", 200, Some("0")),
        (Method::OPTIONS, "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0", 200, None),
    ] {
        let answer: &'static str = format!("HTTP/1.1 {said}\r\n\r\n").leak();
        let (port, mut heads) = Server::answering(answer).await;
        // The path in other letters is the same one.
        for path in [below(&id, port), below(&id, port).replace("/ports/", "/%70orts/")] {
            // Twice over one connection: what is left over of the first answer would spoil the second.
            let answer = Answer::of(nest.request(method.clone(), &path)).await;
            assert_eq!((answer.status, answer.body.len()), (status, 0), "{said}");
            assert_eq!(answer.header("content-length"), length, "{said}");
            let seen = heads.recv().await.unwrap();
            assert!(seen.starts_with(method.as_str()), "{path}: {seen}");
        }
    }
}

#[actix_web::test]
async fn a_websocket_passes_with_its_subprotocol_but_without_our_key() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let port = server.port;
    let echo = rt::spawn(async move {
        #[expect(clippy::result_large_err, reason = "it is the library's type")]
        let check = |request: &handshake::server::Request,
                     mut answer: handshake::server::Response| {
            let text = format!("{:?}", request.headers());
            assert!(!text.contains("nb_") && !text.contains("nestbox"), "{text}");
            assert_eq!(request.uri().path(), "/live");
            answer.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
            Ok(answer)
        };
        let connection = server.connection().await;
        let mut socket = tokio_tungstenite::accept_hdr_async(connection, check).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let address = nest.url.strip_prefix("http://").unwrap();
    let url = format!("ws://{address}{}/live", below(&id, port));
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("x-api-key", nest.key.parse().unwrap());
    let offer = format!("chat, nestbox.key.{}", nest.key);
    headers.insert("sec-websocket-protocol", offer.parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, answer) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
    let long = "x".repeat(300_000);
    for text in ["one", "two", &long] {
        socket.send(Message::text(text)).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(text));
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    echo.await.unwrap();
}

#[actix_web::test]
async fn a_server_may_decline_a_websocket() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (port, _heads) = Server::answering("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno").await;
    let request = crate::exec_stream::upgrade(nest.request(Method::GET, &below(&id, port)));
    let answer = Answer::of(request).await;
    assert_eq!((answer.status, &answer.body[..]), (403, &b"no"[..]));
}

#[actix_web::test]
async fn the_list_of_ports_says_where_they_are() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"public_ports": [8000, 80, 8000]})).await;
    let path = format!("/v1/sandboxes/{id}/ports");
    let own = nest.url.rsplit_once(':').unwrap().1;
    let url = |port: &str| Value::from(format!("http://{port}-{id}.{DOMAIN}:{own}/"));
    let list = nest.get(&path).await.json();
    assert_eq!(list["url"], url("{port}"));
    let port = |port: u16| json!({"port": port, "url": url(&port.to_string()), "public": true});
    assert_eq!(list["ports"], json!([port(80), port(8000)]));
    let keys: Vec<&String> = list.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["ports", "token", "url"]);

    let behind = nest.request(Method::GET, &path).header("x-forwarded-proto", "https");
    let list = Answer::of(behind.header("x-forwarded-host", "api.nest.example")).await.json();
    assert_eq!(list["url"], format!("https://{{port}}-{id}.{DOMAIN}/"));
    nest.get("/v1/sandboxes/aaaaaaaaaaaaaaaaaaaa/ports").await.error(404, "not_found");
    nest.post(&path, json!({})).await.error(405, "method_not_allowed");
    Answer::of(nest.anonymous(Method::GET, &path)).await.error(401, "unauthorized");
}

#[actix_web::test]
async fn a_fork_has_its_parents_public_ports_and_a_token_of_its_own() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"public_ports": [8000]})).await;
    let token = nest.ports_token(&id).await;
    let child = nest.fork(&id, 1).await.remove(0);
    assert_eq!(nest.sandbox(&child).await["public_ports"], json!([8000]));
    assert_ne!(nest.ports_token(&child).await, token);
}

#[actix_web::test]
async fn a_request_under_way_keeps_a_sandbox_alive_and_an_answer_counts_as_work() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 2})).await;
    let mut server = Server::listen().await;
    let request = nest.request(Method::GET, &below(&id, server.port));
    let request = rt::spawn(Answer::of(request));
    let mut connection = server.connection().await;
    let before = nest.sandbox(&id).await["last_active_at"].clone();
    rt::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(nest.state(&id).await, "running");
    connection.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(request.await.unwrap().status, 200);
    eventually("it counts", async || {
        (nest.sandbox(&id).await["last_active_at"] != before).then_some(())
    })
    .await;
    nest.becomes(&id, "stopped").await;
}

#[actix_web::test]
async fn a_request_that_nobody_answers_is_no_activity() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let before = nest.sandbox(&id).await["last_active_at"].clone();
    let mut server = Server::listen().await;
    let request = rt::spawn(Answer::of(nest.request(Method::GET, &below(&id, server.port))));
    drop(server.connection().await);
    request.await.unwrap().error(502, "agent_error");
    // Activity would be known within a second.
    rt::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(nest.sandbox(&id).await["last_active_at"], before);
}

#[actix_web::test]
async fn an_answer_says_no_more_than_its_server_did() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    // Neither what it is nor how long: its end is that of the connection.
    let mut server = Server::listen().await;
    let asked = nest.begin(nest.request(Method::GET, &below(&id, server.port)));
    let mut connection = server.connection().await;
    head(&mut connection).await;
    connection.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n<p>hi").await.unwrap();
    drop(connection);
    let answer = asked.await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"<p>hi"[..]));
    assert_eq!(answer.header("content-type"), None, "a browser finds out by itself");
}
