//! What the verbs print: JSON, tables, bytes.

use std::io::{self, Write};
use std::os::fd::AsFd;

use chrono::{DateTime, Utc};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use tokio::sync::oneshot;

use super::Global;
use crate::domain::printable;
use crate::print;

/// How a verb shows its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Format {
    /// The format that the flags ask for.
    pub fn of(global: &Global) -> Self {
        if global.json { Self::Json } else { Self::Text }
    }

    /// Prints a result: `value` as JSON, or the text that `text` makes.
    ///
    /// # Errors
    ///
    /// When stdout cannot be written to.
    pub fn print(self, value: &impl Serialize, text: impl FnOnce() -> String) -> io::Result<()> {
        match self {
            Self::Text => write(&mut io::stdout(), text().as_bytes()),
            Self::Json => {
                let mut json = serde_json::to_vec_pretty(value)?;
                json.push(b'\n');
                write(&mut io::stdout(), &json)
            }
        }
    }
}

/// Writes bytes as they are. A reader that has gone, such as `head`, has seen enough.
///
/// # Errors
///
/// When they cannot be written for another reason.
pub(super) fn write(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Waits until nobody can read what is printed any more, as when `head` has seen enough; for ever if
/// stdout is a file. Who follows something that goes on would else wait for it until its next line.
pub(super) async fn reader_gone() {
    let (gone, told) = oneshot::channel();
    // A thread that nobody waits for, also not at our end.
    std::thread::spawn(move || {
        // Errors are told of unasked, and the end of a pipe's last reader is one.
        let out = io::stdout();
        let mut watched = [PollFd::new(out.as_fd(), PollFlags::empty())];
        if poll(&mut watched, PollTimeout::NONE).is_ok() {
            let _ = gone.send(());
        }
    });
    if told.await.is_err() {
        std::future::pending().await
    }
}

/// Tells the person something on stderr; when that is closed, there is nobody to tell.
pub(super) fn tell(line: &str) {
    print::tell(line);
}

/// Lines up rows under a heading.
pub(super) fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; N]| {
        let padded: Vec<_> = cells.iter().zip(widths).map(|(c, w)| format!("{c:w$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let rows = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(line(heading)).chain(rows).collect()
}

/// How long ago something was, in its largest unit.
pub(super) fn age(since: DateTime<Utc>, now: DateTime<Utc>) -> String {
    // A clock of another machine may be ahead of ours.
    let seconds = (now - since).num_seconds().max(0);
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A size, as exact as a person wants it.
pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Text from elsewhere, with what could drive a terminal escaped.
pub(super) fn printable(text: &str) -> String {
    printable::lines(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["abc".to_owned(), "1".to_owned()], ["d".to_owned(), "ü".to_owned()]];
        assert_eq!(table(["ID", "STATE"], &rows), "ID   STATE\nabc  1\nd    ü\n");
    }

    #[test]
    fn an_age_has_one_unit() {
        let now = Utc::now();
        for (seconds, want) in [
            (-5, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3599, "59m"),
            (3600, "1h"),
            (86_399, "23h"),
            (200_000, "2d"),
        ] {
            assert_eq!(age(now - TimeDelta::seconds(seconds), now), want);
        }
    }

    #[test]
    fn a_size_has_one_decimal() {
        for (bytes, want) in
            [(0, "0.0 MiB"), (52_428, "0.0 MiB"), (52_429, "0.1 MiB"), (3 << 29, "1536.0 MiB")]
        {
            assert_eq!(mebibytes(bytes), want);
        }
    }

    #[test]
    fn a_message_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\nc\r\u{202e}"), "a\\u{1b}[31mb\nc\\r\\u{202e}");
    }

    #[test]
    fn a_reader_that_left_is_no_error() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        write(&mut Gone, b"x").unwrap();
    }
}
