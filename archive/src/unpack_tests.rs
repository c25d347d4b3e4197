//! Archives of every kind, most of them hostile.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;
use crate::header::BLOCK;
use crate::{LeftOut, pack, write};

const OPTIONS: Options = Options {
    owner: Owner::Unpacker,
    mode: 0o777,
    hidden: ".hidden-",
    links_out: LinksOut::LeaveOut,
};

/// A directory to unpack into, in one that shows what leaves it.
struct Pit {
    outer: TempDir,
    root: PathBuf,
}

impl Pit {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(outer.path().join("outside"), "outside").unwrap();
        Self { outer, root }
    }

    fn unpack(&self, archive: &[u8]) -> Result<Summary, ArchiveError> {
        let outcome = unpack(archive, &self.root, &OPTIONS, |_| ());
        let left = names(self.outer.path());
        assert_eq!(left, ["outside", "root"], "nothing is made outside");
        assert_eq!(fs::read(self.outer.path().join("outside")).unwrap(), b"outside");
        let hidden = |name: &String| name.starts_with(".hidden-");
        assert!(!names(&self.root).iter().any(hidden), "nothing is left half-made");
        outcome
    }

    /// Why an archive is refused.
    #[track_caller]
    fn refusal(&self, archive: &[u8]) -> Refusal {
        match self.unpack(archive) {
            Err(ArchiveError::Refused { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().flatten().map(name).collect();
    names.sort();
    names
}

/// Blocks of an archive without its end.
#[derive(Default)]
struct Made(Vec<u8>);

impl Made {
    fn add(mut self, kind: Kind, name: &str, target: &str, content: &[u8]) -> Self {
        let header = Header {
            kind,
            name: name.as_bytes().to_vec(),
            target: target.as_bytes().to_vec(),
            mode: 0o644,
            size: content.len() as u64,
            modified: 1_600_000_000,
        };
        write::head(&mut self.0, &header, (0, 0)).unwrap();
        self.content(content)
    }

    /// An entry of any type.
    fn raw(mut self, kind: u8, name: &str, size: u64, content: &[u8]) -> Self {
        let header = Header {
            kind: Kind::File,
            name: name.as_bytes().to_vec(),
            target: Vec::new(),
            mode: 0o644,
            size,
            modified: 0,
        };
        self.0.extend_from_slice(&header.block(kind, (0, 0)));
        self.content(content)
    }

    fn content(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        write::padding(&mut self.0, content.len() as u64).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.add(Kind::File, name, "", content.as_bytes())
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.add(Kind::Symlink, name, target, b"")
    }

    fn end(mut self) -> Vec<u8> {
        write::end(&mut self.0).unwrap();
        self.0
    }
}

/// Everything below a directory, with what it is.
fn tree(root: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap().flatten() {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            let content = match () {
                () if meta.is_symlink() => {
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                }
                () if meta.is_dir() => {
                    dirs.push(path.clone());
                    Vec::new()
                }
                () => fs::read(&path).unwrap(),
            };
            let modified = if meta.is_file() { meta.mtime() } else { 0 };
            let name = path.strip_prefix(root).unwrap().to_owned();
            found.push((name, meta.mode(), modified, content));
        }
    }
    found.sort();
    found
}

/// A directory with something of everything.
fn sample() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let long = format!("{}/{}", "directory-with-a-long-name".repeat(8), "f".repeat(200));
    // What of its name there is room for in a header ends with the slash.
    let cut = format!("directory{}/{}", "-".repeat(90), "file");
    let odd = OsStr::from_bytes(b"not \xff UTF-8 \n");
    fs::create_dir_all(path("empty/dir")).unwrap();
    for name in [&long, &cut] {
        fs::create_dir_all(path(name).parent().unwrap()).unwrap();
    }
    for (name, size) in [
        ("a", 0),
        ("b", 1),
        ("c", 512),
        ("d", 513),
        ("empty/e", 300_000),
        (long.as_str(), 7),
        (cut.as_str(), 9),
    ] {
        fs::write(path(name), (0..size).map(|at| (at * 7 % 251) as u8).collect::<Vec<_>>())
            .unwrap();
    }
    fs::write(dir.path().join(odd), "odd").unwrap();
    fs::set_permissions(path("b"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("a", path("link")).unwrap();
    symlink("../c", path("empty/up")).unwrap();
    symlink("x".repeat(150), path("dangling")).unwrap();
    fs::File::open(path("c")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    dir
}

#[test]
fn a_directory_is_the_same_after_a_round_trip() {
    let (from, to) = (sample(), Pit::new());
    let mut archive = Vec::new();
    let packed = pack(from.path(), &mut archive, ".hidden-", |_| ()).unwrap();
    let unpacked = to.unpack(&archive).unwrap();
    assert_eq!(packed, unpacked);
    assert_eq!(tree(from.path()), tree(&to.root));
    assert_eq!(archive.len() % BLOCK, 0);
}

#[test]
fn it_is_the_archive_of_everybody_else_too() {
    let (from, to) = (sample(), Pit::new());
    for format in ["gnu", "pax", "ustar"] {
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(from.path()).args(["--format", format, "-c", "."]);
        // Older than long names of links.
        if format == "ustar" {
            tar.args(["--exclude", "./dangling", "--exclude", "./directory*"]);
        }
        let archive = tar.output().unwrap().stdout;
        to.unpack(&archive).unwrap();
        if format != "ustar" {
            assert_eq!(tree(from.path()), tree(&to.root), "{format}");
        }
        fs::remove_dir_all(&to.root).unwrap();
        fs::create_dir(&to.root).unwrap();
    }
    let mut tar = Command::new("tar");
    let mut tar = tar.arg("-C").arg(&to.root).arg("-xp").stdin(Stdio::piped()).spawn().unwrap();
    pack(from.path(), &mut tar.stdin.take().unwrap(), ".hidden-", |_| ()).unwrap();
    assert!(tar.wait().unwrap().success());
    assert_eq!(tree(from.path()), tree(&to.root));
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    for (name, why) in [
        ("../outside", Refusal::Up),
        ("a/../../outside", Refusal::Up),
        ("/etc/passwd", Refusal::Absolute),
        (&format!("{}/../outside", "d/".repeat(100)), Refusal::Up),
        (&"n".repeat(5000), Refusal::TooLong),
        (&"d/".repeat(300), Refusal::TooDeep),
        (".", Refusal::Directory),
    ] {
        let to = Pit::new();
        assert_eq!(to.refusal(&Made::default().file(name, "x").end()), why, "{name}");
        assert!(names(&to.root).is_empty());
    }
}

#[test]
fn links_that_lead_out_are_left_out_or_kept_and_nothing_passes_through_a_link() {
    for (name, target) in
        [("l", "/etc/passwd"), ("l", "../outside"), ("d/l", "../../outside"), ("l", "d/../..")]
    {
        let archive = Made::default().link(name, target).file("f", "x").end();
        let to = Pit::new();
        let summary = to.unpack(&archive).unwrap();
        let first = Some(PathBuf::from(name));
        assert_eq!((summary.entries, summary.left_out), (1, LeftOut { count: 1, first }));
        assert_eq!(names(&to.root), ["f"]);

        let to = Pit::new();
        let options = Options { links_out: LinksOut::Keep, ..OPTIONS };
        let summary = unpack(&archive[..], &to.root, &options, |_| ()).unwrap();
        assert_eq!((summary.entries, summary.left_out), (2, LeftOut::default()));
        assert_eq!(fs::read_link(to.path(name)).unwrap(), PathBuf::from(target));
        // It is there, and still leads nowhere for what comes after it.
        let through = Made::default().file(&format!("{name}/new"), "x").end();
        assert_eq!(to.refusal(&through), Refusal::InTheWay);
    }
    let to = Pit::new();
    let through = Made::default().file("d/f", "x").link("l", "d").file("l/g", "x").end();
    assert_eq!(to.refusal(&through), Refusal::InTheWay);
    assert_eq!(names(&to.path("d")), ["f"]);
    // What seems three directories deep is the top, one step from outside.
    let to = Pit::new();
    let up = Made::default().file("a/b/f", "x").link("a/b/c", "../..").link("a/b/c/l", "../../..");
    assert_eq!(to.refusal(&up.end()), Refusal::InTheWay);
    // Links that were there before are not followed either.
    let to = Pit::new();
    symlink("..", to.path("up")).unwrap();
    assert_eq!(to.refusal(&Made::default().file("up/new", "x").end()), Refusal::InTheWay);
    let dir = Made::default().add(Kind::Directory, "up/", "", b"").end();
    assert_eq!(to.refusal(&dir), Refusal::InTheWay);
}

#[test]
fn hard_links_are_names_of_files_inside() {
    let hard = |name: &str, target: &str| {
        Made::default().file("d/f", "x").link("l", "d").add(Kind::HardLink, name, target, b"").end()
    };
    let to = Pit::new();
    to.unpack(&hard("e/g", "d/f")).unwrap();
    assert_eq!(
        fs::metadata(to.path("d/f")).unwrap().ino(),
        fs::metadata(to.path("e/g")).unwrap().ino()
    );
    to.unpack(&hard("d/f", "d/f")).unwrap();
    assert_eq!(names(&to.path("d")), ["f"]);
    for (target, why) in [
        ("../outside", Refusal::Up),
        ("/etc/passwd", Refusal::Absolute),
        ("missing", Refusal::NoFile),
        ("d", Refusal::NoFile),
        ("l", Refusal::NoFile),
        ("l/f", Refusal::InTheWay),
    ] {
        assert_eq!(Pit::new().refusal(&hard("h", target)), why, "{target}");
    }
}

#[test]
fn devices_pipes_and_what_is_not_known_are_refused() {
    for (kind, why) in [
        (b'3', Refusal::Device),
        (b'4', Refusal::Device),
        (b'6', Refusal::Device),
        (b'S', Refusal::Unknown),
        (b'V', Refusal::Unknown),
        (b'?', Refusal::Unknown),
    ] {
        let to = Pit::new();
        assert_eq!(to.refusal(&Made::default().raw(kind, "x", 0, b"").end()), why);
        assert!(names(&to.root).is_empty());
    }
    let sparse = b"22 GNU.sparse.major=1\n";
    let archive = Made::default().raw(b'x', "x", sparse.len() as u64, sparse).file("f", "x").end();
    assert_eq!(Pit::new().refusal(&archive), Refusal::Unknown);
}

#[test]
fn what_is_there_is_replaced_as_a_whole_and_directories_are_joined() {
    let to = Pit::new();
    fs::create_dir_all(to.path("d")).unwrap();
    fs::write(to.path("d/kept"), "kept").unwrap();
    fs::write(to.path("f"), "old, and longer").unwrap();
    symlink("../outside", to.path("l")).unwrap();
    let archive = Made::default()
        .add(Kind::Directory, "d/", "", b"")
        .file("d/new", "new")
        .file("f", "new")
        .file("l", "a file now")
        .end();
    to.unpack(&archive).unwrap();
    assert_eq!(names(&to.path("d")), ["kept", "new"]);
    assert_eq!(fs::read(to.path("f")).unwrap(), b"new");
    assert!(!fs::symlink_metadata(to.path("l")).unwrap().is_symlink());
    for (archive, why) in [
        (Made::default().file("d", "x").end(), Refusal::Directory),
        (Made::default().link("d", "f").end(), Refusal::Directory),
        (Made::default().add(Kind::Directory, "f/", "", b"").end(), Refusal::InTheWay),
        (Made::default().file("f/below", "x").end(), Refusal::InTheWay),
    ] {
        assert_eq!(to.refusal(&archive), why);
    }
    assert_eq!(names(&to.path("d")), ["kept", "new"]);
}

#[test]
fn modes_of_files_are_taken_as_far_as_they_may_be() {
    let to = Pit::new();
    let mut header = Header {
        kind: Kind::File,
        name: b"s".to_vec(),
        target: Vec::new(),
        mode: 0o6755,
        size: 0,
        modified: -5,
    };
    let mut archive = Vec::new();
    write::head(&mut archive, &header, (0, 0)).unwrap();
    (header.name, header.mode, header.kind) = (b"d/".to_vec(), 0, Kind::Directory);
    write::head(&mut archive, &header, (0, 0)).unwrap();
    write::end(&mut archive).unwrap();
    unpack(&archive[..], &to.root, &Options { mode: 0o750, ..OPTIONS }, |_| ()).unwrap();
    let meta = fs::metadata(to.path("s")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime()), (0o750, -5));
    assert_eq!(fs::metadata(to.path("d")).unwrap().mode() & 0o7777, 0o700);
}

/// A source without an end, which counts what is taken of it.
struct Endless<'a> {
    beginning: &'a [u8],
    taken: u64,
}

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.beginning.read(buffer)?;
        buffer[read..].fill(b'1');
        self.taken += buffer.len() as u64;
        Ok(buffer.len())
    }
}

