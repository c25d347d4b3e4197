//! The tools, each a request or two of the API. What goes wrong is the tool's result, in words for
//! the agent: a protocol's error is one that clients do not show it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Error, Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::TryStreamExt;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, Implementation, ServerCapabilities, ServerConfig};
use rmcp::{ServerHandler, tool, tool_handler, tool_router};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::arguments::{
    CodeArguments, CommandArguments, ContentEncoding, CreateArguments, NoArguments,
    ProgrammingLanguage, ReadArguments, SandboxArguments, USUAL_COMMAND_SEC, USUAL_TIMEOUT_SEC,
    WriteArguments,
};
use super::shown::{Ends, line, result, told};
use crate::cli::client::{
    BackgroundRequest, Client, ClientError, CreateRequest, ExecRequest, ListQuery, NetworkRequest,
    There, Tracing,
};
use crate::cli::lease::Renewal;
use crate::cli::output::tell;
use crate::domain::egress::{Rule, Verdict};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;

/// Bytes that fit into an argument of a command: 32 pages, less what else is there.
const LONGEST_ARGUMENT: usize = 120 << 10;

/// Seconds after which a sandbox that was made for one run ends by itself, if we cannot end it.
const ONE_RUN_TIMEOUT_SEC: u32 = 60;

const INSTRUCTIONS: &str = "\
Sandboxes are virtual machines to run untrusted code in. Create one, run code and commands in it, read \
and write its files, and destroy it when you are done. One that is paused keeps its memory and its \
processes on disk, and goes on where it was when it is resumed.";

/// The tools of one session.
#[derive(Clone)]
pub struct Tools {
    client: Arc<Client>,
    lease_sec: u32,
    /// The leases of what was created here, by id.
    leases: Arc<Mutex<HashMap<String, Renewal>>>,
    /// Calls that have something to take away when they are cancelled.
    tidying: TaskTracker,
}

impl Tools {
    pub fn new(client: Client, lease_sec: u32) -> Self {
        let (leases, tidying) = (Arc::default(), TaskTracker::new());
        Self { client: Arc::new(client), lease_sec, leases, tidying }
    }

    /// Has what was created here live on without us, until it times out.
    pub async fn give_leases_up(&self) {
        let leases = std::mem::take(&mut *self.leases());
        for (id, renewal) in leases {
            // Or it would be renewed after that.
            drop(renewal);
            match self.client.end_lease(&id).await {
                // Some are gone by now.
                Ok(()) | Err(ClientError::Refused { .. }) => {}
                Err(error) => tell(&format!("nestbox: the sandbox {id} ends soon: {error}")),
            }
        }
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<String, Renewal>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when no cancelled call has anything to take away any more, once no more calls come.
    pub fn tidying(&self) -> TaskTracker {
        self.tidying.clone()
    }
}

#[tool_handler]
impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("nestbox", env!("CARGO_PKG_VERSION")))
            .with_instructions(INSTRUCTIONS)
    }
}

