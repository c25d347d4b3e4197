//! Which name the first bytes of a connection say: the SNI of TLS, or the host of HTTP. No sockets.

use rustls::server::Acceptor;

/// Bytes in which the name has to be.
pub(super) const LIMIT: usize = 32 << 10;

/// What the bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sought {
    /// The name of a server, as it was written.
    Name(String),
    /// It is TLS or HTTP, and speaks of no name.
    Nameless,
    /// It is something else.
    Foreign,
    /// It begins as TLS or HTTP and makes no sense: somebody may read it in another way than this.
    Unreadable,
    /// It may come yet.
    More,
}

/// Looks for the name in all that a client has sent so far.
pub(super) fn look(bytes: &[u8]) -> Sought {
    /// The type of TLS's first record.
    const HANDSHAKE: u8 = 22;
    let sought = match bytes.first() {
        None => Sought::More,
        Some(&HANDSHAKE) => tls(bytes),
        Some(_) => http(bytes),
    };
    match sought {
        Sought::More if bytes.len() >= LIMIT => Sought::Unreadable,
        other => other,
    }
}

fn tls(mut bytes: &[u8]) -> Sought {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        if acceptor.read_tls(&mut bytes).is_err() {
            return Sought::Unreadable;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return name.map_or(Sought::Nameless, Sought::Name);
            }
            Err(_) => return Sought::Unreadable,
        }
    }
    Sought::More
}

fn http(bytes: &[u8]) -> Sought {
    // As servers do (RFC 9112, section 2.2).
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let bytes = &bytes[blank..];
    let line = bytes.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    if bytes.is_empty() {
        return Sought::More;
    }
    if !begins_a_request(line) {
        return Sought::Foreign;
    }
    let Some(end) = end_of_head(bytes) else { return Sought::More };
    let Ok(head) = std::str::from_utf8(&bytes[..=end]) else { return Sought::Unreadable };
    // Some servers end a line where a carriage return stands alone, and others do not.
    if head.lines().any(|line| line.contains(['\r', '\0'])) {
        return Sought::Unreadable;
    }
    let mut lines = head.lines();
    let target = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default();
    let hosts: Vec<&str> = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("host"))
        .map(|(_, value)| without_port(value.trim_matches([' ', '\t'])))
        .collect();
    // A whole URL, or an authority alone, counts for more than the header.
    let authority = match target.split_once("://") {
        // A path may speak of other URLs.
        _ if target.starts_with('/') || target == "*" => None,
        Some((_, rest)) => Some(rest.split(['/', '?', '#']).next().unwrap_or_default()),
        None => Some(target),
    };
    match (authority.map(without_port), hosts.as_slice()) {
        (_, [_, _, ..]) => Sought::Unreadable,
        (None, []) => Sought::Nameless,
        (Some(name), []) => said(name),
        (None, [name]) => said(name),
        (Some(one), [other]) if one.eq_ignore_ascii_case(other) => said(one),
        (Some(_), [_]) => Sought::Unreadable,
    }
}

/// What a host is that was said. Rules go by the end of a name, so nothing may be in it that makes a
/// server see another end or another beginning: a carriage return alone, a comma, an `@`, a `%2e`.
fn said(name: &str) -> Sought {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match name {
        "" => Sought::Nameless,
        _ if name.bytes().all(plain) => Sought::Name(name.to_owned()),
        _ => Sought::Unreadable,
    }
}

/// Whether a first line is that of a request of HTTP/1, as far as it is there.
fn begins_a_request(line: &[u8]) -> bool {
    // In either case and however long: some servers do not mind. The first piece may end anywhere.
    let letter = |byte: &&u8| byte.is_ascii_alphabetic() || matches!(**byte, b'-' | b'_');
    let method = line.iter().take_while(letter).count();
    match line.get(method) {
        None => method > 0,
        Some(b' ') if method > 0 => {
            !line.ends_with(b"\n") || line.trim_ascii_end().windows(8).any(|it| it == b" HTTP/1.")
        }
        Some(_) => false,
    }
}

/// Where the head of a request ends, lines ending as they may.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let ends = |at: &usize| {
        let rest = &bytes[*at..];
        rest.starts_with(b"\n\n") || rest.starts_with(b"\n\r\n")
    };
    (0..bytes.len()).find(ends)
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
#[path = "hello_tests.rs"]
mod tests;
