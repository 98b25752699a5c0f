//! Asking the daemon on its local socket.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use loden_proto::status::Request;
use serde::de::DeserializeOwned;

use crate::lock;

/// What became of a question.
pub(super) enum Answer<T> {
    /// The daemon's answer.
    Given(T),
    /// There is none: `stopped` or `not answering`, and why.
    None {
        /// The daemon's state.
        state: &'static str,
        /// For people.
        reason: String,
    },
}

/// Asks the daemon of this run-time folder. An error means that asking is not allowed.
pub(super) fn ask<T: DeserializeOwned>(run_dir: &Path, request: Request) -> anyhow::Result<Answer<T>> {
    let socket = run_dir.join("loden.sock");
    let error = match answer(&socket, request) {
        Ok(answer) => return Ok(Answer::Given(answer)),
        Err(error) => error,
    };
    if error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::PermissionDenied) {
        return Err(error)
            .with_context(|| format!("not allowed to ask {}; be root or in its group", socket.display()));
    }
    let (who, state) = match lock::runs(run_dir) {
        true => ("the daemon runs, but does", "not answering"),
        false => ("the daemon does", "stopped"),
    };
    let reason = format!(
        "{who} not answer on {} ({error:#}); this is what kernel and files tell (systemctl status loden)",
        socket.display()
    );
    Ok(Answer::None { state, reason })
}

fn answer<T: DeserializeOwned>(socket: &Path, request: Request) -> anyhow::Result<T> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    writeln!(stream, "{}", serde_json::to_string(&request)?)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line)
        .context("the answer is not what was asked for; are daemon and command of one release?")
}
