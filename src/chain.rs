//! Errors as one line.

use std::error::Error;
use std::fmt;

use crate::domain::visible;

/// The most that is shown of an error and its causes, in bytes: any of them may quote a guest.
const LIMIT: usize = 4 << 10;

/// Shows an error and all its causes, separated by colons, with what could drive a terminal escaped.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl fmt::Display + 'a {
    Shown(error)
}

struct Shown<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&visible::shown(Chain(self.0), LIMIT))
    }
}

struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