#[test]
fn what_is_said_about_an_entry_is_bounded_whatever_it_claims() {
    for kind in [b'L', b'K', b'x', b'X'] {
        for size in [1 << 40, u64::from(u32::MAX), (1 << 20) + 1] {
            let to = Pit::new();
            let head = Made::default().raw(kind, "x", size, b"").0;
            let mut source = Endless { beginning: &head, taken: 0 };
            let outcome = unpack(&mut source, &to.root, &OPTIONS, |_| ());
            assert!(matches!(outcome, Err(ArchiveError::Malformed(_))), "{outcome:?}");
            assert_eq!(source.taken, BLOCK as u64, "nothing of it is read");
        }
    }
    // Records that lie about their own length, and a size beyond any.
    for records in [
        "99 path=x\n",
        "5 path=x\n",
        "0 \n",
        "18446744073709551616 path=x\n",
        "path=x\n",
        " path=x\n",
        "29 size=18446744073709551615\n",
        "11 size=-1\n",
        "11 mtime=x\n",
    ] {
        let archive = Made::default().raw(b'x', "x", records.len() as u64, records.as_bytes());
        let outcome = Pit::new().unpack(&archive.file("f", "x").end());
        assert!(matches!(outcome, Err(ArchiveError::Malformed(_))), "{records:?}: {outcome:?}");
    }
}

