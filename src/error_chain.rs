//! Errors as one line.

use std::error::Error;
use std::fmt;

use crate::domain::printable;

/// The most that is shown of an error and its causes, in bytes: any of them may quote a guest.
const LIMIT: usize = 4 << 10;

/// Shows an error and all its causes, separated by colons, with what could drive a terminal escaped.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl fmt::Display + 'a {
    Shown(error)
}

struct Shown<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable::shown(Chain(self.0), LIMIT))
    }
}

struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let cause = error.to_string();
            // Some libraries quote the cause of an error in it.
            if !said.ends_with(&cause) {
                write!(f, ": {cause}")?;
                said = cause;
            }
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Quoting {
        text: &'static str,
        source: io::Error,
    }

    fn shown(text: &'static str) -> String {
        let source = io::Error::from_raw_os_error(nix::libc::ENOTDIR);
        chain(&Quoting { text, source }).to_string()
    }

    #[test]
    fn each_cause_is_said_once() {
        let cause = "Not a directory (os error 20)";
        assert_eq!(shown("cannot open /a/b"), format!("cannot open /a/b: {cause}"));
        let quoted = "cannot keep a file: Not a directory (os error 20)";
        assert_eq!(shown(quoted), quoted);
    }
}