#[tool_router]
impl Tools {
    #[tool(
        description = "Create a sandbox: a virtual machine of its own, in which code can do no harm. Gives its id. It is destroyed when nothing was done in it for timeout_sec.",
        annotations(destructive_hint = false)
    )]
    async fn create_sandbox(
        &self,
        Parameters(arguments): Parameters<CreateArguments>,
        cancelled: CancellationToken,
    ) -> CallToolResult {
        let creating = self.create_unless(arguments, cancelled);
        let created = self.tidying.track_future(creating).await;
        result(created.map(|id| format!("The sandbox {id} is running.")))
    }

    #[tool(
        description = "List the sandboxes that there are, with their states.",
        annotations(read_only_hint = true)
    )]
    async fn list_sandboxes(&self, _: Parameters<NoArguments>) -> CallToolResult {
        let query = ListQuery { states: SandboxState::living(), metadata: Default::default() };
        let list = self.client.list(&query).await.map(|sandboxes| match sandboxes.is_empty() {
            true => "There are none.".to_owned(),
            false => sandboxes.iter().map(line).collect::<Vec<_>>().join("\n"),
        });
        result(list.map_err(Into::into))
    }

    #[tool(
        description = "Run a program that is given as text, and give its output and exit code. In a sandbox, or without one in a new one that is destroyed afterwards."
    )]
    async fn run_code(
        &self,
        Parameters(arguments): Parameters<CodeArguments>,
        cancelled: CancellationToken,
    ) -> CallToolResult {
        result(self.tidying.track_future(self.code(arguments, cancelled)).await)
    }

    #[tool(
        description = "Run a shell command in a sandbox, and give its output and exit code; or let it run in the background."
    )]
    async fn run_command(
        &self,
        Parameters(arguments): Parameters<CommandArguments>,
        cancelled: CancellationToken,
    ) -> CallToolResult {
        result(self.command(arguments, cancelled).await)
    }

    #[tool(
        description = "Read a text file of a sandbox. Of a long one the beginning and the end.",
        annotations(read_only_hint = true)
    )]
    async fn read_file(
        &self,
        Parameters(arguments): Parameters<ReadArguments>,
        cancelled: CancellationToken,
    ) -> CallToolResult {
        result(unless(&cancelled, self.read(arguments)).await)
    }

    #[tool(description = "Write a file of a sandbox, in place of what is there.")]
    async fn write_file(
        &self,
        Parameters(arguments): Parameters<WriteArguments>,
        cancelled: CancellationToken,
    ) -> CallToolResult {
        result(unless(&cancelled, self.write(arguments)).await)
    }

    #[tool(
        description = "Freeze a sandbox to disk, with its memory and all that runs in it.",
        annotations(destructive_hint = false, idempotent_hint = true)
    )]
    async fn pause_sandbox(
        &self,
        Parameters(SandboxArguments { sandbox_id }): Parameters<SandboxArguments>,
    ) -> CallToolResult {
        let paused = self.client.pause(sandbox_id.as_str(), Tracing::Off).await;
        result(paused.map(|sandbox| line(&sandbox)).map_err(Into::into))
    }

    #[tool(
        description = "Let a paused sandbox go on where it was.",
        annotations(destructive_hint = false, idempotent_hint = true)
    )]
    async fn resume_sandbox(
        &self,
        Parameters(SandboxArguments { sandbox_id }): Parameters<SandboxArguments>,
    ) -> CallToolResult {
        let resumed = self.client.resume(sandbox_id.as_str(), Tracing::Off).await;
        result(resumed.map(|sandbox| line(&sandbox)).map_err(Into::into))
    }

    #[tool(
        description = "Destroy a sandbox with all that is in it.",
        annotations(destructive_hint = true, idempotent_hint = true)
    )]
    async fn destroy_sandbox(
        &self,
        Parameters(SandboxArguments { sandbox_id }): Parameters<SandboxArguments>,
    ) -> CallToolResult {
        let destroyed = self.destroy(sandbox_id.as_str()).await;
        let told = destroyed.map(|()| format!("The sandbox {sandbox_id} is gone."));
        result(told.map_err(Into::into))
    }
}

impl Tools {
    /// Creates one for an agent that may have stopped waiting: it never learns the id then.
    async fn create_unless(
        &self,
        arguments: CreateArguments,
        cancelled: CancellationToken,
    ) -> Result<String> {
        let id = self.create(arguments).await?;
        if cancelled.is_cancelled() {
            self.destroy(&id).await?;
            bail!("it was cancelled, and the sandbox is destroyed");
        }
        Ok(id)
    }

    async fn create(&self, arguments: CreateArguments) -> Result<String> {
        let CreateArguments { template, vcpus, memory_mb, timeout_sec, reach, envs } = arguments;
        let network = match reach {
            None => None,
            Some(reach) => {
                let allow: Result<_, _> = reach.iter().map(|rule| rule.parse::<Rule>()).collect();
                Some(NetworkRequest {
                    default: Some(Verdict::Deny),
                    allow: allow?,
                    deny: Vec::new(),
                })
            }
        };
        let request = CreateRequest {
            template: template.unwrap_or_else(|| "debian".to_owned()),
            vcpus,
            memory_mb,
            timeout_sec: Some(timeout_sec.unwrap_or(USUAL_TIMEOUT_SEC)),
            lease_sec: Some(self.lease_sec),
            envs,
            network,
            ..CreateRequest::default()
        };
        let id = self.client.create(&request, None, Tracing::Off).await?.id;
        let renewal = Renewal::start(&self.client, &id, self.lease_sec);
        let mut leases = self.leases();
        leases.retain(|_, renewal| !renewal.is_over());
        leases.insert(id.clone(), renewal);
        Ok(id)
    }

    async fn destroy(&self, id: &str) -> Result<(), ClientError> {
        self.client.destroy(id).await?;
        self.leases().remove(id);
        Ok(())
    }

