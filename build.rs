//! Builds the guest agent and hands its path, compressed, to the daemon's sources as
//! `NESTBOX_ENVD`.
//!
//! The agent is a static binary with a profile of its own, so it cannot be an ordinary dependency.
//! A nested cargo builds it into one directory of the target directory, with an environment that is
//! the same whichever cargo command runs outside: debug, release, check and clippy share one build.

use std::env;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What cargo, clippy and rustdoc set for build scripts, or take from whoever calls them: with any
/// of these the nested build would be another build each time.
const FOREIGN: &[&str] = &[
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_INCREMENTAL",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "CLIPPY_DISABLE_DOCS_LINKS",
    "DEBUG",
    "HOST",
    "LD_LIBRARY_PATH",
    "NUM_JOBS",
    "OPT_LEVEL",
    "OUT_DIR",
    "PROFILE",
    "RUSTC",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUST_RECURSION_COUNT",
    "TARGET",
];

/// Prefixes of the same kind. `CARGO_MAKEFLAGS` is kept: through it both cargos share one job limit.
const FOREIGN_PREFIXES: &[&str] = &["CARGO_CFG_", "CARGO_FEATURE_", "CARGO_PKG_", "DEP_"];

fn main() -> Result<(), Box<dyn Error>> {
    for path in ["build.rs", "archive", "envd", "proto", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let built = build_agent(&target_dir(&out_dir)?.join("envd"))?;

    // A copy, because another profile's build may replace the shared file while rustc reads it; and
    // only when it differs, because a new time stamp alone would compile the daemon again.
    let (copy, packed) = (out_dir.join("envd"), out_dir.join("envd.gz"));
    let bytes = fs::read(&built)?;
    if !packed.exists() || fs::read(&copy).ok().as_deref() != Some(bytes.as_slice()) {
        let mut writer = GzEncoder::new(fs::File::create(&packed)?, Compression::best());
        writer.write_all(&bytes)?;
        writer.finish()?;
        // Last: what broke off before is done again.
        fs::write(&copy, bytes)?;
    }
    println!("cargo::rustc-env=NESTBOX_ENVD={}", packed.display());
    Ok(())
}

/// Runs the nested cargo and returns the path of the agent's binary.
fn build_agent(target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let root = env::var("CARGO_MANIFEST_DIR")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The outer cargo has already written a complete lock file, and every crate in it that this
    // build needs may be cached: `--locked` is then enough to work without a network.
    cargo.args(["build", "--locked", "--quiet", "--package", "envd", "--profile", "agent"]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(target_dir).current_dir(&root);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if FOREIGN.contains(&&*text) || FOREIGN_PREFIXES.iter().any(|p| text.starts_with(p)) {
            cargo.env_remove(&name);
        }
    }
    cargo.env("RUSTFLAGS", "-Ctarget-feature=+crt-static");

    let output = cargo.output().map_err(|e| format!("cannot start {cargo:?}: {e}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let hint = if stderr.contains("may not be installed") {
            format!("\nhint: `rustup target add {TARGET}` installs the standard library it needs")
        } else {
            String::new()
        };
        return Err(format!("the guest agent does not build ({cargo:?}):\n{stderr}{hint}").into());
    }
    Ok(target_dir.join(TARGET).join("agent").join("envd"))
}

/// Finds the target directory of the outer build: cargo tells build scripts only `OUT_DIR`, which
/// lies at different depths below it.
fn target_dir(out_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let marked = out_dir.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists());
    match marked {
        Some(dir) => Ok(dir.to_owned()),
        None => Ok(Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("target")),
    }
}
