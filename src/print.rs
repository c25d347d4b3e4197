//! Lines for the person who has started the program. Whoever has closed the other end has seen enough:
//! nothing ends for that, as it would with the standard library's macros.

use std::fmt::Display;
use std::io::{Write, stderr, stdout};

/// Prints a line to stdout.
pub fn say(line: impl Display) {
    let mut out = stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a line to stderr.
pub fn tell(line: impl Display) {
    let _ = writeln!(stderr().lock(), "{line}");
}
