//! A process that lives on in a sandbox and counts: whoever sees its number grow knows that it was
//! frozen and went on.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::time::{sleep, timeout};

use super::run_in;
use crate::cli::client::{Client, There};

const PROGRAM_FILE: &str = "/home/user/counter.py";
const COUNT_FILE: &str = "/home/user/count.txt";

/// The counter needs a tenth of a second to go on.
const LIMIT: Duration = Duration::from_secs(30);
const PERIOD: Duration = Duration::from_millis(50);

/// Writes who it is and how far it has counted. What it draws at its start is nowhere but in its
/// memory: another process, or the same one started again, would show something else. The file is
/// renamed into place, so that a reader finds all of it.
const PROGRAM: &str = "\
import os, time
drawn = os.urandom(8).hex()
number = 0
while True:
    number += 1
    with open('count.new', 'w') as file:
        file.write(f'{os.getpid()} {drawn} {number}\\n')
    os.rename('count.new', 'count.txt')
    time.sleep(0.1)
";

/// Starts the program so that it outlives the command, and waits until it stands at 10: one that
/// began anew would show less.
const START: &str = "\
setsid nohup python3 counter.py < /dev/null > counter.log 2>&1 &
until grep -qs ' [0-9][0-9][0-9]*$' count.txt; do sleep 0.1; done";

/// What the counter has written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Count {
    pid: u32,
    drawn: String,
    number: u64,
}

impl FromStr for Count {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || anyhow!("{COUNT_FILE} holds {text:?}");
        let words: Vec<_> = text.split_whitespace().collect();
        let [pid, drawn, number] = words[..] else { return Err(bad()) };
        let (pid, number) = (pid.parse().map_err(|_| bad())?, number.parse().map_err(|_| bad())?);
        Ok(Self { pid, drawn: drawn.to_owned(), number })
    }
}

/// A counter as it was last seen in the sandbox that it was started in.
pub(super) struct Counter {
    last: Count,
}

impl Counter {
    /// Starts a counter in a sandbox.
    ///
    /// # Errors
    ///
    /// When it does not count.
    pub async fn start(client: &Client, id: &str) -> Result<Self> {
        client.write_file(There::new(id, PROGRAM_FILE), PROGRAM.into()).await?;
        run_in(client, id, "sh", &["-c", START]).await?;
        Ok(Self { last: read(client, id).await? })
    }

    /// How far it had counted.
    pub fn number(&self) -> u64 {
        self.last.number
    }

    /// Waits until it has counted on in a sandbox, as the same process and from where it stood;
    /// gives the counter as it stands then.
    ///
    /// # Errors
    ///
    /// When it is another process, began anew, or does not count.
    pub async fn goes_on_in(&self, client: &Client, id: &str) -> Result<Self> {
        let counting = async {
            let first = self.same(read(client, id).await?)?;
            loop {
                let now = self.same(read(client, id).await?)?;
                if now.number > first.number {
                    return Ok(Self { last: now });
                }
                sleep(PERIOD).await;
            }
        };
        let counted = timeout(LIMIT, counting).await;
        counted.with_context(|| format!("the counter in {id} stands still"))?
    }

    /// Checks that what was written later comes from the same process.
    fn same(&self, later: Count) -> Result<Count> {
        let same = later.pid == self.last.pid && later.drawn == self.last.drawn;
        if !same || later.number < self.last.number {
            bail!("the counter began anew: it was {:?} and is {later:?}", self.last);
        }
        Ok(later)
    }
}

async fn read(client: &Client, id: &str) -> Result<Count> {
    client.read_file(There::new(id, COUNT_FILE)).await?.text().await?.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> Count {
        text.parse().unwrap()
    }

    #[test]
    fn a_count_is_read_as_the_program_writes_it() {
        let want = Count { pid: 12, drawn: "a0".to_owned(), number: 7 };
        assert_eq!(count("12 a0 7\n"), want);
        for text in ["", "12 a0", "12 a0 7 8", "x a0 7", "12 a0 -7"] {
            assert!(text.parse::<Count>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_the_same_process_goes_on_and_never_back() {
        let counter = Counter { last: count("12 a0 7") };
        assert!(counter.same(count("12 a0 7")).is_ok());
        assert!(counter.same(count("12 a0 8")).is_ok());
        for text in ["12 a0 6", "13 a0 8", "12 b0 8"] {
            assert!(counter.same(count(text)).is_err(), "{text}");
        }
    }
}
