//! The tools, each a request or two of the API. What goes wrong is the tool's result, in words for
//! the agent: a protocol's error is one that clients do not show it.

use std::sync::Arc;

use anyhow::{Result, bail};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::TryStreamExt;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::{CallToolResult, ContentBlock, Implementation, ServerCapabilities, ServerConfig};
use rmcp::{ServerHandler, tool, tool_handler, tool_router};
use tokio_util::sync::CancellationToken;

use super::arguments::{
    CodeArguments, CommandArguments, ContentEncoding, CreateArguments, NoArguments,
    ProgrammingLanguage, ReadArguments, SandboxArguments, USUAL_COMMAND_SEC, USUAL_TIMEOUT_SEC,
    WriteArguments,
};
use crate::cli::client::{
    BackgroundRequest, Client, CreateRequest, ExecAnswer, ExecRequest, ListQuery, NetworkRequest,
    Sandbox, Tracing,
};
use crate::cli::resolve::live_states;
use crate::domain::egress::{Rule, Verdict};

/// Bytes of each stream, or of a file, that an agent gets to read.
const SHOWN: usize = 32 << 10;

/// Bytes of a program that fit into an argument of a command: 32 pages, less what else is there.
const LONGEST_CODE: usize = 120 << 10;

const INSTRUCTIONS: &str = "\
Sandboxes are virtual machines to run untrusted code in. Create one, run code and commands in it, read \
and write its files, and destroy it when you are done. One that is paused keeps its memory and its \
processes on disk, and goes on where it was when it is resumed.";

/// The tools of one session.
#[derive(Clone)]
pub struct Tools {
    client: Arc<Client>,
}

impl Tools {
    pub fn new(client: Client) -> Self {
        Self { client: Arc::new(client) }
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
        description = "Create a sandbox: a virtual machine of its own, in which code can do no harm. Gives its id. It is destroyed when nothing was done in it for timeout_sec."
    )]
    async fn create_sandbox(
        &self,
        Parameters(arguments): Parameters<CreateArguments>,
    ) -> CallToolResult {
        let sandbox = self.create(arguments).await;
        result(sandbox.map(|sandbox| format!("The sandbox {} is running.", sandbox.id)))
    }

    #[tool(description = "List the sandboxes that there are, with their states.")]
    async fn list_sandboxes(&self, _: Parameters<NoArguments>) -> CallToolResult {
        let query = ListQuery { states: live_states(), metadata: Default::default() };
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
        // A sandbox that is made for it is destroyed also if nobody waits any more.
        let tools = self.clone();
        let running = tokio::spawn(async move { tools.code(arguments, cancelled).await });
        result(running.await.unwrap_or_else(|error| Err(error.into())))
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

    #[tool(description = "Read a text file of a sandbox. Of a long one the beginning and the end.")]
    async fn read_file(&self, Parameters(arguments): Parameters<ReadArguments>) -> CallToolResult {
        result(self.read(arguments).await)
    }

    #[tool(description = "Write a file of a sandbox, in place of what is there.")]
    async fn write_file(
        &self,
        Parameters(arguments): Parameters<WriteArguments>,
    ) -> CallToolResult {
        result(self.write(arguments).await)
    }

    #[tool(description = "Freeze a sandbox to disk, with its memory and all that runs in it.")]
    async fn pause_sandbox(
        &self,
        Parameters(SandboxArguments { sandbox_id }): Parameters<SandboxArguments>,
    ) -> CallToolResult {
        let paused = self.client.pause(&sandbox_id, Tracing::Off).await;
        result(paused.map(|sandbox| line(&sandbox)).map_err(Into::into))
    }

    #[tool(description = "Let a paused sandbox go on where it was.")]
    async fn resume_sandbox(
        &self,
        Parameters(SandboxArguments { sandbox_id }): Parameters<SandboxArguments>,
    ) -> CallToolResult {
        let resumed = self.client.resume(&sandbox_id, Tracing::Off).await;
        result(resumed.map(|sandbox| line(&sandbox)).map_err(Into::into))
    }

    #[tool(description = "Destroy a sandbox with all that is in it.")]
    async fn destroy_sandbox(
        &self,
        Parameters(SandboxArguments { sandbox_id }): Parameters<SandboxArguments>,
    ) -> CallToolResult {
        let destroyed = self.client.destroy(&sandbox_id).await;
        let told = destroyed.map(|()| format!("The sandbox {sandbox_id} is gone."));
        result(told.map_err(Into::into))
    }
}

