//! The part of Docker's Engine API (<https://docs.docker.com/reference/api/engine/>) that names need, over
//! its socket. Of each answer only the members are read that we use, and every one may be missing: an engine
//! that leaves one out, or adds some, harms nothing. A path without a version means the engine's newest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::HOST;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::UnixStream;

/// For one answer. A container that is at work keeps who asks for it waiting.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer's bytes. A line of a list has some three thousand.
const LARGEST: usize = 64 << 20;
/// An event's bytes.
const LARGEST_EVENT: usize = 1 << 20;

/// Why Docker did not tell.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiError {
    /// Its socket cannot be used.
    #[error("its socket: {0}")]
    Socket(#[from] std::io::Error),
    /// What it speaks is not HTTP, or ends too soon.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// It refuses.
    #[error("it answers {0}: {1}")]
    Refused(StatusCode, String),
    /// What it says is not what its documentation says.
    #[error("its answer cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// More than is reasonable.
    #[error("its answer is longer than {0} bytes")]
    TooLong(usize),
    /// It took too long.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    TooLate,
}

/// A line of `GET /containers/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Line {
    pub id: String,
    #[serde(flatten)]
    pub summary: Summary,
}

/// What of it changes when a container is started, renamed or connected.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Summary {
    names: Option<Vec<String>>,
    network_settings: Option<NetworkSettings>,
}

/// `GET /containers/{id}/json`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub id: String,
    pub name: Option<String>,
    pub state: Option<State>,
    pub config: Option<Config>,
    pub network_settings: Option<NetworkSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct State {
    pub running: Option<bool>,
    /// RFC 3339.
    pub started_at: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Config {
    pub hostname: Option<String>,
    pub domainname: Option<String>,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct NetworkSettings {
    /// By the networks' names.
    pub networks: Option<BTreeMap<String, Network>>,
    /// By `9866/tcp`.
    pub ports: Option<BTreeMap<String, Option<Vec<Binding>>>>,
}

/// A container's end in a network.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Network {
    #[serde(rename = "Aliases")]
    pub aliases: Option<Vec<String>>,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: Option<String>,
    #[serde(rename = "IPAddress")]
    pub ip_address: Option<String>,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: Option<String>,
}

/// Where the host answers for a container's port.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Binding {
    pub host_ip: Option<String>,
    pub host_port: Option<String>,
}

/// Of an event, what it is about.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Event {
    pub actor: Option<Actor>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Actor {
    #[serde(rename = "ID")]
    pub id: Option<String>,
    #[serde(rename = "Attributes")]
    pub attributes: Option<BTreeMap<String, String>>,
}

/// An engine, asked by a connection for each question.
#[derive(Debug)]
pub(super) struct Docker {
    socket: PathBuf,
}

impl Docker {
    pub(super) fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// All running containers.
    pub(super) async fn containers(&self) -> Result<Vec<Line>, ApiError> {
        self.ask("/containers/json").await
    }

    /// One container; `None` if there is none of this id.
    pub(super) async fn inspect(&self, id: &str) -> Result<Option<Inspected>, ApiError> {
        match self.ask(&format!("/containers/{}/json", utf8_percent_encode(id, NON_ALPHANUMERIC))).await {
            Ok(inspected) => Ok(Some(inspected)),
            Err(ApiError::Refused(StatusCode::NOT_FOUND, _)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Events of these actions on containers and networks, from a second since 1970 on.
    pub(super) async fn events(&self, actions: &[&str], since: u64) -> Result<Events, ApiError> {
        let filters = json!({ "type": ["container", "network"], "event": actions }).to_string();
        let filters = utf8_percent_encode(&filters, NON_ALPHANUMERIC);
        let response = in_time(self.get(&format!("/events?since={since}&filters={filters}"))).await?;
        Ok(Events { body: response.into_body(), rest: Vec::new() })
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let answer = in_time(async { whole(self.get(path).await?).await }).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    async fn get(&self, path: &str) -> Result<Response<Incoming>, ApiError> {
        let stream = TokioIo::new(UnixStream::connect(&self.socket).await?);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
        // Ends with the answer, or when whoever reads it lets it go.
        tokio::spawn(connection);
        let request = Request::get(path).header(HOST, "docker").body(Empty::<Bytes>::new());
        let response = sender.send_request(request.expect("a path and a host make a request")).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let said = whole(response).await?;
        let message = serde_json::from_slice::<serde_json::Value>(&said).ok();
        let message = message.as_ref().and_then(|m| m["message"].as_str());
        Err(ApiError::Refused(status, message.unwrap_or("without saying why").to_owned()))
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Err(ApiError::TooLate))
}

async fn whole(response: Response<Incoming>) -> Result<Bytes, ApiError> {
    match Limited::new(response.into_body(), LARGEST).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => ApiError::Http(*error),
            Err(_) => ApiError::TooLong(LARGEST),
        }),
    }
}

/// Events as they come.
#[derive(Debug)]
pub(super) struct Events {
    body: Incoming,
    /// Of an event that is not complete.
    rest: Vec<u8>,
}

impl Events {
    /// The next; `None` when Docker has hung up. May be dropped while it waits, and loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.rest.len() > LARGEST_EVENT {
                return Err(ApiError::TooLong(LARGEST_EVENT));
            }
            match self.body.frame().await {
                Some(frame) => self.rest.extend(frame?.data_ref().into_iter().flatten()),
                None => return Ok(None),
            }
        }
    }
}
