//! The command line: one file a verb, and the client of the REST API that they share.
//!
//! Knows the API's JSON and nothing of the daemon's inside: these verbs work the same on a laptop
//! against a daemon elsewhere. What a command in a sandbox prints is passed on byte for byte, and
//! its exit code becomes ours; see [`exit`].

mod batch;
mod client;
mod completions;
mod cp;
mod create;
mod demo;
mod discover;
mod events;
mod exec;
mod exit;
mod fork;
mod get;
mod image;
mod key;
mod kill;
mod lease;
mod logs;
mod ls;
mod mcp;
mod network;
mod output;
mod pairs;
mod pause;
mod peer;
mod port_forward;
mod progress;
mod ps;
mod resolve;
mod resume;
mod rm;
mod run;
mod session;
mod shell;
mod signals;
mod snapshot;
mod top;
mod trace;
mod url;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use futures::future::BoxFuture;

use client::Client;

use crate::config::{Config, ConfigArgs};
use crate::domain::name::TemplateName;
pub use exit::{NESTBOX_FAILED, failed};

/// Sandboxes for untrusted code, each in a microVM of its own.
#[derive(Debug, Parser)]
#[command(name = "nestbox", version, after_help = exit::HELP, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every verb understands.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// URL of the daemon, http or https [default: the local daemon, by its socket]
    #[arg(long, global = true, env = "NESTBOX_URL", value_name = "URL")]
    pub url: Option<String>,
    /// API key [default: the local daemon's]
    #[arg(
        long,
        global = true,
        env = "NESTBOX_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub api_key: Option<String>,
    /// File of certificates of authorities, in PEM, to trust besides this machine's for https
    #[arg(long, global = true, env = "NESTBOX_CA", value_name = "FILE", value_parser = path())]
    pub ca: Option<PathBuf>,
    /// Data directory of the local daemon [default: /var/lib/nestbox, then ./.nestbox]
    #[arg(long, global = true, env = "NESTBOX_DATA_DIR", value_name = "DIR", value_parser = path())]
    pub data_dir: Option<PathBuf>,
}

/// A path, or nothing for now: see [`Global::without_empty`].
fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The settings.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// For a program that starts a daemon for itself: it ends after standard input, with the last sandbox
    #[arg(long, hide = true)]
    pub end_with_stdin: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground
    Serve(ServeArgs),
    /// Say what this machine can do, and what to do about what it cannot
    Doctor(ConfigArgs),
    /// Build, import, list and remove images
    Image(image::ImageArgs),
    /// Show on a daemon of its own that everything works, from create to destroy
    Demo(demo::DemoArgs),
    /// Create a sandbox and print its id
    Create(create::CreateArgs),
    /// List sandboxes
    Ls(ls::LsArgs),
    /// Show one sandbox
    #[command(visible_alias = "inspect")]
    Get(get::GetArgs),
    /// Run a command in a sandbox
    Exec(exec::ExecArgs),
    /// Open a shell in a sandbox on a terminal, or come back to one
    Shell(shell::ShellArgs),
    /// List what runs in the background of a sandbox, or did
    Ps(ps::PsArgs),
    /// Show what a process in the background has written
    Logs(logs::LogsArgs),
    /// End a process in the background, or send it a signal
    Kill(kill::KillArgs),
    /// Freeze sandboxes to disk, with all that runs in them
    Pause(batch::SeveralArgs),
    /// Let frozen sandboxes go on where they were
    Resume(batch::SeveralArgs),
    /// Make copies of a running sandbox, which go on as it does, and print their ids
    Fork(fork::ForkArgs),
    /// Create, list and remove snapshots
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Copy files and directories into or out of a sandbox
    Cp(cp::CpArgs),
    /// Show what a sandbox may reach, or change it
    Network(network::NetworkArgs),
    /// Have ports here lead to servers in a sandbox, until it is interrupted
    PortForward(port_forward::PortForwardArgs),
    /// Destroy sandboxes
    Rm(rm::RmArgs),
    /// Create a sandbox, run a command in it, destroy it
    Run(run::RunArgs),
    /// Say what happened to sandboxes and snapshots
    Events(events::EventsArgs),
    /// Show what sandboxes take of the host, on a terminal again and again
    Top(top::TopArgs),
    /// Serve agents that speak the Model Context Protocol, on standard input and output
    Mcp(mcp::McpArgs),
    /// Print a script that completes command lines: source it, or put it where your shell looks
    Completions(completions::CompletionsArgs),
    /// Manage API keys
    #[command(subcommand)]
    Key(key::KeyCommand),
}

