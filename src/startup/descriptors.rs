//! Descriptors: how many the daemon may have open, and what of that it gives to whom.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::http::Budget;

/// More than this helps nobody, and programs that we start go through all numbers up to the limit to
/// close what they inherit: some container runtimes set it to a thousand millions.
const MOST: u64 = 1 << 20;

/// A connection takes two, its socket and the handle by which it is hung up on, and while a request is
/// answered up to two more. So a sixth as many connections take a third of all descriptors, and two
/// thirds at most; the others are for sandboxes.
const SHARE: u64 = 6;

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

/// What connections to the API may take of so many descriptors. Those on which no key has been shown yet
/// may be three quarters of them: the more there are, the longer each has to show one when many come at
/// once, and one that has is never cut for another.
pub fn budget(descriptors: u64) -> Budget {
    let all = (descriptors / SHARE).clamp(*CONNECTIONS.start(), *CONNECTIONS.end());
    let all = usize::try_from(all).expect("it was just bounded");
    Budget { all, strangers: all / 4 * 3 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_get_a_part_of_any_limit() {
        for (limit, all, strangers) in
            [(0, 32, 24), (100, 32, 24), (1024, 170, 126), (1 << 20, 16_384, 12_288)]
        {
            let budget = budget(limit);
            assert_eq!((budget.all, budget.strangers), (all, strangers), "{limit}");
        }
    }
}
