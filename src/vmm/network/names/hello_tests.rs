//! Names are found as servers would find them, in pieces of any size.

use proptest::prelude::*;

use super::*;

#[path = "../../../../tests/support/hello.rs"]
mod client;

use self::client::client_hello;

fn name(text: &str) -> Sought {
    Sought::Name(text.to_owned())
}

#[test]
fn tls_says_its_name_or_none() {
    assert_eq!(look(&client_hello(Some("a.example.com"))), name("a.example.com"));
    assert_eq!(look(&client_hello(None)), Sought::Nameless);
}

#[test]
fn what_only_begins_as_tls_is_unreadable() {
    let mut broken = client_hello(Some("a.example.com"));
    broken[5] = 99;
    assert_eq!(look(&broken), Sought::Unreadable);
    let endless = [vec![22, 3, 1, 0x3f, 0xff], vec![1; LIMIT]].concat();
    assert_eq!(look(&endless), Sought::Unreadable);
}

#[test]
fn http_says_its_name_in_the_header_or_in_a_whole_url() {
    for (request, sought) in [
        ("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n", name("a.com")),
        ("GET / HTTP/1.1\nuser-agent: x\nhost:a.com:8080\n\n", name("a.com")),
        ("POST http://a.com/x HTTP/1.1\r\nHost: A.com\r\n\r\n", name("a.com")),
        ("GET http://a.com:80?q HTTP/1.0\r\n\r\n", name("a.com")),
        ("CONNECT a.com:443 HTTP/1.1\r\n\r\n", name("a.com")),
        ("OPTIONS * HTTP/1.1\r\nHost: a.com\r\n\r\n", name("a.com")),
        ("GET /in?to=https://b.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n", name("a.com")),
        ("GET / HTTP/1.0\r\n\r\n", Sought::Nameless),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Sought::Nameless),
        ("\r\n\nGET / HTTP/1.1\r\nHost: a.com\r\n\r\n", name("a.com")),
        ("get / HTTP/1.1\r\nhost: a.com\r\n\r\n", name("a.com")),
        ("\r\n", Sought::More),
        ("GET / HTTP/1.1\r\nHost: a.com\r\nHost: b.com\r\n\r\n", Sought::Unreadable),
        ("GET http://a.com/ HTTP/1.1\r\nHost: b.com\r\n\r\n", Sought::Unreadable),
        ("GET / HTTP/1.1\r\nHost: a.com\r\n", Sought::More),
        ("GET / HT", Sought::More),
        ("GE", Sought::More),
        ("AVERYLONGWORDTHATISNOMETHOD", Sought::More),
        ("AVERYLONGWORDTHATISNOMETHOD / HTTP/1.1\r\nHost: a.com\r\n\r\n", name("a.com")),
        ("", Sought::More),
    ] {
        assert_eq!(look(request.as_bytes()), sought, "{request:?}");
    }
}

#[test]
fn a_host_that_servers_may_read_in_different_ways_is_no_name() {
    // As a rule sees them, all of them are below b.org.
    for host in [
        "evil.com\rX: x.b.org",
        "evil.com, x.b.org",
        "evil.com/x.b.org",
        "evil.com#x.b.org",
        "evil.com?.b.org",
        "evil.com:80@x.b.org",
        "evil.com:80:x.b.org",
        "evil.com%00.b.org",
        "evil.com x.b.org",
        "evil.com\u{a0}.b.org",
        "x.b.org\u{85}",
        "x.b.org\u{b}",
        "x.b.org\r",
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(look(request.as_bytes()), Sought::Unreadable, "{request:?}");
        let request = format!("CONNECT {host}:443 HTTP/1.1\r\n\r\n");
        let sought = look(request.as_bytes());
        assert!(!matches!(&sought, Sought::Name(name) if name.contains("b.org")), "{request:?}");
    }
    for head in ["GET / HTTP/1.1\rHost: evil.com\r\n", "GET / HTTP/1.1\r\nX: y\rHost: evil.com\r\n"]
    {
        let request = format!("{head}Host: x.b.org\r\n\r\n");
        assert_eq!(look(request.as_bytes()), Sought::Unreadable, "{request:?}");
    }
}

#[test]
fn other_protocols_are_told_from_what_says_no_name() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\0\x08",
        b"hello\n",
        b"EHLO guest.example\r\n",
        b"AVERYLONGWORDTHATISNOMETHOD\n",
    ] {
        assert_eq!(look(bytes), Sought::Foreign, "{bytes:?}");
    }
}

#[test]
fn a_head_without_end_is_unreadable() {
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(LIMIT));
    assert_eq!(look(endless.as_bytes()), Sought::Unreadable);
}

proptest! {
    /// No beginning of a request says another name than the whole of it.
    #[test]
    fn a_beginning_says_the_same_name_or_none_yet(cut in 0usize..200, tls in any::<bool>()) {
        let whole = match tls {
            true => client_hello(Some("a.example.com")),
            false => b"GET / HTTP/1.1\r\nAccept: */*\r\nHost: a.example.com\r\n\r\n".to_vec(),
        };
        let sought = look(&whole[..cut.min(whole.len())]);
        prop_assert!(sought == Sought::More || sought == name("a.example.com"), "{sought:?}");
    }

    #[test]
    fn whatever_is_sent_is_looked_at_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        tls in any::<bool>(),
    ) {
        let head = if tls { &[22u8, 3, 1, 0, 100][..] } else { b"GET / HTTP/1.1\r\n" };
        look(&bytes);
        look(&[head, &bytes].concat());
    }
}
