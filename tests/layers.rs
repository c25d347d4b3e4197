//! Dependencies point one way. Walks the sources of the workspace and fails on an arrow that does
//! not:
//!
//! ```text
//! main -> startup -> http, cli -> actors -> vmm, entity -> domain
//! ```
//!
//! Looks at paths, not only at `use` lines: `crate::vmm::hypervisor::kvm()` in an expression is an arrow too.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What each part of the daemon may use beside itself, `chain()` and `print`. What is not here may use
/// nothing.
const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &["startup", "cli", "config"]),
    ("startup", &["http", "actors", "vmm", "entity", "domain", "config"]),
    // An API handler knows the control plane's handle, and the values that pass through it.
    ("http", &["actors", "entity", "domain"]),
    // A client verb speaks HTTP; only `image` works without a daemon.
    ("cli", &["vmm", "domain", "config"]),
    ("actors", &["vmm", "entity", "domain"]),
    ("vmm", &["domain"]),
    ("entity", &["domain"]),
    ("domain", &[]),
    ("config", &["domain"]),
    ("print", &[]),
    ("error_chain", &["domain"]),
];

/// The domain does nothing: it has no files, sockets, processes, threads or timers.
const IDLE: &[&str] = &[
    "std::fs",
    "std::process",
    "std::thread",
    "std::io",
    "std::os",
    "std::env",
    "std::net::Tcp",
    "std::net::Udp",
    "tokio",
    "actix",
    "nix",
    "sea_orm",
    "reqwest",
    "async_trait",
];

/// Which crates may not be named below a directory, and what may.
const FOREIGN: &[(&str, &[&str])] = &[
    ("envd/src", &["nestbox", "nestbox_migration", "migration"]),
    ("archive/src", &["nestbox", "nestbox_migration", "migration", "nestbox_proto", "envd"]),
    ("proto/src", &["nestbox", "nestbox_migration", "migration", "envd"]),
    ("migration/src", &["nestbox", "nestbox_proto", "envd"]),
    ("src/vmm", &["actix", "actix_web", "actix_multipart", "sea_orm", "migration"]),
    ("src/http", &["sea_orm", "nix", "connectrpc", "nestbox_proto"]),
    ("src/cli", &["actix", "actix_web", "sea_orm"]),
    ("src/entity", &["actix", "actix_web", "nix"]),
];

/// An arrow from one part of the daemon to another.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrow {
    from: String,
    to: String,
}

/// The code of a source file: without comments, and without what stands in string literals.
fn code(source: &str) -> String {
    let mut code = String::new();
    for line in source.lines() {
        let mut rest = line;
        let mut quoted = false;
        while let Some(at) = rest.find(['"', '/']) {
            let (before, after) = rest.split_at(at);
            if !quoted {
                code.push_str(before);
            }
            let comment = !quoted && after.starts_with("//");
            // An escaped quote does not end a literal, nor does '"' begin one.
            let literal = before.ends_with('\\') || before.ends_with('\'');
            quoted ^= after.starts_with('"') && !literal;
            rest = if comment { "" } else { &after[1..] };
        }
        if !quoted {
            code.push_str(rest);
        }
        code.push('\n');
    }
    code
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What follows each `root::` in the code, where `root` is a whole name.
fn after<'a>(code: &'a str, root: &'a str) -> impl Iterator<Item = &'a str> {
    code.match_indices(root).filter_map(move |(at, _)| {
        let whole = !code[..at].ends_with(|c: char| is_name(c) || c == ':');
        code[at + root.len()..].strip_prefix("::").filter(|_| whole)
    })
}

/// The first names of a path, or of each path in a group: `a::b` is `a`, `{a::b, c}` is `a` and `c`.
fn first_names(path: &str) -> BTreeSet<String> {
    let name = |text: &str| text.trim_start().split(|c| !is_name(c)).next().unwrap().to_owned();
    let Some(group) = path.strip_prefix('{') else { return [name(path)].into() };
    let mut depth = 0;
    let mut names = BTreeSet::new();
    let mut begins = true;
    for (at, c) in group.char_indices() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            c if begins && is_name(c) => {
                names.insert(name(&group[at..]));
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// The module path of a file below `src`: `http/mod.rs` is `http`, `vmm/disk/qcow2.rs` three names.
fn modules(file: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        file.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    if names.last().is_some_and(|last| last == "mod") {
        names.pop();
    }
    names
}

/// The arrows that leave the part of the daemon which `file` belongs to.
fn arrows(file: &Path, source: &str) -> BTreeSet<Arrow> {
    let (code, modules) = (code(source), modules(file));
    let from = &modules[0];
    let mut targets: BTreeSet<String> = ["crate", "nestbox"]
        .iter()
        .flat_map(|root| after(&code, root))
        .flat_map(first_names)
        .collect();
    // As many steps up as lead out of the part.
    let up = vec!["super"; modules.len()].join("::");
    targets.extend(after(&code, &up).flat_map(first_names));
    let parts: BTreeSet<&str> = ALLOWED.iter().map(|(part, _)| *part).collect();
    targets
        .into_iter()
        .filter(|to| to != from && parts.contains(to.as_str()))
        .map(|to| Arrow { from: from.clone(), to })
        .collect()
}

fn wrong_arrows(file: &Path, source: &str) -> Vec<Arrow> {
    let allowed = |arrow: &Arrow| {
        let known = ALLOWED.iter().find(|(part, _)| *part == arrow.from);
        ["chain", "print"].contains(&arrow.to.as_str())
            || known.is_some_and(|(_, to)| to.contains(&arrow.to.as_str()))
    };
    // The root of the library only says which parts there are.
    let root = file == Path::new("lib.rs");
    arrows(file, source).into_iter().filter(|arrow| !root && !allowed(arrow)).collect()
}

/// The names out of `names` that the source uses as the beginning of a path.
fn named<'a>(source: &str, names: &[&'a str]) -> Vec<&'a str> {
    let code = code(source);
    let uses = |name: &str| {
        code.match_indices(name).any(|(at, _)| {
            let whole = !code[..at].ends_with(|c: char| is_name(c) || c == ':');
            let rest = &code[at + name.len()..];
            // `use std::fs;` and `use std::{fs}` are not told apart from paths by what follows.
            let ends = !rest.starts_with(is_name) || name.ends_with("Tcp") || name.ends_with("Udp");
            let path = name.contains("::") || rest.starts_with("::") || rest.starts_with(';');
            whole && ends && path
        })
    };
    names.iter().copied().filter(|name| uses(name)).collect()
}