impl Tools {
    async fn create(&self, arguments: CreateArguments) -> Result<Sandbox> {
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
            envs,
            network,
            ..CreateRequest::default()
        };
        Ok(self.client.create(&request, None, Tracing::Off).await?)
    }

    async fn code(&self, arguments: CodeArguments, cancelled: CancellationToken) -> Result<String> {
        let CodeArguments { sandbox_id, language, code, timeout_sec } = arguments;
        if code.len() > LONGEST_CODE {
            bail!(
                "the program is longer than {LONGEST_CODE} bytes: write it to a file, and run that"
            );
        }
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
        let Some(id) = sandbox_id else {
            let new = CreateArguments {
                template: None,
                vcpus: None,
                memory_mb: None,
                timeout_sec: None,
                reach: None,
                envs: Default::default(),
            };
            let id = self.create(new).await?.id;
            let answer = self.exec(&id, &request, &cancelled).await;
            self.client.destroy(&id).await?;
            return answer;
        };
        self.exec(&id, &request, &cancelled).await
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
        if background {
            if timeout_sec.is_some() {
                bail!("timeout_sec is not for what runs in the background");
            }
            let request = BackgroundRequest { exec, background: true, tag: None };
            let started = self.client.exec_background(&sandbox_id, &request).await?;
            return Ok(format!("It runs in the background as process {}.", started.pid));
        }
        let timeout_sec = Some(timeout_sec.unwrap_or(USUAL_COMMAND_SEC));
        self.exec(&sandbox_id, &ExecRequest { timeout_sec, ..exec }, &cancelled).await
    }

    async fn exec(
        &self,
        id: &str,
        request: &ExecRequest,
        cancelled: &CancellationToken,
    ) -> Result<String> {
        tokio::select! {
            answer = self.client.exec(id, request) => told(&answer?),
            // The daemon kills a command that nobody waits for any more.
            () = cancelled.cancelled() => bail!("it was cancelled, and killed"),
        }
    }

    async fn read(&self, ReadArguments { sandbox_id, path }: ReadArguments) -> Result<String> {
        let response = self.client.read_file(&sandbox_id, &path).await?;
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
        let written = self.client.write_file(&sandbox_id, &path, content.into()).await?;
        Ok(format!("{} bytes are in {}.", written.size, written.path))
    }
}

/// Beginning and end of something that may be long.
#[derive(Default)]
struct Ends {
    first: Vec<u8>,
    last: Vec<u8>,
    /// Bytes between the two.
    left_out: usize,
}

impl Ends {
    fn add(&mut self, piece: &[u8]) {
        let (first, rest) = piece.split_at(piece.len().min(SHOWN / 2 - self.first.len()));
        self.first.extend_from_slice(first);
        self.last.extend_from_slice(rest);
        // Now and then is enough, and no more work than once for each byte.
        if self.last.len() > SHOWN {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let too_much = self.last.len().saturating_sub(SHOWN / 2);
        self.left_out += too_much;
        self.last.drain(..too_much);
    }

    /// None if it is not text.
    fn text(mut self) -> Option<String> {
        self.cut();
        if self.left_out == 0 {
            self.first.extend_from_slice(&self.last);
            return String::from_utf8(self.first).ok();
        }
        // A character may be cut in two where something is left out, and only there.
        let kept = match std::str::from_utf8(&self.first) {
            Err(error) if error.error_len().is_some() => return None,
            Err(error) => error.valid_up_to(),
            Ok(_) => self.first.len(),
        };
        let skipped = self.last.iter().take_while(|byte| **byte & 0xc0 == 0x80).count().min(3);
        let left_out = self.left_out + skipped + self.first.len() - kept;
        let first = std::str::from_utf8(&self.first[..kept]).ok()?;
        let last = std::str::from_utf8(&self.last[skipped..]).ok()?;
        Some(format!("{first}\n[... {left_out} bytes are left out here ...]\n{last}"))
    }
}

/// What came of a command, for somebody to read.
fn told(answer: &ExecAnswer) -> Result<String> {
    let mut parts = Vec::new();
    for (name, text) in [("stdout", &answer.stdout), ("stderr", &answer.stderr)] {
        let mut shown = Ends::default();
        shown.add(String::from_utf8_lossy(&answer.encoding.decode(text)?).as_bytes());
        let text = shown.text().unwrap_or_default();
        if !text.is_empty() {
            parts.push(format!("{name}:\n{}", text.trim_end_matches('\n')));
        }
    }
    parts.push(match answer.timed_out {
        true => "It was killed, because its time was over.".to_owned(),
        false => format!("exit code: {}", answer.exit_code),
    });
    Ok(parts.join("\n"))
}

fn line(sandbox: &Sandbox) -> String {
    let Sandbox { id, template, state, vcpus, memory_mb, .. } = sandbox;
    format!("{id}: {state}, of {template}, {vcpus} vCPU, {memory_mb} MiB")
}

fn result(outcome: Result<String>) -> CallToolResult {
    match outcome {
        Ok(text) => CallToolResult::success(vec![ContentBlock::text(text)]),
        Err(error) => CallToolResult::error(vec![ContentBlock::text(format!("{error:#}"))]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(pieces: &[&[u8]]) -> Option<String> {
        let mut ends = Ends::default();
        pieces.iter().for_each(|piece| ends.add(piece));
        ends.text()
    }

    #[test]
    fn what_is_short_is_shown_whole() {
        assert_eq!(ends(&[b"a", "ü".as_bytes(), b""]), Some("aü".to_owned()));
        let most = "x".repeat(SHOWN);
        assert_eq!(ends(&[most.as_bytes()]), Some(most));
        assert_eq!(ends(&[b"a\xff"]), None);
    }

    #[test]
    fn of_what_is_long_both_ends_are_shown_and_how_much_is_not() {
        // Two bytes each, and the first byte has them cut in two.
        let long = format!("b{}e", "ü".repeat(SHOWN));
        for size in [1000, 7001, usize::MAX] {
            let pieces: Vec<_> = long.as_bytes().chunks(size.min(long.len())).collect();
            let text = ends(&pieces).unwrap();
            let (first, rest) = text.split_once("\n[... ").unwrap();
            let (left_out, last) = rest.split_once(" bytes are left out here ...]\n").unwrap();
            assert!(first.starts_with("bü") && last.ends_with("üe"), "{size}");
            let left_out: usize = left_out.parse().unwrap();
            assert_eq!(first.len() + left_out + last.len(), long.len(), "{size}");
            assert!(text.len() <= SHOWN + 60, "{size}");
        }
        assert_eq!(ends(&[&[0xff], "x".repeat(3 * SHOWN).as_bytes()]), None);
    }
}
