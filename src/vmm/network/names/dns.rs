//! Messages of DNS: what becomes of a question, and which addresses are in an answer. No sockets.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::domain::egress::{Policy, Target, Verdict};

/// Addresses of one answer that are heeded: more than any server sends to clients.
const MOST_ADDRESSES: usize = 64;

/// What becomes of a question.
#[derive(Debug)]
pub(super) enum Judged {
    /// It is passed on.
    Ask(Asked),
    /// It is answered with these bytes.
    Answer(Vec<u8>),
    /// It is no question at all.
    Ignore,
}

/// A question that is passed on.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    id: u16,
    query: Query,
    /// The name, in lower case and without a dot at its end.
    pub name: String,
}

/// Decides about a question.
pub(super) fn judge(bytes: &[u8], policy: &Policy) -> Judged {
    let Ok(message) = Message::from_vec(bytes) else { return Judged::Ignore };
    if message.metadata.message_type != MessageType::Query {
        return Judged::Ignore;
    }
    let [query] = message.queries.as_slice() else {
        return answer(&message, ResponseCode::FormErr);
    };
    if message.metadata.op_code != OpCode::Query {
        return answer(&message, ResponseCode::NotImp);
    }
    let name = plain(&query.name);
    let target = Target { name: Some(&name), ..Target::default() };
    if !has_plain_labels(&query.name) || policy.decide(target) == Verdict::Deny {
        // Not "refused": resolvers would try their other servers, which are all this one.
        return answer(&message, ResponseCode::NXDomain);
    }
    match query.query_type {
        // Guests have no IPv6; and what the others say may hide the name from the proxy.
        RecordType::AAAA | RecordType::HTTPS | RecordType::SVCB => {
            answer(&message, ResponseCode::NoError)
        }
        RecordType::ANY | RecordType::AXFR | RecordType::IXFR => {
            answer(&message, ResponseCode::NotImp)
        }
        _ => Judged::Ask(Asked { id: message.metadata.id, query: query.clone(), name }),
    }
}

fn answer(question: &Message, code: ResponseCode) -> Judged {
    let mut answer = Message::error_msg(question.metadata.id, question.metadata.op_code, code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(question.queries.iter().cloned());
    answer.to_vec().map_or(Judged::Ignore, Judged::Answer)
}

impl Asked {
    /// The same message under another id, by which its answer is known.
    pub fn under(&self, id: u16, question: &[u8]) -> Vec<u8> {
        with_id(id, question)
    }

    /// The answer as whoever asked wants it.
    pub fn restored(&self, answer: &[u8]) -> Vec<u8> {
        with_id(self.id, answer)
    }

    /// An answer that says that no answer could be had.
    pub fn failed(&self) -> Vec<u8> {
        let mut answer = Message::error_msg(self.id, OpCode::Query, ResponseCode::ServFail);
        answer.metadata.recursion_available = true;
        answer.add_query(self.query.clone());
        answer.to_vec().unwrap_or_default()
    }

    /// Reads an answer that came for this question under `id`; nothing if it is for another one.
    pub fn read(&self, id: u16, bytes: &[u8]) -> Option<Message> {
        let message = Message::from_vec(bytes).ok()?;
        let same = |query: &Query| {
            query.query_type == self.query.query_type
                && query.query_class == self.query.query_class
                && plain(&query.name) == self.name
        };
        let fits = message.metadata.id == id
            && message.metadata.message_type == MessageType::Response
            && message.queries.len() == 1
            && message.queries.iter().all(same);
        fits.then_some(message)
    }

    /// The addresses of the name in an answer, by way of its aliases, and how long they are valid.
    pub fn addresses(&self, answer: &Message) -> Vec<(Ipv4Addr, Duration)> {
        let mut names = HashSet::from([self.name.clone()]);
        let mut addresses = Vec::new();
        for record in &answer.answers {
            if !names.contains(&plain(&record.name)) {
                continue;
            }
            match &record.data {
                RData::CNAME(alias) => {
                    names.insert(plain(&alias.0));
                }
                RData::A(address) => {
                    addresses.push((address.0, Duration::from_secs(record.ttl.into())));
                }
                _ => {}
            }
        }
        addresses.truncate(MOST_ADDRESSES);
        addresses
    }
}

/// Whether a name is made of what rules are made of. A dot or a zero byte within a label would make
/// another name of it for whoever goes by the text, rules first.
fn has_plain_labels(name: &Name) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    name.iter().all(|label| label.iter().all(plain))
}

fn plain(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    text.strip_suffix('.').map(str::to_owned).unwrap_or(text)
}

