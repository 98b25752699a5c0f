//! One CNI request: environment and standard input in, checked types out (`environment.rs`,
//! `version.rs`, `options.rs` and `wishes.rs` have the checks of their parts). Called by
//! `run.rs`; `netavark_config.rs` makes requests of its own. The order of the checks and the words of the errors are those of Go's
//! `pkg/skel`, because runtimes and test suites know them.
//!
//! Options and wishes are read for ADD and STATUS only: a DEL must not fail for what an ADD
//! was refused for.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use loden_proto::DEFAULT_RUN_DIR;
use loden_proto::allocation::LOCK_FILE;
use serde_json::{Map, Value, json};

pub use crate::environment::{Command, Environment};
use crate::error::Error;
use crate::ifname::IfName;
use crate::json;
use crate::options::Options;
pub use crate::version::Version;
use crate::wishes::Wishes;

/// Which container interface a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The network's name, from the configuration.
    pub network: String,
    /// `CNI_CONTAINERID`
    pub container_id: String,
    /// `CNI_IFNAME`
    pub ifname: IfName,
    /// `CNI_NETNS`; may be empty for DEL.
    pub netns: String,
    /// Whether `netns` may be the plugin's own.
    pub own_netns_allowed: bool,
}

/// The plugin's part of the network configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `cniVersion`
    pub version: Version,
    /// `name`
    pub network: String,
    /// Where `subnet.env` is: `subnetFile`.
    pub subnet_file: PathBuf,
    /// Where allocations are: `dataDir`.
    pub data_dir: PathBuf,
    /// The bridge, if the configuration names one.
    pub bridge: Option<IfName>,
    /// How containers are connected; the defaults unless this is ADD or STATUS.
    pub options: Options,
    /// `dns`, with `runtimeConfig.dns` before it, passed on in the result; an object.
    pub dns: Value,
    /// `prevResult`
    pub prev_result: Option<Map<String, Value>>,
}

/// A request that passed all checks that need neither files nor the kernel.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it is about.
    pub attachment: Attachment,
    /// How.
    pub config: Config,
    /// What this container is to have; nothing unless this is ADD.
    pub wishes: Wishes,
}

/// Container id and interface name of an attachment that a runtime knows.
pub type Known = (String, String);

/// What a failing request is answered with in `cniVersion`.
pub fn version_for_errors(stdin: &[u8]) -> &'static str {
    let config: Option<Value> = serde_json::from_slice(stdin).ok();
    let version =
        config.as_ref().and_then(Value::as_object).and_then(|o| json::string(o, "cniVersion").ok().flatten());
    version.and_then(Version::find).unwrap_or(Version::NEWEST).as_str()
}

/// Reads standard input to its end.
pub fn read_stdin(mut stdin: impl Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    stdin.read_to_end(&mut bytes).map_err(Error::Stdin)?;
    Ok(bytes)
}

impl Request {
    /// Checks a request for ADD, DEL or CHECK.
    pub fn parse(command: Command, env: &Environment, stdin: &[u8]) -> Result<Self, Error> {
        let object = decode(stdin)?;
        let network = network_name(&object)?;
        let container_id = container_id(&env.container_id)?;
        let ifname = IfName::new(&env.ifname)
            .map_err(|msg| Error::EnvironmentValue { msg: msg.into(), details: env.ifname.clone() })?;
        let mut config = Config::parse(command, &object, &network)?;
        let wishes = match command {
            Command::Add => Wishes::parse(&object, &env.args, &network)?,
            _ => Wishes::default(),
        };
        if let (Some(into), Some(dns)) = (config.dns.as_object_mut(), &wishes.dns) {
            into.extend(dns.clone());
        }
        let attachment = Attachment {
            network,
            container_id: container_id.to_owned(),
            ifname,
            netns: env.netns.clone(),
            own_netns_allowed: env.netns_override == "1" || env.netns_override.eq_ignore_ascii_case("true"),
        };
        Ok(Self { attachment, config, wishes })
    }
}

/// Checks a request for STATUS.
pub fn parse_status(stdin: &[u8]) -> Result<Config, Error> {
    let object = decode(stdin)?;
    Config::parse(Command::Status, &object, &network_name(&object)?)
}

/// Checks a request for GC; returns with the configuration which attachments are in use.
pub fn parse_gc(stdin: &[u8]) -> Result<(Config, BTreeSet<Known>), Error> {
    let object = decode(stdin)?;
    let config = Config::parse(Command::Gc, &object, &network_name(&object)?)?;
    let mut known = BTreeSet::new();
    // libcni sends the same list under a second key too, a mistake of its first release with GC.
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        for attachment in json::objects(&object, key).map_err(undecodable)? {
            let text = |name| {
                let text = json::string(attachment, name).map_err(undecodable)?.filter(|t| !t.is_empty());
                text.map(str::to_owned).ok_or_else(|| undecodable(format!("an entry of {key} has no {name}")))
            };
            known.insert((text("containerID")?, text("ifname")?));
        }
    }
    Ok((config, known))
}

