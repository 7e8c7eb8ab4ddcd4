//! Starts and stops a server: an empty POST to an address, or a program without a shell. Says what went wrong without ever showing a key
//! or what a program printed.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use config::secret::Secret;
use config::settings::proxy::{Hook, RemoteUrl};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderValue};
use reqwest::{Client, redirect};
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// An address that starts a machine answers when it has begun, not when it is done.
const URL_MAX: Duration = Duration::from_mins(1);
/// A program that starts a machine may wait for it.
const PROGRAM_MAX: Duration = Duration::from_mins(10);

/// Made once, when the first address is asked.
static CLIENT: OnceCell<Client> = OnceCell::const_new();

/// Why a server was not started or stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// No answer.
    #[error("{0} does not answer")]
    Away(String),
    /// Another answer than was hoped for.
    #[error("{url} answers {status}")]
    Status {
        /// What was asked.
        url: String,
        /// What came.
        status: u16,
    },
    /// No such program, or it may not run.
    #[error("{program} does not run: {reason}")]
    NotRun {
        /// Which.
        program: String,
        /// What the system says.
        reason: String,
    },
    /// It ran and failed.
    #[error("{program} failed with {code}")]
    Failed {
        /// Which.
        program: String,
        /// How it ended.
        code: String,
    },
    /// It took too long.
    #[error("{0} took too long")]
    Late(String),
    /// The client could not be made, or the key is no header.
    #[error("{0}")]
    Client(&'static str),
}

impl HookError {
    /// It certainly did nothing: the other side said no. Of an answer that did not come nobody knows.
    pub(super) const fn is_refusal(&self) -> bool {
        match self {
            Self::Status { .. } | Self::NotRun { .. } | Self::Failed { .. } | Self::Client(_) => {
                true
            }
            Self::Away(_) | Self::Late(_) => false,
        }
    }
}

/// Runs a hook to its end.
pub(super) async fn run(hook: &Hook, key: Option<&Secret<String>>) -> Result<(), HookError> {
    match hook {
        Hook::Url(url) => post(url, key).await,
        Hook::Command(command) => execute(command).await,
    }
}

async fn post(url: &RemoteUrl, key: Option<&Secret<String>>) -> Result<(), HookError> {
    let client = CLIENT.get_or_try_init(client).await?;
    let mut request = client.post(url.to_string()).header(CONTENT_LENGTH, 0);
    if let Some(key) = key {
        let value = HeaderValue::from_str(&format!("Bearer {}", key.expose()));
        let mut value = value.map_err(|_error| HookError::Client("the key is no header value"))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let sent = request.send().await;
    let answer = sent.map_err(|_error| HookError::Away(url.to_string()))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(HookError::Status {
        url: url.to_string(),
        status: status.as_u16(),
    })
}

/// Reads the system's certificates, which takes a while: nobody else waits for it.
async fn client() -> Result<Client, HookError> {
    let made = tokio::task::spawn_blocking(|| {
        Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .timeout(URL_MAX)
            .pool_max_idle_per_host(0)
            .build()
    });
    let made = made.await.ok().and_then(Result::ok);
    made.ok_or(HookError::Client("no HTTP client can be made"))
}

async fn execute(command: &[String]) -> Result<(), HookError> {
    let Some((program, arguments)) = command.split_first() else {
        return Ok(());
    };
    let shown = || {
        let name = Path::new(program).file_name();
        name.map_or_else(
            || program.clone(),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    // It gets nothing of ours: no standard input, no environment with secrets, no open file.
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
        .envs(std::env::var_os("HOME").map(|home| ("HOME", home)))
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| HookError::NotRun {
            program: shown(),
            reason: error.kind().to_string(),
        })?;
    let ended = timeout(PROGRAM_MAX, child.wait()).await;
    let ended = ended.map_err(|_late| HookError::Late(shown()))?;
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(HookError::Failed {
            program: shown(),
            code: status
                .code()
                .map_or_else(|| "a signal".to_owned(), |code| format!("code {code}")),
        }),
        Err(error) => Err(HookError::NotRun {
            program: shown(),
            reason: error.kind().to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Hook {
        Hook::Command(words.iter().map(|&word| word.to_owned()).collect())
    }

    #[tokio::test]
    async fn a_program_runs_without_a_shell_and_tells_how_it_ended() {
        assert!(run(&command(&["/bin/true"]), None).await.is_ok());
        let failed = run(&command(&["/bin/false"]), None).await.unwrap_err();
        assert_eq!(failed.to_string(), "false failed with code 1");
        let missing = run(&command(&["/nowhere/gpu-up"]), None).await.unwrap_err();
        assert_eq!(missing.to_string(), "gpu-up does not run: entity not found");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x; touch y");
        let path = file.display().to_string();
        run(&command(&["/bin/touch", "--", &path]), None)
            .await
            .unwrap();
        assert!(file.exists(), "what a shell would read is a plain argument");
    }

    #[tokio::test]
    async fn a_program_sees_nothing_of_our_environment() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let script = format!("env > {}", out.display());
        run(&command(&["/bin/sh", "-c", &script]), None)
            .await
            .unwrap();
        let seen = std::fs::read_to_string(out).unwrap();
        assert!(!seen.contains("CARGO"), "{seen}");
    }
}