fn with_id(id: u16, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    if let Some(place) = message.get_mut(..2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
    message
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn policy(json: &str) -> Policy {
        serde_json::from_str(json).unwrap()
    }

    fn code(judged: Judged) -> ResponseCode {
        let Judged::Answer(bytes) = judged else { panic!("no answer: {judged:?}") };
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!((answer.metadata.id, answer.answers.len()), (7, 0));
        answer.metadata.response_code
    }

    fn asked(name: &str) -> Asked {
        let judged = judge(&question(name, RecordType::A), &Policy::default());
        let Judged::Ask(asked) = judged else { panic!("not asked: {judged:?}") };
        asked
    }

    #[test]
    fn only_names_that_are_not_denied_are_asked_for() {
        let some = policy(r#"{"allow": ["*.example.com"]}"#);
        let judged = judge(&question("A.Example.com.", RecordType::A), &some);
        assert!(matches!(judged, Judged::Ask(Asked { name, .. }) if name == "a.example.com"));
        for name in ["example.com.", "evil.org.", "a.example.com.evil.org.", "."] {
            let judged = judge(&question(name, RecordType::TXT), &some);
            assert_eq!(code(judged), ResponseCode::NXDomain, "{name}");
        }
        let others = policy(r#"{"deny": ["evil.org"]}"#);
        assert_eq!(
            code(judge(&question("EVIL.org.", RecordType::A), &others)),
            ResponseCode::NXDomain
        );
        assert!(matches!(judge(&question("b.evil.org.", RecordType::A), &others), Judged::Ask(_)));
    }

    #[test]
    fn a_dot_within_a_label_does_not_end_it() {
        // As text they end like names that are allowed, or do not end like those that are not.
        for labels in [[&b"x.example"[..], b"com"], [b"x\\.example", b"com"], [b"evil", b"or\0g"]] {
            let mut message = Message::new(7, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(Name::from_labels(labels).unwrap(), RecordType::A));
            let question = message.to_vec().unwrap();
            for rules in [r#"{"allow": ["*.example.com"]}"#, r#"{"deny": ["evil.org"]}"#] {
                let judged = judge(&question, &policy(rules));
                assert_eq!(code(judged), ResponseCode::NXDomain, "{labels:?} {rules}");
            }
        }
    }

    #[test]
    fn there_is_no_answer_that_would_lead_past_the_proxy() {
        let all = Policy::default();
        for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
            assert_eq!(code(judge(&question("a.b.", kind), &all)), ResponseCode::NoError);
        }
        assert_eq!(code(judge(&question("a.b.", RecordType::ANY), &all)), ResponseCode::NotImp);
    }

    #[test]
    fn what_is_no_question_has_no_answer() {
        let mut response = question("a.b.", RecordType::A);
        response[2] |= 0x80;
        for bytes in [&b""[..], b"\0", b"GET / HTTP/1.1\r\n\r\n", &response] {
            assert!(matches!(judge(bytes, &Policy::default()), Judged::Ignore), "{bytes:?}");
        }
    }

    #[test]
    fn an_answer_to_another_question_is_none() {
        let asked = asked("a.b.");
        let mut answer = Message::response(9, OpCode::Query);
        answer.add_query(Query::query(Name::from_ascii("a.b.").unwrap(), RecordType::A));
        let bytes = answer.to_vec().unwrap();
        assert!(asked.read(9, &bytes).is_some());
        assert!(asked.read(8, &bytes).is_none());
        let mut other = Message::response(9, OpCode::Query);
        other.add_query(Query::query(Name::from_ascii("c.b.").unwrap(), RecordType::A));
        assert!(asked.read(9, &other.to_vec().unwrap()).is_none());
        assert_eq!(asked.restored(&bytes)[..2], [0, 7]);
    }

    #[test]
    fn addresses_count_that_the_name_or_its_aliases_have() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let a = |owner: &str, last: u8| {
            Record::from_rdata(name(owner), 30, RData::A(A(Ipv4Addr::new(198, 51, 100, last))))
        };
        let mut answer = Message::response(9, OpCode::Query);
        answer.add_answers([
            a("evil.org.", 1),
            Record::from_rdata(name("a.b."), 30, RData::CNAME(CNAME(name("C.d.")))),
            a("c.D.", 2),
            a("a.b.", 3),
        ]);
        let found = asked("a.b.").addresses(&answer);
        let thirty = Duration::from_secs(30);
        let address = |last| (Ipv4Addr::new(198, 51, 100, last), thirty);
        assert_eq!(found, [address(2), address(3)]);
    }
}