impl Config {
    fn parse(command: Command, object: &Map<String, Value>, network: &str) -> Result<Self, Error> {
        let bad_version =
            |reason: String| Error::Decode(format!("decoding version from network config: {reason}"));
        let version = json::string(object, "cniVersion").map_err(bad_version)?.unwrap_or_default();
        let version = Version::of_config(version, command)?;
        let object = &with_delegate(object)?;
        let path = |name: &str, default: &str| {
            let text = json::string(object, name).map_err(undecodable)?.filter(|t| !t.is_empty());
            let path = text.map_or_else(|| Path::new(DEFAULT_RUN_DIR).join(default), PathBuf::from);
            if path.is_absolute() {
                Ok(path)
            } else {
                Err(Error::Config(format!("{name} must be an absolute path, but is {}", path.display())))
            }
        };
        let bridge = json::string(object, "bridge").map_err(undecodable)?.filter(|b| !b.is_empty());
        let bridge =
            bridge.map(|name| IfName::new(name).map_err(|e| Error::Config(format!("bridge {name:?}: {e}"))));
        let prev_result = match json::member(object, "prevResult") {
            None => None,
            Some(Value::Object(result)) => Some(result.clone()),
            Some(other) => {
                return Err(Error::Decode(format!(
                    "could not parse prevResult: it is {}",
                    json::kind(other)
                )));
            }
        };
        let options = match command {
            Command::Add | Command::Status => Options::parse(object)?,
            _ => Options::default(),
        };
        Ok(Self {
            version,
            network: network.to_owned(),
            subnet_file: path("subnetFile", "subnet.env")?,
            data_dir: path("dataDir", "ipam")?,
            bridge: bridge.transpose()?,
            options,
            dns: dns(object).map_err(undecodable)?,
            prev_result,
        })
    }
}

/// For errors of a configuration that is no JSON of the expected form.
pub(crate) fn undecodable(reason: String) -> Error {
    Error::Decode(format!("error unmarshall network config: {reason}"))
}

fn decode(stdin: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(stdin).map_err(|e| undecodable(e.to_string()))? {
        Value::Object(object) => Ok(object),
        Value::Null => Ok(Map::new()),
        other => Err(undecodable(format!("it must be an object, but is {}", json::kind(&other)))),
    }
}

/// The configuration with the members of flannel's `delegate` as if they stood beside it;
/// where both have one, the outer counts.
fn with_delegate(object: &Map<String, Value>) -> Result<Map<String, Value>, Error> {
    /// What the outer configuration alone says.
    const OUTER: [&str; 9] = [
        "name",
        "cniVersion",
        "prevResult",
        "runtimeConfig",
        "args",
        "capabilities",
        "subnetFile",
        "dataDir",
        "delegate",
    ];
    let mut merged = object.clone();
    let Some(delegate) = json::object(object, "delegate").map_err(undecodable)? else { return Ok(merged) };
    match json::string(delegate, "type").map_err(undecodable)? {
        None | Some("" | "bridge" | "loden") => {}
        Some(other) => return Err(Error::unsupported("delegate.type", other, "containers are on a bridge")),
    }
    for (key, value) in delegate {
        let outer = OUTER.iter().any(|o| o.eq_ignore_ascii_case(key)) || key.eq_ignore_ascii_case("type");
        if !outer && json::member(object, key).is_none() {
            merged.insert(key.clone(), value.clone());
        }
    }
    Ok(merged)
}

/// `dns` in its own spelling, whatever the configuration's.
fn dns(object: &Map<String, Value>) -> Result<Value, String> {
    let mut out = json!({});
    let Some(dns) = json::object(object, "dns")? else { return Ok(out) };
    for name in ["nameservers", "search", "options"] {
        if let Some(list) = json::strings(dns, name)?.filter(|list| !list.is_empty()) {
            out[name] = json!(list);
        }
    }
    if let Some(domain) = json::string(dns, "domain")?.filter(|d| !d.is_empty()) {
        out["domain"] = json!(domain);
    }
    Ok(out)
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`, so never a path out of the data folder.
fn is_plain(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

pub(crate) fn network_name(object: &Map<String, Value>) -> Result<String, Error> {
    let name = json::string(object, "name").map_err(undecodable)?.unwrap_or_default();
    if name.is_empty() {
        return Err(Error::Config("missing network name".into()));
    }
    // A folder has this name; the kernel's limit for it (`NAME_MAX`) is 255 bytes.
    if !is_plain(name) || name.len() > 255 {
        return Err(Error::Config(format!("invalid characters found in network name {name:?}")));
    }
    // A folder of this name would stand where all networks' lock is.
    if name == LOCK_FILE {
        return Err(Error::Config(format!("no network can have the name {name:?}; give it another")));
    }
    Ok(name.to_owned())
}

pub(crate) fn container_id(id: &str) -> Result<&str, Error> {
    if is_plain(id) {
        return Ok(id);
    }
    Err(Error::EnvironmentValue { msg: "invalid characters in containerID".into(), details: id.to_owned() })
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
