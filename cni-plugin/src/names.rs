//! Waits until the daemon serves a container's names: its process may look itself up as the first thing it
//! does, and what HDFS or HBase cannot resolve then, they refuse for good. Called by `add.rs` at the end;
//! the daemon has seen the allocation file long before, so there is mostly nothing left to wait for.

use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use loden_proto::status::{Named, Request};

use crate::error::Error;

/// The daemon gives up before, and says why.
const PATIENCE: Duration = Duration::from_secs(6);

/// Waits for the names of the endpoint with this host's end. A daemon that is down serves nobody; it
/// publishes the names when it comes back, so that is no reason to refuse a container.
pub(crate) fn wait(socket: &Path, host_veth: &str) -> Result<(), Error> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(()),
        Err(e) => return Err(failed(socket, &e.to_string())),
    };
    let answer = match ask(&mut stream, host_veth) {
        Ok(answer) => answer,
        Err(e) => match e.kind() {
            // It was killed while it was asked.
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => None,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                let late = format!("the daemon has not answered within {} s", PATIENCE.as_secs());
                return Err(failed(socket, &late));
            }
            _ => return Err(failed(socket, &e.to_string())),
        },
    };
    match answer.and_then(|named| named.problem) {
        Some(problem) => Err(failed(socket, &problem)),
        None => Ok(()),
    }
}

/// `None`: the daemon went away while it was asked.
fn ask(stream: &mut UnixStream, host_veth: &str) -> std::io::Result<Option<Named>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = serde_json::to_string(&Request::AwaitNames { endpoint: host_veth.into() })?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

fn failed(socket: &Path, reason: &str) -> Error {
    Error::Names { socket: socket.into(), reason: reason.into() }
}
