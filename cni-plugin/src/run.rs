//! One call of the plugin: environment and standard input in, JSON on standard output and an
//! exit code out. Called by `main.rs`.

use std::io::{self, Read, Write};

use serde_json::{Value, json};

use crate::error::Error;
use crate::request::{self, Command, Environment, Request, Version};
use crate::{add, check, del, gc, status};

/// The streams of a call.
pub struct Streams<'a> {
    /// The configuration.
    pub stdin: &'a mut dyn Read,
    /// The result, or the error.
    pub stdout: &'a mut dyn Write,
    /// For people.
    pub stderr: &'a mut dyn Write,
}

/// Runs the command and returns the exit code: 0, or 1 with an error on standard output.
pub fn run(env: &Environment, streams: Streams<'_>) -> u8 {
    let Streams { stdin, stdout, stderr } = streams;
    if env.command.is_empty() {
        // Runtimes call without a command to learn name and version; nothing to do if they
        // do not listen.
        let _ = writeln!(stderr, "{}", about());
        return 0;
    }
    let mut config = Vec::new();
    let result = perform(env, stdin, &mut config, stdout);
    let Err(error) = result else { return 0 };
    let error = error.to_json(request::version_for_errors(&config));
    if let Err(e) = write(stdout, &error) {
        let _ = writeln!(stderr, "loden-cni: {error}: {e}");
    }
    1
}

fn perform(
    env: &Environment,
    stdin: &mut dyn Read,
    config: &mut Vec<u8>,
    stdout: &mut dyn Write,
) -> Result<(), Error> {
    let command = env.command()?;
    if command == Command::Version {
        return write(stdout, &versions()).map_err(Error::Stdout);
    }
    *config = request::read_stdin(stdin)?;
    match command {
        Command::Add => {
            let request = Request::parse(command, env, config)?;
            let result = add::add(&request)?;
            let result = result.to_json(request.config.version, request.config.prev_result.as_ref());
            write(stdout, &result).map_err(|e| {
                // A runtime that was not told of the container will not use it.
                let _ = del::del(&request);
                Error::Stdout(e)
            })
        }
        Command::Del => del::del(&Request::parse(command, env, config)?),
        Command::Check => check::check(&Request::parse(command, env, config)?),
        Command::Gc => {
            let (config, known) = request::parse_gc(config)?;
            gc::gc(&config.data_dir, &config.network, &known).map(drop)
        }
        Command::Status => status::status(&request::parse_status(config)?),
        Command::Version => Ok(()),
    }
}

fn about() -> String {
    let versions: Vec<&str> = Version::ALL.iter().map(|v| v.as_str()).collect();
    format!(
        "CNI loden plugin v{}\nCNI protocol versions supported: {}",
        env!("CARGO_PKG_VERSION"),
        versions.join(", ")
    )
}

fn versions() -> Value {
    json!({ "cniVersion": Version::NEWEST.as_str(), "supportedVersions": Version::ALL.map(Version::as_str) })
}

fn write(out: &mut dyn Write, value: &Value) -> io::Result<()> {
    // One write: a runtime that dies in between leaves no half of it.
    out.write_all(format!("{value}\n").as_bytes())?;
    out.flush()
}