/// Found by fuzzing.
#[test]
fn a_way_that_is_longer_than_any_path_is_unpacked_and_packed_again() {
    let name = format!("{}f", format!("{}/", "d".repeat(255)).repeat(15));
    let to = Pit::new();
    assert!(to.root.as_os_str().len() + name.len() < 4096);
    to.unpack(&Made::default().file(&name, "x").end()).unwrap();
    // So deep that its whole path cannot be said, and the one from the directory can.
    let deep = to.path(&format!("{}/", "d".repeat(255)).repeat(15));
    let before = Made::default().file(&format!("{}/g", "e".repeat(250)), "deep").end();
    unpack(&before[..], &deep, &OPTIONS, |_| ()).unwrap();
    let mut archive = Vec::new();
    pack(&to.root, &mut archive, ".hidden-", |_| ()).unwrap();
    let again = Pit::new();
    let summary = again.unpack(&archive).unwrap();
    assert_eq!(summary.bytes, 5);
}

#[test]
fn long_names_in_both_ways_are_taken_up_to_the_limit() {
    let name = format!("{}/f", "d".repeat(200));
    for archive in [
        Made::default().raw(b'L', "x", name.len() as u64 + 1, format!("{name}\0").as_bytes()),
        Made::default().raw(b'x', "x", 212, format!("212 path={name}\n").as_bytes()),
    ] {
        let to = Pit::new();
        assert_eq!(name.len() + 10, 212);
        to.unpack(&archive.file("short", "x").end()).unwrap();
        assert_eq!(fs::read(to.path(&name)).unwrap(), b"x");
    }
}

