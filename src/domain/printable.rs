//! What guests and hypervisors say, made fit for a log, an error message and a terminal.
//!
//! A file may be called `\x1b]0;...`, a process have a tag that runs from right to left, and an
//! agent that somebody has replaced says what it likes. Whatever would not be seen as it is becomes a
//! visible escape, such as `\u{1b}`; and what is shown has an end.
//!
//! What somebody has asked for as it is, such as a command's output or a file, does not come here.

use std::fmt::{self, Display, Write};

/// Stands for what was cut off.
const MORE: &str = "...";

/// Whether a character does something to a terminal, or to the characters around it, instead of being
/// seen: controls (C0, DEL and C1), line and paragraph separators, marks that turn the direction of
/// text (UAX 9), and others without a shape (zero width space, byte order mark, annotations, tags).
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// One line of at most `limit` bytes.
pub fn line(text: &str, limit: usize) -> String {
    let mut shown = String::new();
    // Fails only when it is full, which is fine.
    let _ = Escaped { to: &mut shown, left: limit, keep: &[] }.write_str(text);
    shown
}

/// As many lines as there are.
pub fn lines(text: &str) -> String {
    let mut shown = String::new();
    let _ = Escaped { to: &mut shown, left: usize::MAX, keep: &['\n'] }.write_str(text);
    shown
}

/// Shows something as [`line`] does.
pub fn shown(what: impl Display, limit: usize) -> String {
    let mut shown = String::new();
    let _ = write!(Escaped { to: &mut shown, left: limit, keep: &[] }, "{what}");
    shown
}

/// Passes text on, escaped, until there is no room for more.
struct Escaped<'a, W: Write> {
    to: &'a mut W,
    /// Bytes for which there is room.
    left: usize,
    /// Controls that are passed on as they are.
    keep: &'static [char],
}

impl<W: Write> Write for Escaped<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let escaped = is_unseen(c) && !self.keep.contains(&c);
            let length = if escaped { c.escape_default().len() } else { c.len_utf8() };
            // The mark fits as well, however it goes on.
            if self.left < length + MORE.len() {
                self.left = 0;
                self.to.write_str(MORE)?;
                return Err(fmt::Error);
            }
            self.left -= length;
            match escaped {
                true => write!(self.to, "{}", c.escape_default())?,
                false => self.to.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_not_be_seen_is_escaped_and_the_rest_is_left_alone() {
        for (said, seen) in [
            ("plain, grün, 日本語, 👍🏽", "plain, grün, 日本語, 👍🏽"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("a\r\nb\tc\0", "a\\r\\nb\\tc\\u{0}"),
            ("exe.\u{202e}gpj", "exe.\\u{202e}gpj"),
            ("\u{2066}x\u{2069}\u{200f}", "\\u{2066}x\\u{2069}\\u{200f}"),
            ("a\u{2028}b\u{feff}\u{7f}", "a\\u{2028}b\\u{feff}\\u{7f}"),
        ] {
            assert_eq!(line(said, 1000), seen);
        }
        assert_eq!(lines("a\nb\x1b"), "a\nb\\u{1b}");
        assert_eq!(shown(format_args!("{}{}", "a\n", 1), 100), "a\\n1");
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        assert_eq!(line("abcdefghij", 8), "abcde...");
        assert_eq!(line("aä\x1bb", 10), "aä...");
        assert_eq!(shown("x".repeat(5000), 100).len(), 100);
    }

    proptest! {
        #[test]
        fn nothing_unseen_is_left_and_nothing_is_too_long(text in any::<String>(), limit in 3usize..200) {
            let line = line(&text, limit);
            prop_assert!(line.len() <= limit);
            prop_assert!(!line.chars().any(is_unseen));
        }
    }
}
