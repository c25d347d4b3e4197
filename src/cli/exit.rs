//! Exit codes: the command's own where there is one, and one of its own for Nestbox's failures, so
//! that a script can tell the two apart. The convention is Docker's.

use std::process::ExitCode;

use anyhow::Error;

use super::output::{printable, tell};

/// Nestbox itself failed: bad arguments, no daemon, no such sandbox, a refused request.
pub const NESTBOX_FAILED: u8 = 125;

/// The part of `--help` on exit codes.
pub(super) const HELP: &str = "\
Exit codes:
  0    success
  124  exec --timeout-sec: the command was killed because its time was over
  125  nestbox itself failed: wrong arguments, no daemon, no such sandbox, ...
  126  exec, run, shell: the command cannot be executed
  127  exec, run, shell: there is no such command
  N    exec, run, shell: the command's own exit code; 128 + signal when a signal ended it, or us";

/// The exit code for a command that ended with `code` in its sandbox. What no process can end with
/// is a failure of ours.
pub(super) fn of_command(code: i64) -> u8 {
    u8::try_from(code).unwrap_or(NESTBOX_FAILED)
}

/// The exit code after a signal ended the command line itself, as a shell would show it.
pub(super) fn of_signal(signal: i32) -> u8 {
    u8::try_from(signal).map_or(NESTBOX_FAILED, |signal| 128_u8.saturating_add(signal))
}

/// Prints an error with its causes on stderr.
pub fn failed(error: &Error) -> ExitCode {
    tell(&format!("error: {}", printable(&format!("{error:#}"))));
    ExitCode::from(NESTBOX_FAILED)
}

/// Prints what clap has to say. Its own exit code for bad arguments, 2, is one that commands use.
pub(super) fn after_usage(error: &clap::Error) -> ExitCode {
    // When even this cannot be written, there is nobody left to tell.
    drop(error.print());
    if error.use_stderr() { ExitCode::from(NESTBOX_FAILED) } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commands_exit_code_is_ours() {
        for code in [0, 1, 2, 125, 126, 127, 137, 255] {
            assert_eq!(i64::from(of_command(code)), code);
        }
    }

    #[test]
    fn what_is_no_exit_code_is_a_failure_of_ours() {
        for code in [-1, 256, i64::MAX, i64::MIN] {
            assert_eq!(of_command(code), NESTBOX_FAILED);
        }
    }

    #[test]
    fn a_signal_shows_as_in_a_shell() {
        assert_eq!(of_signal(2), 130);
        assert_eq!(of_signal(15), 143);
    }
}
