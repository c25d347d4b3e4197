//! The one program: daemon and command line.

use std::process::ExitCode;

use anyhow::Result;
use nestbox::cli::{self, Cli, Command};
use nestbox::config::Config;
use nestbox::startup::{self, Until};

fn main() -> ExitCode {
    // There is one for each VM, and it stays small: nothing else is set up for it.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|verb| verb == startup::pager::COMMAND) {
        return startup::pager::main(args);
    }
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let data_dir = cli.global.data_dir.clone();
    match &cli.command {
        // The daemon brings a runtime of its own.
        Command::Serve(args) => {
            let until = match args.end_with_stdin {
                true => Until::StdinEnds,
                false => Until::Signal,
            };
            let outcome =
                Config::load(&args.config, data_dir.as_deref()).map_err(anyhow::Error::from);
            report(outcome.and_then(|config| startup::serve(&config, until)).map(|()| true))
        }
        Command::Doctor(args) => {
            let data_dir = cli.global.local_data_dir();
            let outcome = Config::load(args, data_dir.as_deref()).map_err(anyhow::Error::from);
            let json = cli.global.json;
            report(outcome.and_then(|config| block_on(startup::doctor(&config, json))?))
        }
        _ => {
            match block_on(cli::run(cli, |config, image| Box::pin(startup::warm_up(config, image))))
            {
                Ok(code) => code,
                Err(error) => report(Err(error)),
            }
        }
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // A read of standard input may still hang in a thread of its own.
    runtime.shutdown_background();
    Ok(outcome)
}

fn report(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => cli::failed(&error),
    }
}
