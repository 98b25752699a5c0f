//! One CNI request: environment and standard input in, checked types out (`environment.rs`
//! has the former's own checks). Called by
//! `run.rs`. The order of the checks and the words of the errors are those of Go's
//! `pkg/skel`, because runtimes and test suites know them.

use std::io::Read;
use std::path::{Path, PathBuf};

use loden_proto::DEFAULT_RUN_DIR;
use serde_json::{Map, Value, json};

pub use crate::environment::{Command, Environment};
use crate::error::Error;
use crate::ifname::IfName;
use crate::json;

/// A version of the CNI specification that this plugin speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0, the first with CHECK and with `prevResult` on DEL
    V0_4_0,
    /// 1.0.0, the first without `version` in `ips`
    V1_0_0,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Version; 4] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0];

    /// As in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
        }
    }

    fn find(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }
}

/// What Go's library takes a configuration without `cniVersion` for.
const IMPLIED_VERSION: &str = "0.1.0";

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
    /// Where `subnet.env` is: `subnetFile`.
    pub subnet_file: PathBuf,
    /// Where allocations are: `dataDir`.
    pub data_dir: PathBuf,
    /// The bridge, if the configuration names one.
    pub bridge: Option<IfName>,
    /// `dns`, passed on in the result; an object.
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
}

/// What a failing request is answered with in `cniVersion`.
pub fn version_for_errors(stdin: &[u8]) -> String {
    let config: Option<Value> = serde_json::from_slice(stdin).ok();
    let version =
        config.as_ref().and_then(Value::as_object).and_then(|o| json::string(o, "cniVersion").ok().flatten());
    let newest = Version::ALL[Version::ALL.len() - 1].as_str();
    version.filter(|v| Version::find(v).is_some()).unwrap_or(newest).to_owned()
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
        let undecodable =
            |reason: String| Error::Decode(format!("error unmarshall network config: {reason}"));
        let config: Value = serde_json::from_slice(stdin).map_err(|e| undecodable(e.to_string()))?;
        let empty = Map::new();
        let object = match &config {
            Value::Object(object) => object,
            Value::Null => &empty,
            other => return Err(undecodable(format!("it must be an object, but is {}", json::kind(other)))),
        };
        let network = network_name(json::string(object, "name").map_err(undecodable)?.unwrap_or_default())?;
        let container_id = container_id(&env.container_id)?;
        let ifname = IfName::new(&env.ifname)
            .map_err(|msg| Error::EnvironmentValue { msg: msg.into(), details: env.ifname.clone() })?;
        let undecodable =
            |reason: String| Error::Decode(format!("decoding version from network config: {reason}"));
        let version = json::string(object, "cniVersion").map_err(undecodable)?;
        let version = supported(version.filter(|v| !v.is_empty()).unwrap_or(IMPLIED_VERSION), command)?;
        Ok(Self {
            attachment: Attachment {
                network: network.to_owned(),
                container_id: container_id.to_owned(),
                ifname,
                netns: env.netns.clone(),
                own_netns_allowed: env.netns_override == "1"
                    || env.netns_override.eq_ignore_ascii_case("true"),
            },
            config: Config::parse(object, version)?,
        })
    }
}

impl Config {
    fn parse(object: &Map<String, Value>, version: Version) -> Result<Self, Error> {
        let undecodable =
            |reason: String| Error::Decode(format!("error unmarshall network config: {reason}"));
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
        Ok(Self {
            version,
            subnet_file: path("subnetFile", "subnet.env")?,
            data_dir: path("dataDir", "ipam")?,
            bridge: bridge.transpose()?,
            dns: dns(object).map_err(undecodable)?,
            prev_result,
        })
    }
}

