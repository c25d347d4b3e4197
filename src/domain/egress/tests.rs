//! What the lists of a policy mean.

use proptest::prelude::*;

use super::*;

fn rule(text: &str) -> Rule {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn policy(json: &str) -> Policy {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

fn name(name: &str, port: Option<u16>) -> Target<'_> {
    Target { name: Some(name), port, ..Target::default() }
}

#[test]
fn rules_are_addresses_networks_and_names_and_read_back_as_one_text() {
    for (given, kept) in [
        ("1.2.3.4", "1.2.3.4"),
        ("1.2.3.4/32", "1.2.3.4"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("Example.COM.", "example.com"),
        ("*.Example.com", "*.example.com"),
        ("localhost", "localhost"),
        ("GitHub.com.:22", "github.com:22"),
        ("*.example.com:8443", "*.example.com:8443"),
        ("_dmarc.xn--bcher-kva.example", "_dmarc.xn--bcher-kva.example"),
    ] {
        assert_eq!(rule(given).to_string(), kept);
        assert_eq!(rule(kept), rule(given));
    }
}

#[test]
fn what_is_no_rule_is_refused_and_the_error_says_what_to_give() {
    let long = format!("{}.com", "a".repeat(64));
    for text in [
        "",
        ".",
        "*",
        "*.",
        "**.com",
        "a.*.com",
        "*example.com",
        "10.0.0",
        "1.2.3.256",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/08",
        "10.0.0.0/+8",
        "https://example.com",
        "example.com/x",
        "example.com:",
        "example.com:http",
        "example.com:80:80",
        ":80",
        "*.:80",
        "a b.com",
        "-a.com",
        "a-.com",
        "a..b",
        "a\0.com",
        &long,
    ] {
        let error = text.parse::<Rule>().expect_err(text);
        assert!(matches!(error, InvalidRule::Unknown(_)), "{text:?}: {error}");
        assert!(error.to_string().contains("*.example.com"), "{error}");
    }
    let error = "10.1.2.3/8".parse::<Rule>().expect_err("host bits").to_string();
    assert_eq!(error, "10.1.2.3/8 is no network: the one that it lies in is 10.0.0.0/8");
    for text in
        ["example.com:0", "example.com:65536", "example.com:080", "a.b:99999999999999999999"]
    {
        assert!(matches!(text.parse::<Rule>(), Err(InvalidRule::Port(_))), "{text}");
    }
    for text in ["1.2.3.4:80", "10.0.0.0/8:80", "10.1.2.3/8:80"] {
        assert!(matches!(text.parse::<Rule>(), Err(InvalidRule::AddressPort(_))), "{text}");
    }
    for text in ["::1", "2001:db8::/32", "fe80::1"] {
        assert!(matches!(text.parse::<Rule>(), Err(InvalidRule::Ipv6(_))), "{text}");
    }
    assert!(matches!("bücher.example".parse::<Rule>(), Err(InvalidRule::NotAscii(_))));
}

#[test]
fn an_allow_list_alone_denies_everything_else() {
    assert_eq!(policy(r#"{"allow": ["1.2.3.4"]}"#).by_default(), Verdict::Deny);
    assert_eq!(policy(r#"{"deny": ["1.2.3.4"]}"#).by_default(), Verdict::Allow);
    assert_eq!(policy(r#"{"allow": ["1.2.3.4"], "deny": ["a.b"]}"#).by_default(), Verdict::Allow);
    assert!(policy("{}").is_open());
    assert_eq!(policy(r#"{"default": "deny"}"#), Policy::off());
}

#[test]
fn to_deny_every_address_is_to_deny_by_default() {
    let all = policy(r#"{"deny": ["0.0.0.0/0"], "allow": ["example.com"]}"#);
    assert_eq!(all, policy(r#"{"default": "deny", "allow": ["example.com"]}"#));
    assert_eq!(all.decide(name("other.com", None)), Verdict::Deny);
}

#[test]
fn a_policy_that_cannot_have_been_meant_is_refused() {
    for (json, part) in [
        (r#"{"default": "allow", "allow": ["1.2.3.4"]}"#, "changes nothing"),
        (r#"{"default": "allow", "allow": ["0.0.0.0/0"]}"#, "changes nothing"),
        (
            r#"{"deny": ["example.com:22"]}"#,
            "`deny` has no ports: leave the port of example.com:22",
        ),
        (r#"{"default": "maybe"}"#, "unknown variant"),
        (r#"{"allowed": []}"#, "unknown field"),
        (r#"{"allow": ["10.0.0.0/99"]}"#, "is no rule"),
        (r#"{"allow": [7]}"#, "expected a string"),
    ] {
        let error = serde_json::from_str::<Policy>(json).expect_err(json).to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
    let many = (0..=MAX_RULES).map(|n| rule(&format!("a{n}.example")));
    assert_eq!(Policy::new(None, BTreeSet::new(), many.collect()), Err(InvalidPolicy::TooMany));
}

#[test]
fn a_star_stands_for_all_names_below_but_not_the_name_itself() {
    let below = rule("*.example.com");
    for name in ["a.example.com", "a.b.example.com", "A.EXAMPLE.com."] {
        assert!(below.matches(self::name(name, None)), "{name}");
    }
    for name in ["example.com", ".example.com", "badexample.com", "example.com.evil.org"] {
        assert!(!below.matches(self::name(name, None)), "{name}");
    }
    assert!(rule("example.com").matches(name("Example.com.", None)));
    assert!(!rule("example.com").matches(name("a.example.com", None)));
}

#[test]
fn no_answer_of_dns_opens_an_address_of_somebody_near() {
    let names = policy(r#"{"allow": ["*.example.com", "10.0.0.0/8"]}"#);
    assert!(names.opens("a.example.com", address("198.51.100.2")));
    assert!(!names.opens("other.com", address("198.51.100.2")));
    for near in [
        "0.0.0.1",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.0.1",
        "192.0.0.8",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ] {
        assert!(!names.opens("a.example.com", address(near)), "{near}");
    }
}

#[test]
fn what_is_near_is_closed_unless_a_rule_is_about_just_that_or_the_host_has_it_open() {
    let everything = policy("{}");
    let wide = policy(r#"{"allow": ["0.0.0.0/0", "172.0.0.0/8", "192.168.0.0/16"]}"#);
    let one = policy(r#"{"default": "allow", "allow": ["10.1.2.3", "100.64.0.0/10"]}"#);
    let closed = |policy: &Policy, text: &str| policy.closes(address(text), Lan::Closed);
    for near in ["10.1.2.3", "172.16.0.1", "100.127.0.1", "198.18.0.1", "224.0.0.251", "240.0.0.1"]
    {
        assert!(closed(&everything, near) && closed(&wide, near), "{near}");
        assert!(!everything.closes(address(near), Lan::Open), "{near}");
    }
    assert!(!closed(&one, "10.1.2.3") && !closed(&one, "100.127.0.1"));
    assert!(closed(&one, "10.1.2.4"));
    assert!(!closed(&wide, "192.168.1.1"), "that one was named");
    for far in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "198.20.0.1", "198.51.100.2"] {
        assert!(!closed(&everything, far), "{far}");
    }
}

#[test]
fn a_rule_with_a_port_is_about_that_port_only() {
    let some = policy(r#"{"allow": ["a.com:22", "*.b.com:8443", "b.com"]}"#);
    let verdict = |host, port| some.decide(name(host, port));
    assert_eq!(verdict("a.com", Some(22)), Verdict::Allow);
    assert_eq!(verdict("a.com", Some(443)), Verdict::Deny);
    assert_eq!(verdict("a.com", None), Verdict::Allow, "it may be looked up");
    assert_eq!(verdict("x.b.com", Some(8443)), Verdict::Allow);
    assert_eq!(verdict("b.com", Some(1)), Verdict::Allow);
    let ports = |host: &str| some.ports_of(host).map(Rule::to_string).collect::<Vec<_>>();
    assert_eq!(ports("A.com."), ["a.com:22"]);
    assert_eq!(ports("x.b.com"), ["*.b.com:8443"]);
    assert_eq!(ports("b.com"), [""; 0]);
    assert!(some.opens("a.com", address("198.51.100.2")));
}

#[test]
fn only_networks_that_lie_in_no_other_are_given() {
    let nested = policy(r#"{"deny": ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "11.0.0.0/8"]}"#);
    let shown: Vec<_> = nested.denied_networks().iter().map(Network::to_string).collect();
    assert_eq!(shown, ["10.0.0.0/8", "11.0.0.0/8"]);
}

#[test]
fn equal_policies_have_equal_marks_and_others_have_others() {
    let one = policy(r#"{"allow": ["a.com", "b.com"]}"#);
    let same = policy(r#"{"default":"deny","allow": ["b.com", "a.com"]}"#);
    assert_eq!(one.mark(Lan::Closed), same.mark(Lan::Closed));
    assert_ne!(one.mark(Lan::Closed), same.mark(Lan::Open));
    assert_ne!(one.mark(Lan::Open), policy(r#"{"allow": ["a.com"]}"#).mark(Lan::Open));
    assert_ne!(Policy::off().mark(Lan::Closed), 0);
}

/// Few networks and names, so that rules often meet.
fn any_rule() -> impl Strategy<Value = Rule> {
    let network = (0u32..4, prop::sample::select(vec![29u8, 30, 31, 32])).prop_map(|(low, len)| {
        Rule::Network(Network::around(Ipv4Addr::from_bits(0x0a00_0000 + low), len))
    });
    let name = prop::sample::select(vec!["a.b", "*.b", "c.a.b", "*.a.b"]).prop_map(rule);
    prop_oneof![network, name]
}

fn any_list() -> impl Strategy<Value = BTreeSet<Rule>> {
    prop::collection::btree_set(any_rule(), 0..5)
}

proptest! {
    #[test]
    fn allow_wins_over_deny_and_deny_over_the_default(
        allow in any_list(),
        deny in any_list(),
        off in any::<bool>(),
        low in 0u32..8,
        name in prop::option::of(prop::sample::select(vec!["b", "a.b", "c.a.b", "x.b", "z"])),
    ) {
        let default = if off { Verdict::Deny } else { Verdict::Allow };
        let Ok(policy) = Policy::new(Some(default), allow.clone(), deny.clone()) else {
            return Ok(());
        };
        let address = Some(Ipv4Addr::from_bits(0x0a00_0000 + low));
        let target = Target { address, name, port: None };
        let hit = |list: &BTreeSet<Rule>| list.iter().any(|rule| rule.matches(target));
        let verdict = policy.decide(target);
        match (hit(&allow), hit(&deny)) {
            (true, _) => prop_assert_eq!(verdict, Verdict::Allow),
            (false, true) => prop_assert_eq!(verdict, Verdict::Deny),
            (false, false) => prop_assert_eq!(verdict, default),
        }
        let text = serde_json::to_string(&policy).expect("writes");
        prop_assert_eq!(serde_json::from_str::<Policy>(&text).expect("reads back"), policy);
    }

    #[test]
    fn outermost_networks_hold_the_same_addresses(list in any_list(), low in 0u32..16) {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + low);
        let target = Target { address: Some(address), ..Target::default() };
        let before = list.iter().any(|rule| rule.matches(target));
        let after = outermost(networks_of(&list)).iter().any(|network| network.contains(address));
        prop_assert_eq!(before, after);
    }
}
