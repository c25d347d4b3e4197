//! `POST /v1/sandboxes/{id}/exec`: a command, run to its end or left to run in the background.

use std::collections::BTreeMap;
use std::time::Duration;

use actix_web::{HttpResponse, post, web};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::error::{ApiError, only};
use super::sandboxes::check_environment;
use crate::actors::control_plane::ControlPlane;
use crate::domain::exec::{Exec, ExecEnd, ExecOutput};
use crate::domain::id::SandboxId;
use crate::domain::process::Tag;

/// Bytes of standard output and of standard error that an answer holds, each.
pub const OUTPUT_LIMIT: usize = 8 << 20;

/// What `timeout(1)` exits with when it had to kill.
const TIMED_OUT_CODE: i32 = 124;

/// The largest time limit: a week.
const MAX_TIMEOUT_SEC: u64 = 7 * 24 * 3600;

/// Body of the request.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExecBody {
    /// With `args` a program, else a line for `/bin/sh -c`.
    pub cmd: String,
    pub args: Option<Vec<String>>,
    #[serde(default)]
    pub envs: BTreeMap<String, String>,
    pub cwd: Option<String>,
    pub user: Option<String>,
    pub timeout_sec: Option<u64>,
    /// Whether it runs on while nobody waits for it.
    #[serde(default)]
    pub background: bool,
    /// Names what runs in the background.
    pub tag: Option<Tag>,
}

/// What runs in the background now.
#[derive(Debug, Serialize)]
struct BackgroundView {
    pid: u32,
    tag: Option<Tag>,
}

/// How bytes are written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Encoding {
    /// As they are.
    #[serde(rename = "utf-8")]
    Utf8,
    /// Because some of them are not UTF-8.
    #[serde(rename = "base64")]
    Base64,
}

#[derive(Debug, Serialize)]
struct ExecView {
    stdout: String,
    stderr: String,
    /// 124 if its time was over, 127 if there is no such command.
    exit_code: i32,
    duration_ms: u64,
    encoding: Encoding,
    /// Whether it was killed because its time was over.
    timed_out: bool,
    /// Whether there was more output than is shown; the first part of it is.
    truncated: bool,
}

#[post("/sandboxes/{id}/exec")]
async fn exec(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: web::Json<ExecBody>,
) -> Result<HttpResponse, ApiError> {
    let mut body = body.into_inner();
    let (background, tag) = (body.background, body.tag.take());
    if background && body.timeout_sec.is_some() {
        return Err(ApiError::invalid("timeout_sec is for commands that are waited for"));
    }
    if !background && tag.is_some() {
        return Err(ApiError::invalid("a tag is for what runs in the background"));
    }
    let command = command(body)?;
    if background {
        let pid = control.start_process(&id, command, tag.clone()).await?;
        return Ok(HttpResponse::Ok().json(BackgroundView { pid, tag }));
    }
    Ok(HttpResponse::Ok().json(view(control.exec(&id, command).await?)))
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(exec).service(only("/sandboxes/{id}/exec", "POST"));
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

fn view(output: ExecOutput) -> ExecView {
    let truncated = output.dropped > 0;
    let (stdout, stderr, encoding) = match (text(&output.stdout), text(&output.stderr)) {
        (Some(stdout), Some(stderr)) => (stdout, stderr, Encoding::Utf8),
        _ => {
            let (stdout, stderr) = (&output.stdout, &output.stderr);
            (BASE64_STANDARD.encode(stdout), BASE64_STANDARD.encode(stderr), Encoding::Base64)
        }
    };
    let (exit_code, timed_out) = match output.end {
        ExecEnd::Exited(code) => (code, false),
        ExecEnd::TimedOut | ExecEnd::Abandoned => (TIMED_OUT_CODE, true),
    };
    let duration_ms = u64::try_from(output.duration.as_millis()).unwrap_or(u64::MAX);
    ExecView { stdout, stderr, exit_code, duration_ms, encoding, timed_out, truncated }
}

/// The bytes as text. What was cut in the middle of a character is text too, without that one.
fn text(bytes: &[u8]) -> Option<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text.to_owned()),
        Err(error) if error.error_len().is_none() && bytes.len() == OUTPUT_LIMIT => {
            String::from_utf8(bytes[..error.valid_up_to()].to_vec()).ok()
        }
        Err(_) => None,
    }
}