/// What a room of the daemon may use of the others. A name stands for all below it.
struct Room {
    dir: &'static str,
    /// May not be named in it, but for what `passes` names.
    closed: &'static [&'static str],
    passes: &'static [&'static str],
}

/// The control plane knows hosts as a protocol, and hosts know no database.
const ROOMS: &[Room] = &[
    Room {
        dir: "src/actors/control",
        closed: &["vmm", "actors::host"],
        // Passed on to whoever works in a sandbox, and not looked into.
        passes: &["actors::host::workplace"],
    },
    Room { dir: "src/actors/host", closed: &["entity", "actors::control"], passes: &[] },
];

/// What each room of `src/vmm` may use of the others. What is not here may use nothing; the room of a
/// file that stands alone has its name. Along these arrows nobody comes back to where he was.
const VMM_ROOMS: &[(&str, &[&str])] = &[
    ("fault", &[]),
    ("find_program", &[]),
    ("host_memory", &[]),
    ("lock_file", &[]),
    ("guest", &[]),
    ("network", &["lock_file"]),
    ("image", &["lock_file"]),
    ("process", &[]),
    ("storage", &["process"]),
    ("hypervisor", &["storage", "process", "find_program"]),
    ("record", &["storage", "process"]),
    ("machine", &["hypervisor", "process", "guest", "record"]),
    ("simulated", &["machine", "hypervisor", "process", "guest", "image"]),
    (
        "host",
        &[
            "machine",
            "record",
            "hypervisor",
            "storage",
            "process",
            "network",
            "guest",
            "image",
            "fault",
            "host_memory",
            "lock_file",
        ],
    ),
];

/// The paths below `crate` that a source names, each up to the first name that is a type or a function.
fn named_paths(source: &str) -> BTreeSet<String> {
    let code = code(source);
    let mut paths = BTreeSet::new();
    for rest in after(&code, "crate") {
        collect_paths(rest, String::new(), &mut paths);
    }
    paths
}

/// Adds the paths of `rest`, which stands behind `prefix`: `a::b` is one, `{a::b, c}` are two.
fn collect_paths(rest: &str, prefix: String, paths: &mut BTreeSet<String>) {
    let Some(group) = rest.strip_prefix('{') else {
        let name: String = rest.trim_start().chars().take_while(|c| is_name(*c)).collect();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}::{name}") };
        match rest.trim_start()[name.len()..].strip_prefix("::") {
            Some(rest) => collect_paths(rest, path, paths),
            None => drop(paths.insert(path)),
        }
        return;
    };
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                if !group[begin..at].trim().is_empty() {
                    collect_paths(group[begin..at].trim(), prefix.clone(), paths);
                }
                begin = at + 1;
                if c == '}' {
                    return;
                }
            }
            _ => {}
        }
    }
}

