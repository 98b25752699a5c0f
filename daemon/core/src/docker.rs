//! What a Docker Engine must be told so that its containers are members of the overlay, by
//! version: an option that a dockerd does not know keeps it from starting, and one that is missing
//! leaves its containers cut off.
//!
//! | Docker | drops what comes from the overlay by | opened by |
//! |---|---|---|
//! | up to 27 | policy of `FORWARD` | our rules in `DOCKER-USER` |
//! | 28.0.0, 28.0.1 | also a rule in `raw` per container | nothing, for the default bridge |
//! | 28.0.2 to 28.1 | the same | environment `DOCKER_INSECURE_NO_IPTABLES_RAW=1` |
//! | 28.2 to 28.5 | the same | `allow-direct-routing` |
//! | 29 and later | the same, or its own nftables table without `DOCKER-USER` | `allow-direct-routing` and `bridge-accept-fwmark` |
//!
//! Sources: moby's release notes (28.0.2, 28.2.0, 29.0.0) and moby#49621, #49832, #50476.

pub mod user_chain;

use std::fmt;
use std::str::FromStr;

use loden_proto::Family;
use loden_proto::subnet_env::{DnsEnv, SubnetEnv};
use serde_json::{Map, Value, json};

/// A version of the Docker Engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A text that names no version of Docker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version of Docker such as 28.2.1 or 29")]
pub struct NoVersion(String);

impl FromStr for Version {
    type Err = NoVersion;

    /// Takes `20.10.24+dfsg1`, `v29.0.0-rc.1`, `28.2`, `29`; missing numbers are 0.
    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let number = text.trim().trim_start_matches('v');
        let number = number.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
        let parts: Option<Vec<u32>> = number.split('.').map(|part| part.parse().ok()).collect();
        match parts.as_deref() {
            Some([major, rest @ ..]) if rest.len() <= 2 => {
                let part = |i: usize| rest.get(i).copied().unwrap_or(0);
                Ok(Self::new(*major, part(0), part(1)))
            }
            _ => Err(NoVersion(text.to_owned())),
        }
    }
}

/// Reads the answer of `dockerd --version`: `Docker version 20.10.24+dfsg1, build 5d6db84`.
pub fn version_of(answer: &str) -> Result<Version, NoVersion> {
    answer.trim().strip_prefix("Docker version ").unwrap_or(answer).parse()
}

/// What opens Docker's default bridge to the overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    UserChain,
    Nothing,
    RawVariable,
    DirectRouting,
    DirectRoutingAndMark,
}

impl Opening {
    fn of(version: Version) -> Self {
        match version {
            v if v < Version::new(28, 0, 0) => Self::UserChain,
            v if v < Version::new(28, 0, 2) => Self::Nothing,
            v if v < Version::new(28, 2, 0) => Self::RawVariable,
            v if v < Version::new(29, 0, 0) => Self::DirectRouting,
            _ => Self::DirectRoutingAndMark,
        }
    }
}

/// Makes Docker leave out its rules in the table `raw`.
const RAW_VARIABLE: &str = "DOCKER_INSECURE_NO_IPTABLES_RAW";

/// What Docker is to be told, in one form, and what that form cannot say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// The text in that form.
    pub text: String,
    /// What is missing from it: each says what is wrong and what to do.
    pub unsaid: Vec<String>,
}

/// The options of a dockerd, in the order in which they are written.
#[derive(Debug, Clone, PartialEq)]
pub struct DaemonOptions {
    version: Version,
    options: Vec<DaemonOption>,
    variable: bool,
    unsaid: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct DaemonOption {
    /// Of the flag, and of the key in daemon.json.
    name: &'static str,
    /// Of the variable in the EnvironmentFile, after `DOCKER_OPT_`; the first three are flannel's
    /// (`dist/mk-docker-opts.sh`).
    variable: &'static str,
    value: Value,
}

impl DaemonOptions {
    /// For a Docker of this version on this host. `shared`: Docker uses the plugin's bridge, and its
    /// range of the subnet.
    pub fn new(env: &SubnetEnv, version: Version, fwmark: (u32, u32), shared: bool) -> Self {
        let mut options = Vec::new();
        let mut unsaid = Vec::new();
        let mut add = |name, variable, value: Value| options.push(DaemonOption { name, variable, value });
        match env.subnet(Family::V4) {
            Some(_) if shared => {
                add("bridge", "BRIDGE", json!(env.bridge));
                if let Some(range) = env.docker_range(Family::V4) {
                    add("fixed-cidr", "FIXED_CIDR", json!(range.to_string()));
                }
            }
            Some(subnet) => {
                add("bip", "BIP", json!(format!("{}/{}", subnet.gateway(), subnet.length())));
            }
            None => unsaid.push(
                "the overlay has no IPv4, without which Docker's default bridge cannot be; use a network of its own (loden docker-opts --network NAME)".into(),
            ),
        }
        // Whoever leaves the overlay is masqueraded by the daemon; Docker's rule would also hide
        // containers from each other.
        add("ip-masq", "IPMASQ", json!(false));
        add("mtu", "MTU", json!(env.mtu));
        let six = match shared {
            true => env.docker_range(Family::V6),
            false => env.subnet(Family::V6),
        };
        if let Some(subnet) = six {
            add("ipv6", "IPV6", json!(true));
            add("fixed-cidr-v6", "FIXED_CIDR_V6", json!(subnet.to_string()));
        }
        let opening = Opening::of(version);
        if matches!(opening, Opening::DirectRouting | Opening::DirectRoutingAndMark) {
            add("allow-direct-routing", "ALLOW_DIRECT_ROUTING", json!(true));
        }
        if opening == Opening::DirectRoutingAndMark {
            let (value, mask) = fwmark;
            add("bridge-accept-fwmark", "BRIDGE_ACCEPT_FWMARK", json!(format!("{value:#x}/{mask:#x}")));
        }
        if opening == Opening::Nothing {
            unsaid.push(format!(
                "Docker {version} drops what comes from the overlay for its default bridge, and has no option against it; update it to 28.0.2 or later, or use a network of its own (loden docker-opts --network NAME)"
            ));
        }
        if let Some(DnsEnv { addresses, zone, .. }) = env.dns.as_ref().filter(|dns| !dns.addresses.is_empty())
        {
            // Docker's own servers would be asked as well otherwise, and know no name of the overlay.
            add("dns", "DNS", json!(addresses));
            add("dns-search", "DNS_SEARCH", json!([zone]));
            // Names of more than one label are complete.
            add("dns-opt", "DNS_OPT", json!(["ndots:2"]));
        }
        Self { version, options, variable: opening == Opening::RawVariable, unsaid }
    }

