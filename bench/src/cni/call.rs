//! Calling a program as a runtime does, and taking the time from before it is started until it
//! has been waited for. Used by `mod.rs`.
//!
//! `std` starts it with posix_spawn, which is vfork and execve (no code of ours runs in between,
//! nor are page tables copied), as Go and C runtimes do.

use std::io::{Read as _, Write as _, pipe};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// A program ready to be started: arguments, environment, standard input.
#[derive(Debug)]
pub(crate) struct Call {
    command: Command,
}

/// One that runs.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    call: Call,
}

impl Call {
    /// With this text in the pipe that is its standard input.
    pub(crate) fn new(mut command: Command, stdin: &str) -> Result<Self> {
        let (reader, mut writer) = pipe().context("a pipe")?;
        // A pipe holds 64 KiB, so nobody need read it yet.
        writer.write_all(stdin.as_bytes()).context("fill a pipe")?;
        // Errors come on standard output, and flannel's plugin is talkative.
        command.stdin(Stdio::from(reader)).stdout(Stdio::piped()).stderr(Stdio::null());
        Ok(Self { command })
    }

    /// Starts it.
    pub(crate) fn start(mut self) -> Result<Running> {
        let child = self.command.spawn().with_context(|| format!("start {:?}", self.command))?;
        Ok(Running { child, call: self })
    }

    /// Fork to exit, what it printed, and when it had been waited for.
    pub(crate) fn time(self) -> Result<(Duration, String, Instant)> {
        let start = Instant::now();
        let mut running = self.start()?;
        let status = running.child.wait();
        let end = Instant::now();
        let output = running.output(status)?;
        Ok((end - start, output, end))
    }

    /// All at once, started one after the other by one thread: from before the first is started
    /// until the last has been waited for; what they printed.
    pub(crate) fn time_all(calls: Vec<Self>) -> Result<(Duration, Vec<String>)> {
        let start = Instant::now();
        let mut running = Vec::with_capacity(calls.len());
        for call in calls {
            running.push(call.start()?);
        }
        let ended: Vec<_> = running.iter_mut().map(|r| r.child.wait()).collect();
        let elapsed = start.elapsed();
        let outputs = running.into_iter().zip(ended).map(|(r, status)| r.output(status));
        Ok((elapsed, outputs.collect::<Result<_>>()?))
    }
}

impl Running {
    /// What it printed; an error if it failed.
    fn output(mut self, status: std::io::Result<std::process::ExitStatus>) -> Result<String> {
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text).context("read from a pipe")?;
        }
        let status = status.context("wait for a child")?;
        if !status.success() {
            bail!("{:?} ended with {status}: {}", self.call.command, text.trim());
        }
        Ok(text)
    }
}
