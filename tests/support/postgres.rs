//! A PostgreSQL server of the test's own, from Debian's package.
//!
//! One server serves all tests of a process, on a free port and in a temporary directory. A shell
//! keeps it company and reads from a pipe whose other end this process holds: whichever way the
//! process ends, the pipe closes, and the shell stops the server by its pid file and removes the
//! directory. PostgreSQL refuses to run as root, so under root both run as an unprivileged user.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sea_orm::sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use super::skip::skip;

/// The password of the server's user; a test looks for it in error messages.
pub const PASSWORD: &str = "egg-in-the-nest";

/// Starts the server, says so on stdout, and cleans up when stdin ends.
const SCRIPT: &str = r#"
cd "$DIR" || exit 1
"$BIN/initdb" -D data -U postgres -A scram-sha-256 --pwfile=password -E UTF8 --locale=C --no-sync \
    >log 2>&1 &&
"$BIN/pg_ctl" -D data -l log -w -t 60 start >>log 2>&1 -o "-p $PORT -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories= -c fsync=off -c max_connections=200 -c shared_buffers=16MB" &&
echo ready
cat >/dev/null
"$BIN/pg_ctl" -D data -m fast -w -t 30 stop >/dev/null 2>&1
cd / && rm -rf "$DIR"
"#;

static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

struct Server {
    port: u16,
    /// Held for its end of the pipe.
    _keeper: Child,
}

/// Makes an empty database and gives its URL; none, and the test is skipped, when
/// PostgreSQL is not installed.
///
/// # Panics
///
/// When it is installed and does not start.
pub async fn database() -> Option<String> {
    let Some(bin) = newest_installation() else {
        skip("PostgreSQL is not installed: run `scripts/setup.sh tests`");
        return None;
    };
    let server = SERVER.get_or_init(|| start(&bin)).as_ref();
    let port = server.unwrap_or_else(|log| panic!("PostgreSQL does not start:\n{log}")).port;
    let url = |database: &str| {
        format!("postgres://postgres:{PASSWORD}@127.0.0.1:{port}/{database}?sslmode=disable")
    };
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let mut admin = PgConnection::connect(&url("postgres")).await.expect("the server is up");
    let create = format!("CREATE DATABASE {name} TEMPLATE template0");
    admin.execute(AssertSqlSafe(create)).await.expect("a database can be made");
    admin.close().await.expect("the connection closes");
    Some(url(&name))
}

fn newest_installation() -> Option<PathBuf> {
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(|path| version(path))
        .map(|path| path.join("bin"))
}

fn start(bin: &Path) -> Result<Server, String> {
    // Between our closing the port and the server's opening it another process may take it.
    let mut log = String::new();
    for _ in 0..3 {
        match start_once(bin) {
            Ok(server) => return Ok(server),
            Err(error) => log = error,
        }
    }
    Err(log)
}

fn start_once(bin: &Path) -> Result<Server, String> {
    let dir = tempfile::Builder::new().prefix("nestbox-postgres-").tempdir().expect("a directory");
    fs::write(dir.path().join("password"), PASSWORD).expect("the directory is ours");
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("there is a free port")
        .port();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT]).env("BIN", bin).env("DIR", dir.path());
    command.env("PORT", port.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some((uid, gid)) = unprivileged_user() {
        for path in [dir.path().to_owned(), dir.path().join("password")] {
            chown(path, Some(uid), Some(gid)).expect("root may give files away");
        }
        command.uid(uid).gid(gid);
    }
    // Ctrl-C in the terminal must reach the server through the pipe, in order, and not directly.
    let mut keeper = command.process_group(0).spawn().expect("there is a shell");
    // From here on the shell removes the directory.
    let dir = dir.keep();
    let mut line = String::new();
    BufReader::new(keeper.stdout.take().expect("stdout is a pipe"))
        .read_line(&mut line)
        .expect("the pipe can be read");
    if line.trim() == "ready" {
        return Ok(Server { port, _keeper: keeper });
    }
    let log = fs::read_to_string(dir.join("log")).unwrap_or_else(|error| error.to_string());
    drop(keeper.stdin.take());
    keeper.wait().expect("the shell is our child");
    Err(log)
}

/// Whom root becomes: `postgres`, or `nobody` where the package made no user.
fn unprivileged_user() -> Option<(u32, u32)> {
    use nix::unistd::{Uid, User};
    if !Uid::effective().is_root() {
        return None;
    }
    let user = ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .expect("Debian has a user nobody");
    Some((user.uid.as_raw(), user.gid.as_raw()))
}
