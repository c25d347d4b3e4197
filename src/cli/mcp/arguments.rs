//! What an agent gives to the tools. What is said of a field here is what the agent reads.

use std::collections::BTreeMap;

use rmcp::schemars;
use rmcp::schemars::JsonSchema;
use serde::Deserialize;

use crate::domain::id::SandboxId;

/// Seconds without activity after which a sandbox ends that nobody said more of.
pub const USUAL_TIMEOUT_SEC: u32 = 3600;

/// Seconds that a command may take if nobody said more.
pub const USUAL_COMMAND_SEC: u32 = 120;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateArguments {
    /// Image or named snapshot to create it from. Default: debian (Debian 12 with Python 3, git, curl)
    pub template: Option<String>,
    /// Number of virtual CPUs. Default: 1
    pub vcpus: Option<u32>,
    /// Memory in MiB. Default: 512
    pub memory_mb: Option<u32>,
    /// Seconds without activity after which it is destroyed. Default: 3600
    pub timeout_sec: Option<u32>,
    /// All that it may reach: names such as pypi.org or *.example.com for TLS and HTTP, names with a
    /// port such as github.com:22 for anything else, addresses and networks. An empty list is no network
    /// at all. Default: everything but private networks
    pub reach: Option<Vec<String>>,
    /// Environment variables for everything that runs in it
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxArguments {
    /// Id of the sandbox
    #[schemars(with = "String")]
    pub sandbox_id: SandboxId,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoArguments {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProgrammingLanguage {
    Python,
    Bash,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CodeArguments {
    /// Id of the sandbox to run it in; without one it runs in a new sandbox, which is destroyed afterwards
    #[schemars(with = "Option<String>")]
    pub sandbox_id: Option<SandboxId>,
    /// What the code is written in
    pub language: ProgrammingLanguage,
    /// The program. Each run is a process of its own: variables do not stay, files do
    pub code: String,
    /// Seconds after which it is killed. Default: 120
    pub timeout_sec: Option<u32>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandArguments {
    /// Id of the sandbox
    #[schemars(with = "String")]
    pub sandbox_id: SandboxId,
    /// A line for the shell. What it leaves in the background is killed at its end: see `background`
    pub command: String,
    /// Directory to start in. Default: the user's home
    pub cwd: Option<String>,
    /// Unix user to run as; root is allowed. Default: user
    pub user: Option<String>,
    /// Seconds after which it is killed. Default: 120
    pub timeout_sec: Option<u32>,
    /// Whether to return at once and let it run on, such as a server
    #[serde(default)]
    pub background: bool,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReadArguments {
    /// Id of the sandbox
    #[schemars(with = "String")]
    pub sandbox_id: SandboxId,
    /// Path of the file; a relative one starts at the user's home
    pub path: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WriteArguments {
    /// Id of the sandbox
    #[schemars(with = "String")]
    pub sandbox_id: SandboxId,
    /// Path of the file; a relative one starts at the user's home. Directories are made
    pub path: String,
    /// All that shall be in it
    pub content: String,
    /// How `content` is written. Default: utf-8
    #[serde(default)]
    pub encoding: ContentEncoding,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ContentEncoding {
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}