/// What a source names that is closed to its room.
fn closed_paths(room: &Room, source: &str) -> Vec<String> {
    let below = |path: &str, name: &&str| {
        path.strip_prefix(*name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let wrong = |path: &String| {
        room.closed.iter().any(|name| below(path, name))
            && !room.passes.iter().any(|name| below(path, name))
    };
    named_paths(source).into_iter().filter(wrong).collect()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
    {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_arrow_points_down() {
    let src = root().join("src");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in sources(&src) {
        let file = path.strip_prefix(&src).unwrap();
        let source = read(&path);
        seen += arrows(file, &source).len();
        wrong.extend(wrong_arrows(file, &source).into_iter().map(|arrow| (file.to_owned(), arrow)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 50, "only {seen} arrows were seen: the walk does not work");
}

#[test]
fn no_room_looks_into_one_that_is_closed_to_it() {
    for room in ROOMS {
        let files = sources(&root().join(room.dir));
        assert!(files.len() > 5, "{} is not there", room.dir);
        for path in files {
            assert_eq!(closed_paths(room, &read(&path)), [""; 0], "{}", path.display());
        }
    }
}

/// The rooms of `src/vmm` that a source names, itself apart; and steps up that lead out of its room,
/// which nobody would see as an arrow.
fn vmm_arrows(room: &str, file: &Path, source: &str) -> Vec<String> {
    let named = named_paths(source);
    let rooms = named.iter().filter_map(|path| path.strip_prefix("vmm::"));
    let mut arrows: BTreeSet<String> =
        rooms.map(|path| path.split("::").next().unwrap().to_owned()).collect();
    arrows.remove(room);
    let code = code(source);
    let out = vec!["super"; modules(file).len() - 1].join("::");
    let steps =
        after(&code, &out).map(|rest| format!("{out}::{}", first_names(rest).pop_first().unwrap()));
    arrows.into_iter().chain(steps.filter(|_| modules(file).len() > 2)).collect()
}

#[test]
fn every_arrow_between_the_rooms_of_vmm_is_one_of_those_that_are_allowed() {
    let src = root().join("src");
    let allowed = |room: &str| VMM_ROOMS.iter().find(|(name, _)| *name == room).map(|it| it.1);
    let mut used = BTreeSet::new();
    for path in sources(&src.join("vmm")) {
        let file = path.strip_prefix(&src).unwrap();
        let modules = modules(file);
        // The root only says which rooms there are. What only tests name is no arrow of the program.
        let Some(room) = modules.get(1) else { continue };
        if file.to_str().unwrap().contains("_tests") {
            continue;
        }
        let source = read(&path);
        let program = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let may = allowed(room).unwrap_or_else(|| panic!("say what vmm::{room} may use"));
        for arrow in vmm_arrows(room, file, program) {
            assert!(may.contains(&arrow.as_str()), "{} uses {arrow}", file.display());
            used.insert((room.clone(), arrow));
        }
    }
    for (room, may) in VMM_ROOMS {
        for to in *may {
            assert!(
                used.contains(&((*room).to_owned(), (*to).to_owned())),
                "{room} -> {to} is idle"
            );
        }
    }
    // Taken away one after the other, from below: what remains is a circle.
    let mut rooms: Vec<_> = VMM_ROOMS.to_vec();
    while let Some(lowest) =
        rooms.iter().position(|(_, may)| rooms.iter().all(|(name, _)| !may.contains(name)))
    {
        rooms.remove(lowest);
    }
    assert_eq!(rooms, []);
}

#[test]
fn a_closed_path_is_seen_however_it_is_written() {
    let room = &ROOMS[0];
    let seen = |source| closed_paths(room, source);
    assert_eq!(seen("use crate::vmm::guest::Agent;"), ["vmm::guest::Agent"]);
    assert_eq!(seen("let a = crate::vmm::hypervisor::kvm();"), ["vmm::hypervisor::kvm"]);
    assert_eq!(
        seen("use crate::{actors::{host::{manager::Adoption, workplace::Workplace}, metrics}};"),
        ["actors::host::manager::Adoption"]
    );
    assert_eq!(seen("use crate::actors::host::{self};"), ["actors::host::self"]);
    assert!(seen("use crate::actors::host_client::HostClient;").is_empty());
    assert!(
        seen("use crate::actors::host::workplace::{A, B}; use crate::domain::host;").is_empty()
    );
}

#[test]
fn every_part_of_the_daemon_has_its_place() {
    let parts: BTreeSet<&str> = ALLOWED.iter().map(|(part, _)| *part).collect();
    for entry in std::fs::read_dir(root().join("src")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let name = name.trim_end_matches("_tests");
        assert!(name == "lib" || parts.contains(name), "say what {name} may use");
    }
}

#[test]
fn the_domain_does_no_input_or_output() {
    for path in sources(&root().join("src/domain")) {
        assert_eq!(named(&read(&path), IDLE), [""; 0], "{}", path.display());
    }
}

#[test]
fn no_part_names_a_foreign_crate() {
    for (dir, foreign) in FOREIGN {
        for path in sources(&root().join(dir)) {
            assert_eq!(named(&read(&path), foreign), [""; 0], "{}", path.display());
        }
    }
    for package in ["archive", "envd", "proto", "migration"] {
        let manifest = read(&root().join(package).join("Cargo.toml"));
        let daemon = manifest.lines().any(|line| line.replace(' ', "").starts_with("nestbox="));
        assert!(!daemon, "{package} depends on the daemon");
    }
}

#[test]
fn a_test_that_cannot_run_says_so_in_the_one_way_that_is_counted() {
    let mut seen = 0;
    for dir in ["archive", "envd", "migration", "src", "tests"] {
        for path in sources(&root().join(dir)) {
            let source = read(&path);
            let tests = path.to_string_lossy().contains("tests");
            if path.ends_with("support/skip.rs") || path.ends_with("tests/layers.rs") {
                continue;
            }
            seen += code(&source).matches("skip(").count();
            assert!(!source.contains("\"skipped"), "{}: see support/skip.rs", path.display());
            let asks = tests && code(&source).contains("geteuid().is_root()");
            assert!(!asks, "{}: see `is_root` in support/skip.rs", path.display());
        }
    }
    assert!(seen > 10, "only {seen} were seen: the walk does not work");
}

#[test]
fn no_setting_leads_to_simulated_machines() {
    for dir in ["src/startup", "src/cli", "src/http"] {
        for path in sources(&root().join(dir)) {
            assert!(!code(&read(&path)).contains("simulated"), "{}", path.display());
        }
    }
    for file in ["src/main.rs", "src/config.rs"] {
        assert!(!code(&read(&root().join(file))).contains("simulated"), "{file}");
    }
}

fn wrong(file: &str, source: &str) -> Vec<String> {
    wrong_arrows(Path::new(file), source).into_iter().map(|arrow| arrow.to).collect()
}

#[test]
fn a_wrong_arrow_is_seen_however_it_is_written() {
    assert_eq!(wrong("vmm/kvm.rs", "use crate::http::Code;"), ["http"]);
    assert_eq!(wrong("http/exec.rs", "let x = crate::vmm::hypervisor::kvm();"), ["vmm"]);
    assert_eq!(wrong("http/mod.rs", "use crate::{actors::host, vmm::{a, b}, domain};"), ["vmm"]);
    assert_eq!(
        wrong("http/mod.rs", "use crate::{\n    domain::{id, name},\n    cli,\n};"),
        ["cli"]
    );
    assert_eq!(wrong("domain/id.rs", "use super::super::entity::Cursor;"), ["entity"]);
    assert_eq!(wrong("vmm/disk/mod.rs", "use super::super::actors;"), ["actors"]);
    assert_eq!(wrong("main.rs", "use nestbox::vmm::hypervisor::kvm;"), ["vmm"]);
    assert_eq!(wrong("actors/host.rs", "use crate::config::Config;"), ["config"]);
    assert_eq!(wrong("cli/rm.rs", "use crate::startup; use crate::actors;"), ["actors", "startup"]);
}

#[test]
fn what_is_no_wrong_arrow_is_not_seen() {
    assert!(wrong("http/mod.rs", "use crate::actors::control; use crate::chain;").is_empty());
    assert!(wrong("vmm/kvm.rs", "// use crate::http;\n//! crate::http::x\n").is_empty());
    assert!(wrong("vmm/kvm.rs", "let a = \"crate::http::x\"; use crate::vmm::b;").is_empty());
    assert!(wrong("vmm/kvm.rs", "use nestbox_proto::http::x; use mycrate::http::y;").is_empty());
    assert!(wrong("vmm/network/mod.rs", "use super::config::x;").is_empty());
}

#[test]
fn a_foreign_crate_is_seen_and_a_word_is_not() {
    assert_eq!(named("use nestbox::domain::id;", &["nestbox"]), ["nestbox"]);
    assert!(named("use nestbox_proto::process; let nestbox = 1;", &["nestbox"]).is_empty());
    assert_eq!(named("let x = std::fs::read(p);", IDLE), ["std::fs"]);
    assert_eq!(
        named("use std::net::TcpStream; use tokio::spawn;", IDLE),
        ["std::net::Tcp", "tokio"]
    );
    assert!(named("use std::net::Ipv4Addr; // tokio::spawn", IDLE).is_empty());
}