    /// As systemd's EnvironmentFile with the names of flannel's mk-docker-opts.
    pub fn environment_file(&self) -> Told {
        let mut text = String::new();
        let mut all = String::new();
        for option in &self.options {
            let values = option.value.as_array().map_or(std::slice::from_ref(&option.value), Vec::as_slice);
            let flags: Vec<String> =
                values.iter().map(|v| format!("--{}={}", option.name, plain(v))).collect();
            let flags = flags.join(" ");
            text.push_str(&format!("DOCKER_OPT_{}=\"{flags}\"\n", option.variable));
            all.push_str(&format!(" {flags}"));
        }
        text.push_str(&format!("DOCKER_OPTS=\"{all}\"\n"));
        if self.variable {
            text.push_str(&format!("{RAW_VARIABLE}=1\n"));
        }
        Told { text, unsaid: self.unsaid.clone() }
    }

    /// As daemon.json.
    pub fn json(&self) -> Told {
        let key = |option: &DaemonOption| match option.name {
            // This one has another name there.
            "dns-opt" => "dns-opts".to_owned(),
            name => name.to_owned(),
        };
        let members: Map<String, Value> = self.options.iter().map(|o| (key(o), o.value.clone())).collect();
        let mut unsaid = self.unsaid.clone();
        if self.variable {
            unsaid.push(format!(
                "Docker {} also needs {RAW_VARIABLE}=1 in its environment, which daemon.json cannot say: add Environment={RAW_VARIABLE}=1 below [Service] (systemctl edit docker), or update Docker to 28.2 or later",
                self.version
            ));
        }
        Told { text: format!("{:#}\n", Value::Object(members)), unsaid }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A command that makes a Docker network of the whole leased subnet. `name` must be
/// [a name of Docker's](network_name).
pub fn network_line(env: &SubnetEnv, version: Version, name: &str) -> Told {
    let mut words = vec!["docker network create --driver=bridge".to_owned()];
    let mut unsaid = Vec::new();
    if env.subnet(Family::V4).is_none() {
        words.push("--ipv4=false".into());
        if version < Version::new(28, 0, 0) {
            unsaid.push(format!(
                "Docker {version} makes no network without IPv4; update it to 28.0.2 or later, or give the overlay IPv4 too"
            ));
        }
    }
    for subnet in &env.subnets {
        if subnet.family() == Family::V6 {
            words.push("--ipv6".into());
        }
        words.push(format!("--subnet={subnet} --gateway={}", subnet.gateway()));
    }
    let mut option = |key: &str, value: &str| words.push(format!("--opt=com.docker.network.{key}={value}"));
    option("driver.mtu", &env.mtu.to_string());
    option("bridge.enable_ip_masquerade", "false");
    if version >= Version::new(28, 0, 0) {
        // Says it in one line for both firewall back ends; daemon options are then not needed.
        for subnet in &env.subnets {
            let mode = match subnet.family() {
                Family::V4 => "bridge.gateway_mode_ipv4",
                Family::V6 => "bridge.gateway_mode_ipv6",
            };
            option(mode, "nat-unprotected");
        }
    }
    words.push(name.to_owned());
    Told { text: format!("{}\n", words.join(" ")), unsaid }
}

/// Whether Docker takes this as a network's name, which a shell then takes as one word (moby
/// `daemon/names`: a letter or digit, then also `_`, `.` and `-`).
pub fn network_name(text: &str) -> Result<String, String> {
    let rest = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(rest) {
        Ok(text.to_owned())
    } else {
        Err("must begin with a letter or a digit and hold only those and _ . -".into())
    }
}

#[cfg(test)]
mod tests;
