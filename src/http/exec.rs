//! `POST /v1/sandboxes/{id}/exec`: a command, run to its end or left to run in the background.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::{HttpResponse, post, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::auth::Caller;
use super::body::Json;
use super::error::ApiError;
use super::json_stream::{self, Long};
use super::openapi::failures::Work;
use super::openapi::{Routes, Section};
use super::sandboxes::check_environment;
use crate::actors::control::ControlPlane;
use crate::domain::exec::{Exec, ExecEnd, ExecOutput};
use crate::domain::id::SandboxId;
use crate::domain::object::or_default;
use crate::domain::process::Tag;

/// Bytes of both outputs up to which an answer is made at once.
const WHOLE: usize = 64 << 10;

/// Bytes of standard output and of standard error that an answer holds, each.
pub const OUTPUT_LIMIT: usize = 8 << 20;

/// What `timeout(1)` exits with when it had to kill.
const TIMED_OUT_CODE: i32 = 124;

/// The largest time limit: a week.
const MAX_TIMEOUT_SEC: u64 = 7 * 24 * 3600;

/// Body of the request.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Command, examples(
    json!({"cmd": "python3 -c 'print(6 * 7)'", "timeout_sec": 60}),
    json!({"cmd": "python3", "args": ["-m", "http.server"], "background": true, "tag": "web"}),
))]
pub(super) struct ExecBody {
    /// With `args` a program, else a line for `/bin/sh -c`.
    #[schema(min_length = 1)]
    pub cmd: String,
    /// Arguments of the program.
    pub args: Option<Vec<String>>,
    /// Variables beside those of the sandbox.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub envs: BTreeMap<String, String>,
    /// Where it runs; the user's home if absent.
    pub cwd: Option<String>,
    /// Who runs it; `user` if absent, or `root` where there is none.
    pub user: Option<String>,
    /// Seconds after which it is killed; not for what runs in the background.
    #[schema(minimum = 1, maximum = 604_800)]
    pub timeout_sec: Option<u64>,
    /// Whether it runs on while nobody waits for it.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    pub background: bool,
    /// Names what runs in the background.
    pub tag: Option<Tag>,
}

/// What runs in the background now.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Begun, examples(json!({"pid": 217, "tag": "web"})))]
struct BackgroundView {
    /// By which it is known.
    pid: u32,
    /// By which it is known too.
    tag: Option<Tag>,
}

/// How bytes are written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(super) enum Encoding {
    /// As they are.
    #[serde(rename = "utf-8")]
    Utf8,
    /// Because some of them are not UTF-8.
    #[serde(rename = "base64")]
    Base64,
}

/// How a command ended, and what it wrote.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Ended, examples(json!({
    "stdout": "42\n",
    "stderr": "",
    "exit_code": 0,
    "duration_ms": 31,
    "encoding": "utf-8",
    "timed_out": false,
    "truncated": false,
})))]
struct ExecView {
    /// Up to 8 MiB.
    stdout: String,
    /// Up to 8 MiB.
    stderr: String,
    /// 124 if its time was over, 127 if there is no such command.
    exit_code: i32,
    /// How long it ran.
    duration_ms: u64,
    /// Of both outputs.
    encoding: Encoding,
    /// Whether it was killed because its time was over.
    timed_out: bool,
    /// Whether there was more output than is shown; the first part of it is.
    truncated: bool,
}

/// What is answered to a command.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = CommandAnswer)]
enum Answer {
    /// It was waited for.
    Ended(ExecView),
    /// It runs in the background.
    Begun(BackgroundView),
}

/// Runs a command in a sandbox.
///
/// It ends with the request, unless it is to run in the background.
#[utoipa::path(
    operation_id = "runCommand",
    params(SandboxId),
    responses((status = 200, description = "It ended, or it runs.", body = Answer), Work),
)]
#[post("/sandboxes/{id}/exec")]
async fn exec(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: Json<ExecBody>,
) -> Result<HttpResponse, ApiError> {
    let mut body = body.0;
    let (background, tag) = (body.background, body.tag.take());
    if background && body.timeout_sec.is_some() {
        return Err(ApiError::invalid("timeout_sec is for commands that are waited for"));
    }
    if !background && tag.is_some() {
        return Err(ApiError::invalid("a tag is for what runs in the background"));
    }
    let command = command(body)?;
    if background {
        let pid = control.workplace(&id).await?.start_process(command, tag.clone()).await?;
        return Ok(HttpResponse::Ok().json(Answer::Begun(BackgroundView { pid, tag })));
    }
    Ok(answer(control.workplace(&id).await?.exec(command).await?))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Commands).add(exec);
}