#[test]
fn an_archive_that_breaks_off_is_never_taken_for_a_whole_one() {
    let whole = Made::default().file("a", "first").file("b", &"x".repeat(2000)).end();
    let end = whole.len() - 2 * BLOCK;
    for length in [0, 1, 511, 512, 513, 1024, 1030, 1536, 2000, end - 1, end] {
        let to = Pit::new();
        let outcome = to.unpack(&whole[..length]);
        assert!(matches!(outcome, Err(ArchiveError::Malformed(_))), "{length}: {outcome:?}");
        if let Ok(content) = fs::read(to.path("b")) {
            assert_eq!(content.len(), 2000, "{length}: whole or not there");
        }
    }
    Pit::new().unpack(&whole).unwrap();
    for noise in [&b"no archive at all".repeat(100)[..], b"PK\x03\x04", &[0xff; 1024]] {
        assert!(matches!(Pit::new().unpack(noise), Err(ArchiveError::Malformed(_))));
    }
}

/// A header whose fields are what is said here, with a checksum that is right.
fn odd(fields: &[(std::ops::Range<usize>, &[u8])]) -> Vec<u8> {
    let mut block = Made::default().raw(b'0', "f", 0, b"").0;
    for (place, bytes) in fields {
        block[place.clone()].copy_from_slice(bytes);
    }
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[test]
fn sizes_that_lie_are_found_out_and_names_that_are_odd_are_only_names() {
    const SIZE: std::ops::Range<usize> = 124..136;
    let huge = [&[0x80][..], &[0; 3], &i64::MAX.to_be_bytes()].concat();
    let beyond = [&[0x80][..], &[0; 3], &[0xff; 8]].concat();
    for size in
        [b"77777777777\0", &huge[..], &beyond[..], &[0xff; 12], b"-0000000001\0", b"9999999999x\0"]
    {
        let mut archive = odd(&[(SIZE, size)]);
        archive.extend_from_slice(&[b'x'; 4 * BLOCK]);
        let to = Pit::new();
        let outcome = to.unpack(&archive);
        assert!(matches!(outcome, Err(ArchiveError::Malformed(_))), "{size:?}: {outcome:?}");
        assert!(names(&to.root).is_empty(), "half a file looks like a whole one: {size:?}");
    }
    // One that claims little, so that its content is taken for the next header.
    let to = Pit::new();
    let mut archive = odd(&[(SIZE, b"00000000000\0")]);
    archive.extend(odd(&[(0..3, b"/e\0")])[..BLOCK - 1].iter().chain(b"x"));
    assert!(to.unpack(&archive).is_err());

    let odd_names = ["new\nline", "\x1b]0;owned\x07", " ", "-rf", "...", "a\\b", "\u{202e}txt"];
    let to = Pit::new();
    let all = odd_names.iter().fold(Made::default(), |made, name| made.file(name, name));
    to.unpack(&all.end()).unwrap();
    let mut sorted: Vec<_> = odd_names.iter().map(|name| (*name).to_owned()).collect();
    sorted.sort();
    assert_eq!(names(&to.root), sorted);
    // Of one name several times the last counts, whatever it was before.
    let to = Pit::new();
    let twice = Made::default().link("f", "g").file("f", "1").file("f", "2").link("g", "f");
    to.unpack(&twice.file("g", "3").end()).unwrap();
    let content = |name: &str| fs::read(to.path(name)).unwrap();
    assert_eq!((content("f"), content("g")), (b"2".to_vec(), b"3".to_vec()));
}

#[test]
fn a_directory_of_somebody_hostile_is_packed_as_what_it_is() {
    let from = tempfile::tempdir().unwrap();
    let path = |name: &str| from.path().join(name);
    fs::create_dir(path("d")).unwrap();
    for (name, target) in
        [("loop", "loop"), ("up", "../../../../etc/passwd"), ("root", "/etc"), ("d/self", ".")]
    {
        symlink(target, path(name)).unwrap();
    }
    fs::File::create(path("sparse")).unwrap().set_len(64 << 20).unwrap();
    nix::unistd::mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
    let mut archive = Vec::new();
    pack(from.path(), &mut archive, ".hidden-", |_| ()).unwrap();
    // Nothing was followed: the links are links, and who unpacks them leaves out what leads out.
    assert!(!archive.windows(5).any(|text| text == b"root:"));
    let to = Pit::new();
    assert_eq!(to.unpack(&archive).unwrap().left_out.count, 2);
    assert_eq!(names(&to.root), ["d", "loop", "sparse"]);

    let mut deep = from.path().join("deep");
    for _ in 0..crate::MAX_DEPTH + 10 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    let outcome = pack(&path("deep"), &mut io::sink(), ".hidden-", |_| ());
    assert!(matches!(outcome, Err(ArchiveError::Refused { .. })), "{outcome:?}");
}

#[test]
fn any_bytes_at_all_do_no_harm() {
    let from = sample();
    let mut archive = Vec::new();
    pack(from.path(), &mut archive, ".hidden-", |_| ()).unwrap();
    archive.truncate(40 * BLOCK);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let to = Pit::new();
    for _ in 0..400 {
        let mut archive = archive.clone();
        for _ in 0..=random(4) {
            let at = random(archive.len());
            archive[at] = u8::try_from(random(256)).unwrap();
            // Checksums are set right, else nothing but them would be tried.
            let block = at / BLOCK * BLOCK;
            let head = &mut archive[block..block + BLOCK];
            head[148..156].fill(b' ');
            let sum: u64 = head.iter().map(|&byte| u64::from(byte)).sum();
            head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let _ = to.unpack(&archive);
    }
}

#[test]
fn what_is_no_file_directory_or_link_is_left_out_of_an_archive() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("f"), "x").unwrap();
    fs::write(from.path().join(".hidden-upload"), "x").unwrap();
    nix::unistd::mkfifo(&from.path().join("pipe"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.path().join("socket")).unwrap();
    let mut archive = Vec::new();
    pack(from.path(), &mut archive, ".hidden-", |_| ()).unwrap();
    let to = Pit::new();
    to.unpack(&archive).unwrap();
    assert_eq!(names(&to.root), ["f"]);
}

#[test]
fn an_archive_that_could_not_be_finished_says_why() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("file"), "text").unwrap();
    // One level too many.
    let mut deep = from.path().to_owned();
    for _ in 0..=crate::MAX_DEPTH {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    let mut archive = Vec::new();
    let error = crate::pack_and_explain(from.path(), &mut archive, ".hidden-", |_| ()).unwrap_err();
    assert!(matches!(error, ArchiveError::Refused { why: Refusal::TooDeep, .. }), "{error}");
    let told = Pit::new().unpack(&archive).unwrap_err();
    assert!(matches!(&told, ArchiveError::Incomplete(why) if *why == error.to_string()), "{told}");

    // Who is not to be told paths from here is told nothing.
    let mut archive = Vec::new();
    pack(from.path(), &mut archive, ".hidden-", |_| ()).unwrap_err();
    let told = Pit::new().unpack(&archive).unwrap_err();
    assert!(matches!(&told, ArchiveError::Malformed(_)), "{told}");
}
