//! The users that VMs run as: one for each slot, and nobody else's.
//!
//! Who may become such a user, say because `/etc/subuid` gives it to one's containers, is on the
//! VM's side of the wall: able to end it, and to look into it.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::domain::slot::SLOT_COUNT;

/// Where ids are given away (subuid(5), subgid(5)): lines of `who:first:count`.
const RANGES: [&str; 2] = ["etc/subuid", "etc/subgid"];
/// Where single ones are: of each the fields that are ids (passwd(5), group(5)).
const SINGLE: [(&str, &[usize]); 2] = [("etc/passwd", &[2, 3]), ("etc/group", &[2])];

/// Where another range is looked for, if the wanted one is taken; a step for each attempt.
const STEP: u32 = 1 << 20;

/// Somebody else has some of the users.
#[derive(Debug, thiserror::Error)]
#[error(
    "VMs run as the users {} to {}, but {owner} has {} to {}: another user could reach into VMs. Set \
     vm_uid_base (--vm-uid-base, NESTBOX_VM_UID_BASE) to {}, or take the line out of /{}",
    wanted.start, wanted.end - 1, taken.start, taken.end - 1, Proposal(*free), owner.file
)]
pub struct TakenError {
    wanted: Range<u32>,
    taken: Range<u32>,
    owner: Owner,
    free: Option<u32>,
}

/// Who has ids, and where that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    name: String,
    file: &'static str,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in /{}", self.name, self.file)
    }
}

struct Proposal(Option<u32>);

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(free) => write!(f, "one that is free, such as {free}"),
            None => f.write_str("one that is free"),
        }
    }
}

/// The users of the VMs of a host whose first one is `base`.
pub fn range(base: u32) -> Range<u32> {
    base..base.saturating_add(SLOT_COUNT)
}

/// Looks whether the users from `base` on are nobody else's, by the files below `root`.
///
/// # Errors
///
/// [`TakenError`], with a base that would do.
pub fn check(root: &Path, base: u32) -> Result<Range<u32>, TakenError> {
    let wanted = range(base);
    let given = given(root);
    let overlaps =
        |one: &Range<u32>, other: &Range<u32>| one.start < other.end && other.start < one.end;
    let Some((taken, owner)) = given.iter().find(|(taken, _)| overlaps(taken, &wanted)) else {
        return Ok(wanted);
    };
    let is_free = |base: &u32| !given.iter().any(|(taken, _)| overlaps(taken, &range(*base)));
    let free = (1..4000).map(|step| step * STEP).find(is_free);
    Err(TakenError { wanted, taken: taken.clone(), owner: owner.clone(), free })
}

/// All ids that are given to somebody. A file that is not there gives none; a line that makes no
/// sense gives none either, for whoever reads these files passes over it too.
fn given(root: &Path) -> Vec<(Range<u32>, Owner)> {
    let mut given = Vec::new();
    let read = |file| std::fs::read(root.join(file)).unwrap_or_default();
    let mut add = |file, parse: &dyn Fn(&[&str]) -> Vec<Range<u32>>| {
        for line in String::from_utf8_lossy(&read(file)).lines() {
            let fields: Vec<&str> = line.split(':').map(str::trim).collect();
            let owner = || Owner { name: fields[0].to_owned(), file };
            if !fields[0].is_empty() && !fields[0].starts_with('#') {
                given.extend(parse(&fields).into_iter().map(|range| (range, owner())));
            }
        }
    };
    for file in RANGES {
        add(file, &|fields| span(fields).into_iter().collect());
    }
    for (file, places) in SINGLE {
        add(file, &|fields| {
            let ids = places.iter().filter_map(|place| fields.get(*place)?.parse::<u32>().ok());
            ids.map(|id| id..id.saturating_add(1)).collect()
        });
    }
    given
}

fn span(fields: &[&str]) -> Option<Range<u32>> {
    let &[_, first, count] = fields else { return None };
    let (first, count): (u32, u32) = (first.parse().ok()?, count.parse().ok()?);
    (count > 0).then(|| first..first.saturating_add(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u32 = 700_000;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        for (name, text) in files {
            std::fs::write(root.path().join("etc").join(name), text).unwrap();
        }
        root
    }

    fn said(files: &[(&str, &str)]) -> Option<String> {
        check(root(files).path(), BASE).err().map(|error| error.to_string())
    }

    #[test]
    fn a_range_that_somebody_has_is_refused_with_one_that_is_free() {
        for (file, line) in [
            ("subuid", "ann:689824:65536"),
            ("subgid", "1000:700000:1"),
            ("subuid", "ann:732767:1"),
            ("subuid", "# people\n\nbob:1:2\nroot:0:4294967295"),
            ("passwd", "root:x:0:0::/:\nvm:x:700001:100::/:/bin/sh"),
            ("passwd", "vm:x:1001:700001::/:/bin/sh"),
            ("group", "vm:x:710000:"),
        ] {
            let said = said(&[(file, line)]).expect(line);
            assert!(said.contains(&format!("/etc/{file}")), "{said}");
            assert!(said.contains("--vm-uid-base"), "{said}");
        }
        let said = said(&[("subuid", "ann:700000:65536\nbob:1048576:65536")]).unwrap();
        assert!(said.contains("\"ann\"") && said.contains("such as 2097152"), "{said}");
    }

    #[test]
    fn what_is_beside_it_or_makes_no_sense_is_passed_over() {
        let lines = "ann:634464:65536\nbob:732768:65536\nx:700000\nx:700000:0\nx:7e5:1\n:700000:1\n\
            x:-1:9999999\nx:700000:5000000000\nx:700000:1:1\n\u{0}\n#x:700000:1";
        assert_eq!(said(&[("subuid", lines), ("subgid", lines)]), None);
        assert_eq!(said(&[]), None, "there need be no such files");
        assert_eq!(said(&[("passwd", "vm:x\nvm:x:seven:8:\n"), ("group", "vm")]), None);
    }
}
