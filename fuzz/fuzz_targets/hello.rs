//! What a guest says first on a connection: the name that is found is the one that any server finds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nestbox_fuzz::domain::egress::{Policy, Target, Verdict};
use nestbox_fuzz::measure;
use nestbox_fuzz::vmm::network::names::fuzzing::{Sought, look};

// The first byte says where the rest is cut in two: it may come in pieces.
fuzz_target!(|input: &[u8]| {
    let Some((cut, said)) = input.split_first() else { return };
    let sought = measure::within(8 * said.len() + (256 << 10), || look(said));
    let early = look(&said[..usize::from(*cut) * said.len() / 255]);
    assert!(early == Sought::More || early == sought, "first {early:?}, then {sought:?}");
    if let Sought::Name(name) = &sought {
        assert!(!name.is_empty() && name.bytes().all(is_plain), "{name:?}");
        is_decided_by_its_end(name);
    }
    is_found_by_servers(said, &sought);
});

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
}

/// What a policy makes of a name is what the name's labels say.
fn is_decided_by_its_end(name: &str) {
    let policy: Policy =
        serde_json::from_str(r#"{"allow": ["a.com", "*.b.org"]}"#).expect("a policy");
    let verdict = policy.decide(Target { name: Some(name), ..Target::default() });
    let name = name.to_ascii_lowercase();
    let labels: Vec<&str> = name.strip_suffix('.').unwrap_or(&name).split('.').collect();
    let below = labels.len() > 2 && labels.ends_with(&["b", "org"]) && labels != ["", "b", "org"];
    let expected = labels == ["a", "com"] || below;
    assert_eq!(verdict == Verdict::Allow, expected, "{name:?}");
}

/// What a strict reader of HTTP takes at all has the host that it finds; and what a lenient one finds,
/// who begins lines wherever he can, is no other one.
fn is_found_by_servers(said: &[u8], sought: &Sought) {
    if said.first() == Some(&22) {
        return;
    }
    if let Sought::Name(name) = sought {
        let other = |line: &[u8]| host_of(line).is_some_and(|it| !it.eq_ignore_ascii_case(name));
        // A body may say what it likes.
        let begin = said.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let ends =
            |at: &usize| [&b"\n\n"[..], b"\n\r\n"].iter().any(|end| said[*at..].starts_with(end));
        let end = (begin..said.len()).find(ends).expect("a name is in a whole head");
        let mut lines = said[begin..end].split(|byte| matches!(byte, b'\r' | b'\n'));
        let found = lines.find(|line| other(line));
        let found = found.map(|line| String::from_utf8_lossy(line));
        assert!(found.is_none(), "{name:?}, and {found:?}");
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(said);
    let target = request.path.unwrap_or_default();
    if !matches!(parsed, Ok(httparse::Status::Complete(_))) || !target.starts_with('/') {
        return;
    }
    let is_host = |it: &&httparse::Header| it.name.eq_ignore_ascii_case("host");
    let hosts: Vec<_> = request.headers.iter().filter(is_host).collect();
    let text = String::from_utf8_lossy(hosts.first().map_or(&b""[..], |it| it.value));
    let host = without_port(text.trim_matches([' ', '\t']));
    match sought {
        Sought::Name(name) => assert!(hosts.len() == 1 && host == name, "{host:?}, not {name:?}"),
        Sought::Nameless => assert_eq!(host, ""),
        Sought::Unreadable => {
            let whole = std::str::from_utf8(said).is_ok() && !said.contains(&0);
            let plain = hosts.len() == 1 && host.bytes().all(is_plain);
            assert!(!whole || !plain, "a server reads {host:?}");
        }
        Sought::More => panic!("a server reads {host:?}"),
        // Methods may be anything, and what is no method of anybody passes no rule about names.
        Sought::Foreign => {}
    }
}

/// The host in a line of a head that is about it.
fn host_of(line: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(line);
    let (name, value) = line.split_once(':')?;
    let is_host = name.trim().eq_ignore_ascii_case("host");
    is_host.then(|| without_port(value.trim()).to_owned())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    }
}
