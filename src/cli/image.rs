//! `nestbox image`: makes, lists, checks and removes images. Works on the image directory itself;
//! needs no running daemon.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::domain::name::TemplateName;
use crate::vmm::image::{Built, Image, ImageStore, Progress, Rebuild, RootfsSource};

/// How a command prints what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// For programs: one JSON document on standard output.
    Json,
}

/// Make, list, check and remove images.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Build an image from a distribution's packages.
    Build(BuildArgs),
    /// Make an image of a root filesystem of your own.
    Import(ImportArgs),
    /// List the images.
    Ls,
    /// Remove an image.
    Rm {
        /// Name of the image.
        name: TemplateName,
    },
    /// Compare an image's files with their checksums.
    Verify {
        /// Name of the image.
        name: TemplateName,
    },
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// What to build.
    #[arg(value_enum)]
    distribution: Distribution,
    /// Name of the image; the distribution's by default.
    #[arg(long)]
    name: Option<TemplateName>,
    /// Build it again if it is there.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Distribution {
    /// Debian 12 with Python, git, curl and sudo.
    Debian,
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// Name of the image; one of that name is replaced.
    #[arg(long)]
    name: TemplateName,
    /// A directory, a tar archive, or an ext4 disk without partitions.
    #[arg(long, value_name = "DIR|TAR|EXT4")]
    rootfs: PathBuf,
    /// A kernel with virtio-mmio, virtio-blk and ext4 built in; Debian's by default.
    #[arg(long, value_name = "VMLINUX")]
    kernel: Option<PathBuf>,
}

/// Runs one `nestbox image` command on the images in `image_dir`.
///
/// # Errors
/// What the command could not do, as a chain of causes.
pub async fn run(args: ImageArgs, image_dir: &Path, format: OutputFormat) -> anyhow::Result<()> {
    let store = ImageStore::open(image_dir);
    // Images are made by programs that run for seconds: off the threads that serve others.
    tokio::task::spawn_blocking(move || execute(args.command, &store, format))
        .await
        .context("the image command did not finish")?
}

fn execute(command: ImageCommand, store: &ImageStore, format: OutputFormat) -> anyhow::Result<()> {
    match command {
        ImageCommand::Build(args) => build(args, store, format),
        ImageCommand::Import(args) => {
            let source = RootfsSource::detect(&args.rootfs)?;
            let progress = Terminal::start();
            let image = store.import(&args.name, &source, args.kernel.as_deref(), &progress)?;
            progress.finish();
            report(&image, "made", format)
        }
        ImageCommand::Ls => list(&store.list()?, format),
        ImageCommand::Rm { name } => Ok(store.remove(&name)?),
        ImageCommand::Verify { name } => {
            store.verify(&name)?;
            match format {
                OutputFormat::Text => say(&format!("{name}: every file is as it was made")),
                OutputFormat::Json => say(&json!({"name": name, "intact": true}).to_string()),
            }
        }
    }
}

fn build(args: BuildArgs, store: &ImageStore, format: OutputFormat) -> anyhow::Result<()> {
    let Distribution::Debian = args.distribution;
    let name = match args.name {
        Some(name) => name,
        None => "debian".parse()?,
    };
    let rebuild = if args.force { Rebuild::Always } else { Rebuild::IfMissing };
    let progress = Terminal::start();
    let built = store.build_debian(&name, rebuild, &progress)?;
    progress.finish();
    match built {
        Built::New(image) => report(&image, "built", format),
        Built::Present(image) => report(&image, "already there", format),
    }
}

fn report(image: &Image, what: &str, format: OutputFormat) -> anyhow::Result<()> {
    match format {
        OutputFormat::Text => say(&format!(
            "image {} {what}: kernel {}, {}",
            image.name,
            image.kernel_version,
            image.rootfs.display()
        )),
        OutputFormat::Json => say(&describe(image).to_string()),
    }
}

fn list(images: &[Image], format: OutputFormat) -> anyhow::Result<()> {
    if format == OutputFormat::Json {
        let images: Vec<_> = images.iter().map(describe).collect();
        return say(&serde_json::Value::from(images).to_string());
    }
    let mut text = format!("{:<20} {:<26} {:>9}  {:<16} FROM\n", "NAME", "KERNEL", "DISK", "MADE");
    for image in images {
        text += &format!(
            "{:<20} {:<26} {:>5} MiB  {:<16} {}\n",
            image.name.as_str(),
            image.kernel_version,
            image.rootfs_bytes >> 20,
            image.created_at.format("%Y-%m-%d %H:%M"),
            image.source,
        );
    }
    say(text.trim_end())
}

fn describe(image: &Image) -> serde_json::Value {
    json!({
        "name": image.name,
        "created_at": image.created_at,
        "source": image.source,
        "kernel": image.kernel,
        "kernel_version": image.kernel_version,
        "kernel_sha256": image.kernel_sha256,
        "initramfs": image.initramfs,
        "rootfs": image.rootfs,
        "rootfs_bytes": image.rootfs_bytes,
        "rootfs_sha256": image.rootfs_sha256,
    })
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("cannot write to standard output")
}

/// Shows the steps of a build on standard error: a spinner on a terminal, lines elsewhere.
struct Terminal {
    bar: Option<ProgressBar>,
    current: Mutex<Option<(String, Instant)>>,
}

impl Terminal {
    fn start() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            bar.set_style(style.expect("the template is a constant"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, current: Mutex::new(None) }
    }

    /// Ends the last step.
    fn finish(&self) {
        self.enter(None);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Replaces the step at hand, and leaves a line about the one that ended.
    fn enter(&self, next: Option<&str>) {
        let next = next.map(|text| (text.to_owned(), Instant::now()));
        // A poisoned lock only means that a thread panicked between two lines.
        let mut current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before = std::mem::replace(&mut *current, next);
        if let Some((text, since)) = before {
            let line = format!("{:6.1} s  {text}", since.elapsed().as_secs_f64());
            match &self.bar {
                Some(bar) => bar.println(line),
                None => eprintln!("{line}"),
            }
        }
    }
}

impl Progress for Terminal {
    fn step(&self, text: &str) {
        self.enter(Some(text));
        match &self.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.set_message(text.to_owned());
            }
            None => eprintln!("          {text} ..."),
        }
    }

    fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            let current = self.current.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let step = current.as_ref().map_or("", |(text, _)| text.as_str());
            bar.set_message(format!("{step}: {text}"));
        }
    }
}
