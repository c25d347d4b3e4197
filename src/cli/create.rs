//! `create`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::client::{Client, CreateRequest, RateLimitsRequest};
use super::network::EgressArgs;
use super::output::Format;
use super::pairs::{env_pair, map, pair};
use super::trace::{TraceArgs, tell_trace};
use crate::domain::port::GuestPort;

/// Arguments of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub(super) spec: SandboxArgs,
    /// Name for this request: repeated with the same name, it gives the same sandbox
    #[arg(long, value_name = "NAME")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    pub(super) trace: TraceArgs,
}

/// What a new sandbox shall be; also part of `run`.
#[derive(Debug, Args)]
pub struct SandboxArgs {
    /// Image or snapshot to create it from; vCPUs and memory of a snapshot are its own
    #[arg(long, value_name = "NAME", default_value = "debian")]
    template: String,
    /// Number of virtual CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Option<u32>,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..))]
    memory_mb: Option<u32>,
    /// Seconds without activity after which it ends
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    timeout_sec: Option<u32>,
    /// Environment variable for everything that runs in it; without a value, the one it has here
    #[arg(long = "env", short, value_name = "KEY[=VALUE]", value_parser = env_pair)]
    envs: Vec<(String, String)>,
    /// Label to find it by
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Port of it that anybody may reach
    #[arg(long = "public-port", value_name = "PORT")]
    public_ports: Vec<GuestPort>,
    #[command(flatten)]
    egress: EgressArgs,
    #[command(flatten)]
    rate_limits: RateLimitsRequest,
}

impl From<SandboxArgs> for CreateRequest {
    fn from(args: SandboxArgs) -> Self {
        Self {
            template: args.template,
            vcpus: args.vcpus,
            memory_mb: args.memory_mb,
            timeout_sec: args.timeout_sec,
            lease_sec: None,
            envs: map(args.envs),
            metadata: map(args.metadata),
            public_ports: args.public_ports,
            network: args.egress.into_request(),
            rate_limits: args.rate_limits,
        }
    }
}

pub(super) async fn run(client: &Client, format: Format, args: CreateArgs) -> Result<ExitCode> {
    let sandbox = client
        .create(&args.spec.into(), args.idempotency_key.as_deref(), args.trace.tracing())
        .await?;
    format.print(&sandbox, || format!("{}\n", sandbox.id))?;
    tell_trace(format, sandbox.trace.as_deref());
    Ok(ExitCode::SUCCESS)
}