    async fn code(&self, arguments: CodeArguments, cancelled: CancellationToken) -> Result<String> {
        let CodeArguments { sandbox_id, language, code, timeout_sec } = arguments;
        let cmd = match language {
            ProgrammingLanguage::Python => "python3",
            ProgrammingLanguage::Bash => "bash",
        };
        let request = ExecRequest {
            cmd: cmd.to_owned(),
            args: vec!["-c".to_owned(), code],
            timeout_sec: Some(timeout_sec.unwrap_or(USUAL_COMMAND_SEC)),
            ..ExecRequest::default()
        };
        short_enough(&request)?;
        match sandbox_id {
            Some(id) => self.exec(&id, &request, &cancelled).await,
            None => self.exec_in_a_new_one(&request, &cancelled).await,
        }
    }

    async fn exec_in_a_new_one(
        &self,
        request: &ExecRequest,
        cancelled: &CancellationToken,
    ) -> Result<String> {
        let timeout_sec = Some(ONE_RUN_TIMEOUT_SEC);
        let new = CreateArguments { timeout_sec, ..CreateArguments::default() };
        let id = self.create(new).await?.parse::<SandboxId>()?;
        let answer = self.exec(&id, request, cancelled).await;
        let destroyed = self.destroy(id.as_str()).await;
        // What the program printed is not lost when the clean-up fails.
        match (answer, destroyed) {
            (answer, Ok(())) => answer,
            (Ok(told), Err(error)) => {
                Ok(format!("{told}\nThe sandbox {id} was not destroyed: {:#}", Error::from(error)))
            }
            (Err(failed), Err(_)) => Err(failed),
        }
    }

    async fn command(
        &self,
        arguments: CommandArguments,
        cancelled: CancellationToken,
    ) -> Result<String> {
        let CommandArguments { sandbox_id, command, cwd, user, timeout_sec, background } =
            arguments;
        let exec = ExecRequest {
            cmd: "sh".to_owned(),
            args: vec!["-c".to_owned(), command],
            cwd,
            user,
            ..ExecRequest::default()
        };
        short_enough(&exec)?;
        if background {
            if timeout_sec.is_some() {
                bail!("timeout_sec is not for what runs in the background");
            }
            let request = BackgroundRequest { exec, background: true, tag: None };
            let started = self.client.exec_background(sandbox_id.as_str(), &request).await?;
            return Ok(format!("It runs in the background as process {}.", started.pid));
        }
        let timeout_sec = Some(timeout_sec.unwrap_or(USUAL_COMMAND_SEC));
        self.exec(&sandbox_id, &ExecRequest { timeout_sec, ..exec }, &cancelled).await
    }

    async fn exec(
        &self,
        id: &SandboxId,
        request: &ExecRequest,
        cancelled: &CancellationToken,
    ) -> Result<String> {
        // The daemon kills a command that nobody waits for any more.
        unless(cancelled, async { told(&self.client.exec(id.as_str(), request).await?) }).await
    }

    async fn read(&self, ReadArguments { sandbox_id, path }: ReadArguments) -> Result<String> {
        let response = self.client.read_file(There::new(sandbox_id.as_str(), &path)).await?;
        let mut pieces = response.bytes_stream();
        let mut shown = Ends::default();
        while let Some(piece) = pieces.try_next().await? {
            shown.add(&piece);
        }
        match shown.text() {
            Some(text) => Ok(text),
            None => bail!("{path} is not text: look at it with a command, such as base64 or xxd"),
        }
    }

    async fn write(&self, arguments: WriteArguments) -> Result<String> {
        let WriteArguments { sandbox_id, path, content, encoding } = arguments;
        let content = match encoding {
            ContentEncoding::Utf8 => content.into_bytes(),
            ContentEncoding::Base64 => match BASE64_STANDARD.decode(content) {
                Ok(content) => content,
                Err(error) => bail!("the content is no base64: {error}"),
            },
        };
        let written =
            self.client.write_file(There::new(sandbox_id.as_str(), &path), content.into()).await?;
        Ok(format!("{} bytes are in {}.", written.size, written.path))
    }
}

/// Does something that leaves nothing behind when it is given up.
async fn unless<T>(
    cancelled: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    cancelled.run_until_cancelled(work).await.unwrap_or_else(|| bail!("it was cancelled"))
}

fn short_enough(request: &ExecRequest) -> Result<()> {
    if request.args.iter().any(|argument| argument.len() > LONGEST_ARGUMENT) {
        bail!("it is longer than {LONGEST_ARGUMENT} bytes: write it to a file, and run that");
    }
    Ok(())
}
