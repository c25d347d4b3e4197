//! Our own terminal while another one is shown on it.

use std::io::{self, IsTerminal, Stdin, stdin, stdout};

use anyhow::{Context, Result, bail};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::cli::client::Size;

/// Our terminal passes on every key as it is; it is as it was before when this is dropped.
pub struct RawMode {
    terminal: Stdin,
    before: Termios,
}

impl RawMode {
    /// Makes sure that there is a terminal on both sides.
    ///
    /// # Errors
    ///
    /// What to do without one.
    pub fn possible() -> Result<()> {
        if !stdin().is_terminal() {
            bail!("the input is no terminal: use exec without -t");
        }
        if !stdout().is_terminal() {
            bail!("the output is no terminal: use exec without -t");
        }
        Ok(())
    }

    /// Begins.
    ///
    /// # Errors
    ///
    /// What the terminal says.
    pub fn begin() -> Result<Self> {
        let terminal = stdin();
        let before = tcgetattr(&terminal).context("cannot ask the terminal for its settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSADRAIN, &raw).context("cannot set up the terminal")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}

/// The size of our terminal, if it knows it.
pub fn size() -> Option<Size> {
    let (rows, cols) = console::Term::stdout().size_checked()?;
    // One that is not shown anywhere says 0.
    (rows > 0 && cols > 0).then(|| Size { cols: cols.min(MOST), rows: rows.min(MOST) })
}

/// The most columns and rows that a terminal in a sandbox has.
const MOST: u16 = 4096;

/// The keys that leave a terminal and let it run, as elsewhere: ctrl-p, then ctrl-q.
const LEAVE: [u8; 2] = [0x10, 0x11];

/// Finds the keys that leave a terminal in what is typed.
#[derive(Debug, Default)]
pub struct Keys {
    /// The first of them was typed last, and not passed on yet.
    first: bool,
}

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    /// To be passed on.
    Input(Vec<u8>),
    /// To be passed on before the terminal is left.
    Leave(Vec<u8>),
}

impl Keys {
    /// Looks at what was typed next.
    pub fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut input = Vec::with_capacity(bytes.len() + 1);
        for &byte in bytes {
            match (std::mem::take(&mut self.first), byte) {
                (true, byte) if byte == LEAVE[1] => return Typed::Leave(input),
                (first, byte) => {
                    if first {
                        input.push(LEAVE[0]);
                    }
                    match byte == LEAVE[0] {
                        true => self.first = true,
                        false => input.push(byte),
                    }
                }
            }
        }
        Typed::Input(input)
    }
}

/// Reads what is typed; empty when the terminal is gone.
pub async fn typed(from: &mut tokio::io::Stdin) -> io::Result<Vec<u8>> {
    match super::read(from).await {
        // What a terminal says that has been hung up.
        Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(bytes: &[u8]) -> Typed {
        Typed::Input(bytes.to_vec())
    }

    #[test]
    fn two_keys_leave_a_terminal_however_they_come() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"ls\r\x10\x11rest"), Typed::Leave(b"ls\r".to_vec()));
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"ls\x10"), input(b"ls"));
        assert_eq!(keys.typed(b"\x11"), Typed::Leave(Vec::new()));
    }

    #[test]
    fn one_of_the_keys_is_a_key_like_others() {
        let mut keys = Keys::default();
        assert_eq!(keys.typed(b"\x11a\x10"), input(b"\x11a"));
        assert_eq!(keys.typed(b"\x10"), input(b"\x10"));
        assert_eq!(keys.typed(b"b"), input(b"\x10b"));
    }
}
