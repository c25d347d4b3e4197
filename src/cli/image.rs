//! `nestbox image`: makes, lists, checks and removes images. Works on the image directory itself;
//! needs no running daemon.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;

use super::WarmUp;
use super::output::Format;
use super::progress::Steps;
use crate::config::Config;
use crate::domain::name::TemplateName;
use crate::vmm::image::{Built, Contents, Image, ImageStore, Rebuild, RootfsSource};

/// Name of the default image.
const DEBIAN: &str = "debian";

/// Make, list, check and remove images.
#[derive(Debug, Args)]
pub struct ImageArgs {
    /// Where images are kept [default: images in the data directory]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) image_dir: Option<PathBuf>,
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
    /// Debian 12 with Python, pip, git, curl, ssh and sudo.
    Debian,
    /// The same with compilers, Node, npm, CMake and tools to look into things.
    Dev,
}

impl Distribution {
    /// What its image is called unless the user says otherwise.
    fn name(self) -> &'static str {
        match self {
            Self::Debian => DEBIAN,
            Self::Dev => "dev",
        }
    }

    fn contents(self) -> Contents {
        match self {
            Self::Debian => Contents::Base,
            Self::Dev => Contents::Development,
        }
    }
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

/// Runs one `nestbox image` command on the images of this machine.
///
/// # Errors
/// What the command could not do, as a chain of causes.
pub(super) async fn run(
    args: ImageArgs,
    config: &Config,
    format: Format,
    warm_up: WarmUp,
) -> anyhow::Result<()> {
    match args.command {
        ImageCommand::Build(args) => build(args, config, format, warm_up).await,
        ImageCommand::Import(args) => {
            let image = with_images(config, move |images| import(&args, images)).await?;
            report(&image, "made", format)
        }
        ImageCommand::Ls => list(&with_images(config, |images| Ok(images.list()?)).await?, format),
        ImageCommand::Rm { name } => {
            with_images(config, move |images| Ok(images.remove(&name)?)).await
        }
        ImageCommand::Verify { name } => {
            let of = name.clone();
            with_images(config, move |images| Ok(images.verify(&of)?)).await?;
            match format {
                Format::Text => say(&format!("{name}: every file is as it was made")),
                Format::Json => say(&json!({"name": name, "intact": true}).to_string()),
            }
        }
    }
}

/// Works on images off the threads that serve others: they are made by programs that run for
/// seconds.
async fn with_images<T: Send + 'static>(
    config: &Config,
    work: impl FnOnce(&ImageStore) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let images = ImageStore::open(config.image_dir());
    let work = tokio::task::spawn_blocking(move || work(&images));
    work.await.context("the image command did not finish")?
}

fn import(args: &ImportArgs, images: &ImageStore) -> anyhow::Result<Image> {
    let source = RootfsSource::detect(&args.rootfs)?;
    let steps = Steps::start();
    let image = images.import(&args.name, &source, args.kernel.as_deref(), &steps)?;
    steps.finish();
    Ok(image)
}

async fn build(
    args: BuildArgs,
    config: &Config,
    format: Format,
    warm_up: WarmUp,
) -> anyhow::Result<()> {
    let name = match args.name {
        Some(name) => name,
        None => args.distribution.name().parse()?,
    };
    let rebuild = if args.force { Rebuild::Always } else { Rebuild::IfMissing };
    match make_debian(config, &name, args.distribution.contents(), rebuild, warm_up).await? {
        Built::New(image) => report(&image, "built", format),
        Built::Present(image) => report(&image, "already there", format),
    }
}

/// Sees to it that the default image is there; shows how it gets on.
///
/// # Errors
/// What kept it from being made, as a chain of causes.
pub(super) async fn ensure_debian(config: &Config, warm_up: WarmUp) -> anyhow::Result<()> {
    make_debian(config, &DEBIAN.parse()?, Contents::Base, Rebuild::IfMissing, warm_up)
        .await
        .map(drop)
}

async fn make_debian(
    config: &Config,
    name: &TemplateName,
    contents: Contents,
    rebuild: Rebuild,
    warm_up: WarmUp,
) -> anyhow::Result<Built> {
    let files_of = name.clone();
    let (built, steps) = with_images(config, move |images| {
        let steps = Steps::start();
        let built = images.build_debian(&files_of, contents, rebuild, &steps)?;
        Ok((built, steps))
    })
    .await?;
    steps.begin("boot it once and freeze it");
    if let Some(reason) = warm_up(config.clone(), name.clone()).await? {
        steps.note(&format!("the first create will do that: {reason}"));
    }
    steps.finish();
    Ok(built)
}

fn report(image: &Image, what: &str, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Text => say(&format!(
            "image {} {what}: kernel {}, {}",
            image.name,
            image.kernel_version,
            image.rootfs.display()
        )),
        Format::Json => say(&describe(image).to_string()),
    }
}

fn list(images: &[Image], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
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