/// `dns` in its own spelling, whatever the configuration's.
fn dns(object: &Map<String, Value>) -> Result<Value, String> {
    let mut out = json!({});
    let Some(dns) = json::member(object, "dns") else { return Ok(out) };
    let dns = dns.as_object().ok_or_else(|| format!("dns must be an object, but is {}", json::kind(dns)))?;
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

fn supported(text: &str, command: Command) -> Result<Version, Error> {
    if command == Command::Check && parts(text)? < parts(Version::V0_4_0.as_str())? {
        return Err(Error::CommandTooNew("CHECK"));
    }
    Version::find(text).ok_or_else(|| Error::Version { config: text.to_owned() })
}

/// A version as numbers, as Go's `version.ParseVersion` reads it.
fn parts(text: &str) -> Result<Vec<u32>, Error> {
    let pieces: Vec<&str> = text.split('.').collect();
    if pieces.len() > 3 {
        return Err(Error::Decode(format!("invalid version {text:?}: too many parts")));
    }
    let mut numbers = Vec::with_capacity(3);
    for (piece, name) in pieces.iter().zip(["major", "minor", "micro"]) {
        numbers.push(piece.parse().map_err(|_| {
            Error::Decode(format!(
                "invalid version {text:?}: failed to convert {name} version part {piece:?}"
            ))
        })?);
    }
    numbers.resize(3, 0);
    Ok(numbers)
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.\-]*$`, so never a path out of the data folder.
fn is_plain(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn network_name(name: &str) -> Result<&str, Error> {
    if name.is_empty() {
        return Err(Error::Config("missing network name".into()));
    }
    // A folder has this name; the kernel's limit for it (`NAME_MAX`) is 255 bytes.
    if !is_plain(name) || name.len() > 255 {
        return Err(Error::Config(format!("invalid characters found in network name {name:?}")));
    }
    Ok(name)
}

fn container_id(id: &str) -> Result<&str, Error> {
    if is_plain(id) {
        return Ok(id);
    }
    Err(Error::EnvironmentValue { msg: "invalid characters in containerID".into(), details: id.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(command: &str) -> Environment {
        Environment {
            command: command.into(),
            container_id: "c1".into(),
            netns: "/run/netns/x".into(),
            ifname: "eth0".into(),
            netns_override: String::new(),
        }
    }

    fn parse(config: &Value) -> Result<Request, Error> {
        Request::parse(Command::Add, &env("ADD"), config.to_string().as_bytes())
    }

    #[test]
    fn keys_match_in_any_case_at_every_level() {
        let config = json!({
            "CNIVERSION": "1.0.0", "Name": "n", "SUBNETFILE": "/s", "DataDir": "/d", "Bridge": "br7",
            "DNS": {"NameServers": ["1.1.1.1"], "Domain": "x", "SEARCH": ["a"], "OPTIONS": []},
            "PrevResult": {}, "unknown": {"x": 1}
        });
        let request = parse(&config).expect("valid");
        assert_eq!(request.attachment.network, "n");
        assert_eq!(request.config.subnet_file, Path::new("/s"));
        assert_eq!(request.config.data_dir, Path::new("/d"));
        assert_eq!(request.config.bridge.map(|b| b.to_string()), Some("br7".into()));
        assert_eq!(request.config.dns, json!({"nameservers": ["1.1.1.1"], "domain": "x", "search": ["a"]}));
        assert!(request.config.prev_result.is_some());
    }

    #[test]
    fn defaults_are_below_run_loden() {
        let config =
            parse(&json!({"cniVersion": "0.3.0", "name": "n", "prevResult": null})).expect("valid").config;
        assert_eq!(config.subnet_file, Path::new("/run/loden/subnet.env"));
        assert_eq!(config.data_dir, Path::new("/run/loden/ipam"));
        assert!(config.bridge.is_none() && config.prev_result.is_none());
        assert_eq!(config.dns, json!({}));
    }

    #[test]
    fn a_network_name_cannot_lead_out_of_its_folder() {
        for name in ["..", ".", "a/b", "/etc", "-a", "a b", "ü"] {
            let error = parse(&json!({"cniVersion": "1.0.0", "name": name})).expect_err(name);
            assert_eq!(error.code(), 7, "{name}");
        }
    }

    #[test]
    fn values_that_cannot_be_right_are_refused_by_name() {
        for (key, value, code) in [
            ("dataDir", json!("relative"), 7),
            ("subnetFile", json!("x/y"), 7),
            ("bridge", json!("a/b"), 7),
            ("bridge", json!(7), 6),
            ("dataDir", json!([]), 6),
            ("dns", json!("x"), 6),
            ("prevResult", json!([]), 6),
        ] {
            let mut config = json!({"cniVersion": "1.0.0", "name": "n"});
            config[key] = value;
            let error = parse(&config).expect_err(key);
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn check_needs_0_4_0() {
        for (version, message) in [
            ("0.3.1", "config version does not allow CHECK"),
            ("0.1", "config version does not allow CHECK"),
            ("2.0.0", "incompatible CNI versions"),
            ("1.0", "incompatible CNI versions"),
            ("1.x.0", "invalid version \"1.x.0\""),
            ("1.0.0.0", "too many parts"),
        ] {
            let config = json!({"cniVersion": version, "name": "n"}).to_string();
            let error = Request::parse(Command::Check, &env("CHECK"), config.as_bytes()).expect_err(version);
            assert!(error.to_string().contains(message), "{version}: {error}");
        }
        let config = json!({"cniVersion": "0.4.0", "name": "n"}).to_string();
        assert!(Request::parse(Command::Check, &env("CHECK"), config.as_bytes()).is_ok());
    }

    #[test]
    fn errors_carry_a_version_that_the_runtime_can_read() {
        assert_eq!(version_for_errors(br#"{"cniVersion":"0.3.1"}"#), "0.3.1");
        assert_eq!(version_for_errors(br#"{"cniVersion":"9"}"#), "1.0.0");
        assert_eq!(version_for_errors(b"no json"), "1.0.0");
    }

    #[test]
    fn override_is_one_or_true() {
        for (text, allowed) in
            [("", false), ("0", false), ("1", true), ("TRUE", true), ("true", true), ("yes", false)]
        {
            let env = Environment { netns_override: text.into(), ..env("ADD") };
            let request =
                Request::parse(Command::Add, &env, br#"{"cniVersion":"1.0.0","name":"n"}"#).expect("valid");
            assert_eq!(request.attachment.own_netns_allowed, allowed, "{text:?}");
        }
    }
}
