//! `envd`, the agent inside a sandbox.
//!
//! One static binary with three lives, one after the other in a guest:
//!
//! 1. `/init` of the initramfs: finds the root file system and makes it the root (`init`);
//! 2. PID 1 of the guest: mounts, network, reaping (`init`);
//! 3. its child, the agent proper: processes and files for callers (`agent`).
//!
//! The third also runs alone on an ordinary machine: `envd agent --port 49983`.
//!
//! Architecture invariant: it shares nothing with the daemon but the wire.

#![allow(clippy::print_stderr, clippy::print_stdout, reason = "both are the guest's console")]
#![allow(unsafe_code, reason = "PID 1 and what it starts are made of system calls")]

mod agent;
mod filesystem;
mod http;
mod init;
mod process;
#[cfg(test)]
#[path = "../../tests/support/skip.rs"]
mod skip;

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use agent::settings::Place;

/// Where SDKs expect the agent.
const PORT: u16 = 49983;

const USAGE: &str = "usage: envd agent [--guest] [--port PORT]\n       envd version";

/// What to do, as the command line says.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Agent { place: Place, port: u16 },
    Version,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // The kernel hands parameters it does not know to PID 1, so they mean nothing there.
    if std::process::id() == 1 && args.first().is_none_or(|first| first != "agent") {
        return init::run();
    }
    match parse(&args) {
        Some(Command::Agent { place, port }) => {
            let address = match place {
                Place::Guest => Ipv4Addr::UNSPECIFIED,
                // On a shared machine its powers are for local callers only.
                Place::Host => Ipv4Addr::LOCALHOST,
            };
            match agent::run(SocketAddr::from((address, port)), place) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("envd: {}", chain(&error));
                    ExitCode::FAILURE
                }
            }
        }
        Some(Command::Version) => {
            println!("{}", nestbox_proto::ENVD_VERSION);
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn parse(args: &[String]) -> Option<Command> {
    let mut args = args.iter().map(String::as_str);
    match args.next()? {
        "agent" => {
            let (mut place, mut port) = (Place::Host, PORT);
            while let Some(arg) = args.next() {
                match arg {
                    "--guest" => place = Place::Guest,
                    "--port" => port = args.next()?.parse().ok()?,
                    _ => return None,
                }
            }
            Some(Command::Agent { place, port })
        }
        "version" => args.next().is_none().then_some(Command::Version),
        _ => None,
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_taken_whole_or_not_at_all() {
        let parse = |line: &str| {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            parse(&args)
        };
        assert_eq!(parse("agent"), Some(Command::Agent { place: Place::Host, port: PORT }));
        let guest = Some(Command::Agent { place: Place::Guest, port: 1 });
        assert_eq!(parse("agent --guest --port 1"), guest);
        assert_eq!(parse("version"), Some(Command::Version));
        for wrong in ["", "agnet", "agent --port", "agent --port x", "agent more", "version 2"] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
