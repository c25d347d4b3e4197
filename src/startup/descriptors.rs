//! Descriptors: how many the daemon may have open, and what of that it gives to whom.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::http::Budget;

/// More than this helps nobody, and programs that we start go through all numbers up to the limit to
/// close what they inherit: some container runtimes set it to a thousand millions.
const MOST: u64 = 1 << 20;

/// A connection takes up to four: its socket, the handle by which it is hung up on, the agent's or the
/// server's in the guest, and a file. So an eighth as many connections take half of all descriptors;
/// the other half is for sandboxes.
const SHARE: u64 = 8;

/// Connections in all, whatever the limit is.
const CONNECTIONS: std::ops::RangeInclusive<u64> = 32..=16_384;

/// Raises what the daemon may have open to what it is allowed to; gives that number.
///
/// # Errors
///
/// Those of the kernel.
pub fn raise() -> nix::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.min(MOST).max(soft);
    if wanted != soft {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(wanted)
}

/// What connections to the API may take of so many descriptors. Who has not shown a key yet shares a
/// quarter of that with others of the kind, so that there is always room for those with one.
pub fn budget(descriptors: u64) -> Budget {
    let all = (descriptors / SHARE).clamp(*CONNECTIONS.start(), *CONNECTIONS.end());
    let all = usize::try_from(all).expect("it was just bounded");
    Budget { all, strangers: all / 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_get_a_part_of_any_limit() {
        for (limit, all) in [(0, 32), (256, 32), (1024, 128), (1 << 20, 16_384)] {
            let budget = budget(limit);
            assert_eq!((budget.all, budget.strangers), (all, all / 4), "{limit}");
        }
    }
}
