//! A way to what is only for the resolver and the proxy.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::{dns, hello};
use crate::domain::egress::Policy;

/// As `hello::Sought`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sought {
    Name(String),
    Nameless,
    Foreign,
    Unreadable,
    More,
}

/// Looks for the name in what a client has sent so far.
pub fn look(bytes: &[u8]) -> Sought {
    match hello::look(bytes) {
        hello::Sought::Name(name) => Sought::Name(name),
        hello::Sought::Nameless => Sought::Nameless,
        hello::Sought::Foreign => Sought::Foreign,
        hello::Sought::Unreadable => Sought::Unreadable,
        hello::Sought::More => Sought::More,
    }
}

/// As `dns::Judged`.
#[derive(Debug)]
pub enum Judged {
    Ask(Asked),
    Answer(Vec<u8>),
    Ignore,
}

/// A question that is passed on.
#[derive(Debug)]
pub struct Asked(dns::Asked);

/// Decides about a question.
pub fn judge(bytes: &[u8], policy: &Policy) -> Judged {
    match dns::judge(bytes, policy) {
        dns::Judged::Ask(asked) => Judged::Ask(Asked(asked)),
        dns::Judged::Answer(answer) => Judged::Answer(answer),
        dns::Judged::Ignore => Judged::Ignore,
    }
}

impl Asked {
    /// The name that is asked for.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What is sent to a name server.
    pub fn under(&self, id: u16, question: &[u8]) -> Vec<u8> {
        self.0.under(id, question)
    }

    /// What the guest gets.
    pub fn restored(&self, answer: &[u8]) -> Vec<u8> {
        self.0.restored(answer)
    }

    /// What it gets if nobody answers.
    pub fn failed(&self) -> Vec<u8> {
        self.0.failed()
    }

    /// The addresses that are learned from an answer.
    pub fn learned(&self, id: u16, answer: &[u8]) -> Option<Vec<(Ipv4Addr, Duration)>> {
        self.0.read(id, answer).map(|message| self.0.addresses(&message))
    }
}
