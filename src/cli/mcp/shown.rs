//! What an agent gets to read: both ends of what is long, and in words what went wrong.

use anyhow::Result;
use rmcp::model::{CallToolResult, ContentBlock};

use crate::cli::client::{ExecAnswer, Sandbox};
use crate::cli::output::printable;

/// Bytes of each stream, or of a file, that an agent gets to read.
const SHOWN: usize = 32 << 10;

/// Beginning and end of something that may be long.
#[derive(Default)]
pub struct Ends {
    first: Vec<u8>,
    last: Vec<u8>,
    /// Bytes between the two.
    left_out: usize,
}

impl Ends {
    pub fn add(&mut self, piece: &[u8]) {
        let (first, rest) = piece.split_at(piece.len().min(SHOWN / 2 - self.first.len()));
        self.first.extend_from_slice(first);
        self.last.extend_from_slice(rest);
        // Now and then is enough, and no more work than once for each byte.
        if self.last.len() > SHOWN {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let too_much = self.last.len().saturating_sub(SHOWN / 2);
        self.left_out += too_much;
        self.last.drain(..too_much);
    }

    /// None if it is not text.
    pub fn text(mut self) -> Option<String> {
        self.cut();
        if self.left_out == 0 {
            self.first.extend_from_slice(&self.last);
            return String::from_utf8(self.first).ok();
        }
        // A character may be cut in two where something is left out, and only there.
        let kept = match std::str::from_utf8(&self.first) {
            Err(error) if error.error_len().is_some() => return None,
            Err(error) => error.valid_up_to(),
            Ok(_) => self.first.len(),
        };
        let skipped = self.last.iter().take_while(|byte| **byte & 0xc0 == 0x80).count().min(3);
        let left_out = self.left_out + skipped + self.first.len() - kept;
        let first = std::str::from_utf8(&self.first[..kept]).ok()?;
        let last = std::str::from_utf8(&self.last[skipped..]).ok()?;
        Some(format!("{first}\n[... {left_out} bytes are left out here ...]\n{last}"))
    }
}

/// What came of a command, for somebody to read.
pub fn told(answer: &ExecAnswer) -> Result<String> {
    let mut parts = Vec::new();
    for (name, text) in [("stdout", &answer.stdout), ("stderr", &answer.stderr)] {
        let mut shown = Ends::default();
        shown.add(String::from_utf8_lossy(&answer.encoding.decode(text)?).as_bytes());
        let text = shown.text().unwrap_or_default();
        if !text.is_empty() {
            parts.push(format!("{name}:\n{}", text.trim_end_matches('\n')));
        }
    }
    if answer.truncated {
        parts.push("It printed more than is kept: the end is missing.".to_owned());
    }
    parts.push(match answer.timed_out {
        true => "It was killed, because its time was over.".to_owned(),
        false => format!("exit code: {}", answer.exit_code),
    });
    Ok(parts.join("\n"))
}

/// A sandbox in a line.
pub fn line(sandbox: &Sandbox) -> String {
    let Sandbox { id, template, state, vcpus, memory_mb, .. } = sandbox;
    format!("{id}: {state}, of {template}, {vcpus} vCPU, {memory_mb} MiB")
}

/// What a tool gives back.
pub fn result(outcome: Result<String>) -> CallToolResult {
    match outcome {
        Ok(text) => CallToolResult::success(vec![ContentBlock::text(text)]),
        Err(error) => {
            let text = printable(&format!("{error:#}"));
            CallToolResult::error(vec![ContentBlock::text(text)])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(pieces: &[&[u8]]) -> Option<String> {
        let mut ends = Ends::default();
        pieces.iter().for_each(|piece| ends.add(piece));
        ends.text()
    }

    #[test]
    fn what_is_short_is_shown_whole() {
        assert_eq!(ends(&[b"a", "ü".as_bytes(), b""]), Some("aü".to_owned()));
        let most = "x".repeat(SHOWN);
        assert_eq!(ends(&[most.as_bytes()]), Some(most));
        assert_eq!(ends(&[b"a\xff"]), None);
    }

    #[test]
    fn of_what_is_long_both_ends_are_shown_and_how_much_is_not() {
        // Two bytes each, and the first byte has them cut in two.
        let long = format!("b{}e", "ü".repeat(SHOWN));
        for size in [1000, 7001, usize::MAX] {
            let pieces: Vec<_> = long.as_bytes().chunks(size.min(long.len())).collect();
            let text = ends(&pieces).unwrap();
            let (first, rest) = text.split_once("\n[... ").unwrap();
            let (left_out, last) = rest.split_once(" bytes are left out here ...]\n").unwrap();
            assert!(first.starts_with("bü") && last.ends_with("üe"), "{size}");
            let left_out: usize = left_out.parse().unwrap();
            assert_eq!(first.len() + left_out + last.len(), long.len(), "{size}");
            assert!(text.len() <= SHOWN + 60, "{size}");
        }
        assert_eq!(ends(&[&[0xff], "x".repeat(3 * SHOWN).as_bytes()]), None);
    }
}