/// Boots an image once and freezes it, or says why the first create will have to. The program gives
/// it, because parts of the daemon are none of the command line's business.
pub type WarmUp = fn(Config, TemplateName) -> BoxFuture<'static, Result<Option<String>>>;

impl Global {
    /// A variable that is empty is one that is not set.
    fn without_empty(self) -> Self {
        let text = |text: Option<String>| {
            text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let path = |path: Option<PathBuf>| path.filter(|path| !path.as_os_str().is_empty());
        Self {
            json: self.json,
            url: text(self.url),
            api_key: text(self.api_key),
            ca: path(self.ca),
            data_dir: path(self.data_dir),
        }
    }

    /// The data directory of this machine's daemon, if it is not the default one.
    pub fn local_data_dir(&self) -> Option<PathBuf> {
        discover::data_dir(self)
    }
}

impl Cli {
    /// Reads the process's arguments. Prints help or what is wrong with them itself, and then gives
    /// the code to end with.
    ///
    /// # Errors
    ///
    /// The exit code: 0 after `--help` and `--version`, else [`NESTBOX_FAILED`].
    pub fn read() -> Result<Self, ExitCode> {
        let cli = Self::try_parse().map_err(|error| exit::after_usage(&error))?;
        Ok(Self { global: cli.global.without_empty(), ..cli })
    }
}

/// Runs a verb. Prints its own errors; the result is for the process to end with.
pub async fn run(cli: Cli, warm_up: WarmUp) -> ExitCode {
    match dispatch(cli, warm_up).await {
        Ok(code) => code,
        Err(error) => exit::failed(&error),
    }
}

async fn dispatch(Cli { global, command }: Cli, warm_up: WarmUp) -> Result<ExitCode> {
    let format = output::Format::of(&global);
    // Only for the verbs that need one: others work without a daemon.
    let client = || -> Result<Client> { Ok(Client::new(discover::find(&global)?)?) };
    match command {
        Command::Serve(_) | Command::Doctor(_) => unreachable!("they do not start here"),
        Command::Image(args) => {
            let image_dir = args.image_dir.clone();
            let settings = ConfigArgs { image_dir, ..ConfigArgs::default() };
            let config = Config::load(&settings, global.local_data_dir().as_deref())?;
            image::run(args, &config, format, warm_up).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo(args) => demo::run(args, global.data_dir.clone(), warm_up).await,
        Command::Create(args) => create::run(&client()?, format, args).await,
        Command::Ls(args) => ls::run(&client()?, format, args).await,
        Command::Get(args) => get::run(&client()?, format, args).await,
        Command::Exec(args) => exec::run(&client()?, format, args).await,
        Command::Shell(args) => shell::run(&client()?, args).await,
        Command::Ps(args) => ps::run(&client()?, format, args).await,
        Command::Logs(args) => logs::run(&client()?, format, args).await,
        Command::Kill(args) => kill::run(&client()?, args).await,
        Command::Pause(args) => pause::run(&client()?, format, args).await,
        Command::Resume(args) => resume::run(&client()?, format, args).await,
        Command::Fork(args) => fork::run(&client()?, format, args).await,
        Command::Snapshot(command) => snapshot::run(&client()?, format, command).await,
        Command::Cp(args) => cp::run(&client()?, format, args).await,
        Command::Network(args) => network::run(&client()?, format, args).await,
        Command::PortForward(args) => port_forward::run(client()?, format, args).await,
        Command::Rm(args) => rm::run(&client()?, format, args).await,
        Command::Run(args) => run::run(client()?, format, args).await,
        Command::Events(args) => events::run(&client()?, format, args).await,
        Command::Top(args) => top::run(&client()?, format, args).await,
        Command::Mcp(args) => mcp::run(client()?, args).await,
        Command::Completions(args) => completions::run(&args),
        Command::Key(command) => key::run(&client()?, format, command).await,
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