/// What to run.
///
/// # Errors
///
/// 400 with what is wrong.
pub(super) fn command(body: ExecBody) -> Result<Exec, ApiError> {
    let has_nul = |text: &str| text.contains('\0');
    if body.cmd.is_empty() {
        return Err(ApiError::invalid("cmd is empty"));
    }
    let words = body.args.iter().flatten().chain([&body.cmd]).chain(&body.cwd).chain(&body.user);
    if words.into_iter().any(|word| has_nul(word)) {
        return Err(ApiError::invalid("a command may not contain NUL characters"));
    }
    check_environment(&body.envs)?;
    if body.timeout_sec.is_some_and(|seconds| !(1..=MAX_TIMEOUT_SEC).contains(&seconds)) {
        return Err(ApiError::invalid(format!("timeout_sec is from 1 to {MAX_TIMEOUT_SEC}")));
    }
    let (cmd, args) = match body.args {
        Some(args) => (body.cmd, args),
        None => ("/bin/sh".to_owned(), vec!["-c".to_owned(), body.cmd]),
    };
    Ok(Exec {
        cmd,
        args,
        envs: body.envs,
        cwd: body.cwd,
        user: body.user,
        time_limit: body.timeout_sec.map(Duration::from_secs),
        output_limit: OUTPUT_LIMIT,
    })
}

/// The answer to a command that was waited for.
fn answer(output: ExecOutput) -> HttpResponse {
    let truncated = output.dropped > 0;
    let (stdout, stderr, encoding) = match (text(output.stdout), text(output.stderr)) {
        (Ok(stdout), Ok(stderr)) => (Long::Text(stdout), Long::Text(stderr), Encoding::Utf8),
        (stdout, stderr) => {
            let bytes = |text: Result<String, Vec<u8>>| {
                Long::Bytes(text.map_or_else(|bytes| bytes, String::into_bytes))
            };
            (bytes(stdout), bytes(stderr), Encoding::Base64)
        }
    };
    let (exit_code, timed_out) = match output.end {
        ExecEnd::Exited(code) => (code, false),
        ExecEnd::TimedOut | ExecEnd::Abandoned => (TIMED_OUT_CODE, true),
    };
    let duration_ms = u64::try_from(output.duration.as_millis()).unwrap_or(u64::MAX);
    let view = |stdout, stderr| ExecView {
        stdout,
        stderr,
        exit_code,
        duration_ms,
        encoding,
        timed_out,
        truncated,
    };
    if stdout.len() + stderr.len() <= WHOLE {
        let view = view(stdout.whole(), stderr.whole());
        return HttpResponse::Ok().json(Answer::Ended(view));
    }
    let around = serde_json::to_string(&view(String::new(), String::new()));
    let around = around.expect("a view makes JSON");
    let behind = around.strip_prefix("{\"stdout\":\"\",\"stderr\":\"").expect("its first fields");
    let parts = [("{\"stdout\":\"", stdout), ("\",\"stderr\":\"", stderr)];
    json_stream::texts(parts.map(|(before, long)| (before.to_owned(), long)), behind.to_owned())
}

/// The bytes as text, if they are. What was cut in the middle of a character is text too, without that
/// one.
fn text(bytes: Vec<u8>) -> Result<String, Vec<u8>> {
    let cut = bytes.len() == OUTPUT_LIMIT;
    String::from_utf8(bytes).or_else(|error| {
        let (whole, end) = (error.utf8_error().valid_up_to(), error.utf8_error().error_len());
        let mut bytes = error.into_bytes();
        if !cut || end.is_some() {
            return Err(bytes);
        }
        bytes.truncate(whole);
        String::from_utf8(bytes).map_err(std::string::FromUtf8Error::into_bytes)
    })
}
