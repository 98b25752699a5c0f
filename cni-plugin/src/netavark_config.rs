//! What Podman passes to a plugin of netavark's, turned into a request of ours. Called by
//! `netavark.rs`; pure. The members are those of netavark's `src/network/types.rs`: `Network`,
//! `NetworkPluginExec`, `PerNetworkOptions`.
//!
//! Podman gives addresses of its own to networks that have subnets and no other IPAM driver
//! (`requiresIPAMAlloc`), so `create` sets the driver `none`; Podman then passes `--ip` on
//! without a look at it, and has no DNS server for the network.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use loden_proto::{DEFAULT_RUN_DIR, Mac};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::ifname::IfName;
use crate::json;
use crate::options::{Options, is_off};
use crate::request::{self, Attachment, Config, Request, Version};
use crate::wishes::{self, Wishes};

/// Which subcommand the request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// All is read and judged.
    Setup,
    /// What a setup was refused for does not keep its teardown from working.
    Teardown,
}

/// Options of a container's connection, by the network (`podman network create --opt`) or for one
/// container (`podman run --network NAME:KEY=VALUE`): those of the CNI configuration.
const WIRING: [&str; 8] = [
    "mtu",
    "hairpinMode",
    "portIsolation",
    "isDefaultGateway",
    "isGateway",
    "ipMasq",
    "portFilter",
    "sticky",
];
/// Where the plugin's files are: options of the network alone.
const FILES: [&str; 2] = ["subnetFile", "dataDir"];
/// Nobody forwards published ports to a network of a plugin: netavark leaves it to the plugin,
/// and this one does not. Another network of the same container may, and the plugin is told of
/// the ports all the same, so there is a way to say that it is meant.
const IGNORE_PORTS: &str = "ignorePortMappings";

/// The network as `create` returns it.
pub(crate) fn created(stdin: &[u8]) -> Result<Map<String, Value>, Error> {
    let mut network = decode(stdin)?;
    refuse(&network)?;
    request::network_name(&network)?;
    bridge(&network)?;
    let options = strings(&network, "options")?;
    files(&options)?;
    judge(&options, &FILES)?;
    let mut ipam = json::object(&network, "ipam_options").map_err(undecodable)?.cloned().unwrap_or_default();
    ipam.insert("driver".into(), json!("none"));
    network.insert("ipam_options".into(), ipam.into());
    // Podman's DNS server listens on bridges that netavark has made.
    network.insert("dns_enabled".into(), json!(false));
    Ok(network)
}

/// The request for a container.
pub(crate) fn request(purpose: Purpose, netns: &str, stdin: &[u8]) -> Result<Request, Error> {
    let input = decode(stdin)?;
    let empty = Map::new();
    let member = |name| json::object(&input, name).map_err(undecodable).map(|o| o.unwrap_or(&empty));
    let (network, container) = (member("network")?, member("network_options")?);
    let text = |of, name| json::string(of, name).map_err(undecodable).map(Option::unwrap_or_default);
    let name = request::network_name(network)?;
    let container_id = request::container_id(text(&input, "container_id")?)?.to_owned();
    let ifname = text(container, "interface_name")?;
    let ifname = IfName::new(ifname).map_err(|e| Error::Config(format!("interface_name {ifname:?}: {e}")))?;
    let mut options = strings(network, "options")?;
    let (subnet_file, data_dir) = files(&options)?;
    let mut config = Config {
        version: Version::NEWEST,
        network: name.clone(),
        subnet_file,
        data_dir,
        bridge: None,
        options: Options::default(),
        dns: json!({}),
        prev_result: None,
    };
    let mut wishes = Wishes::default();
    if purpose == Purpose::Setup {
        refuse(network)?;
        config.bridge = bridge(network)?;
        judge(&options, &FILES)?;
        let own = strings(container, "options")?;
        judge(&own, &[])?;
        for (key, value) in own {
            options.retain(|(k, _)| !k.eq_ignore_ascii_case(&key));
            options.push((key, value));
        }
        config.options = Options::parse(&typed(&options)?)?;
        refuse_ports(&input, &options)?;
        wishes = self::wishes(&input, container)?;
    }
    let attachment =
        Attachment { network: name, container_id, ifname, netns: netns.into(), own_netns_allowed: false };
    Ok(Request { attachment, config, wishes })
}

/// Refuses what a network of this driver cannot have, unless it says "off".
fn refuse(network: &Map<String, Value>) -> Result<(), Error> {
    for (key, why) in [
        ("subnets", "addresses come from the subnet that the loden daemon has leased; leave out --subnet"),
        ("routes", "routes are those of the overlay; leave out --route, or see --opt isDefaultGateway=false"),
        ("internal", "use --opt isDefaultGateway=false, which leaves the routes to the overlay alone"),
        ("network_dns_servers", "no DNS server of Podman's serves this network; leave out --dns"),
    ] {
        if let Some(value) = json::member(network, key).filter(|value| !is_off(value)) {
            return Err(Error::unsupported(key, value.clone(), why));
        }
    }
    for (key, value) in strings(network, "ipam_options")? {
        if !(value.is_empty() || key == "driver" && value == "none") {
            let why =
                "addresses come from the subnet that the loden daemon has leased; leave out --ipam-driver";
            return Err(Error::unsupported(&format!("ipam_options.{key}"), value, why));
        }
    }
    Ok(())
}

/// `podman network create --interface-name`.
fn bridge(network: &Map<String, Value>) -> Result<Option<IfName>, Error> {
    let name = json::string(network, "network_interface").map_err(undecodable)?.filter(|n| !n.is_empty());
    let checked =
        |name| IfName::new(name).map_err(|e| Error::Config(format!("network_interface {name:?}: {e}")));
    name.map(checked).transpose()
}

/// Refuses unknown options, and wrong values of known ones.
fn judge(options: &[(String, String)], also: &[&str]) -> Result<(), Error> {
    let known: Vec<&str> = WIRING.iter().chain(also).copied().chain([IGNORE_PORTS]).collect();
    for (key, _) in options {
        if key.eq_ignore_ascii_case("bridge") {
            return Err(Error::Config(
                "the bridge is not an option; give its name by --interface-name".into(),
            ));
        }
        if !known.iter().any(|k| k.eq_ignore_ascii_case(key)) {
            return Err(Error::Config(format!(
                "unknown option {key}; the loden driver has {} here",
                known.join(", ")
            )));
        }
    }
    Options::parse(&typed(options)?).map(drop)
}

/// The options as a CNI configuration has them: not all of them texts.
fn typed(options: &[(String, String)]) -> Result<Map<String, Value>, Error> {
    let mut out = Map::new();
    for (key, text) in options {
        let key = key.as_str();
        let value = if key.eq_ignore_ascii_case("mtu") {
            let number: Option<u32> = text.parse().ok();
            json!(number.ok_or_else(|| Error::Config(format!("mtu must be a number, but is {text:?}")))?)
        } else if FILES.iter().any(|k| k.eq_ignore_ascii_case(key)) {
            continue;
        } else {
            let wrong = || Error::Config(format!("{key} must be true or false, but is {text:?}"));
            json!(text.parse::<bool>().map_err(|_| wrong())?)
        };
        out.insert(key.to_owned(), value);
    }
    Ok(out)
}

fn files(options: &[(String, String)]) -> Result<(PathBuf, PathBuf), Error> {
    let path = |name: &str, default: &str| {
        let given = options.iter().find(|(k, v)| k.eq_ignore_ascii_case(name) && !v.is_empty());
        let path = given.map_or_else(|| Path::new(DEFAULT_RUN_DIR).join(default), |(_, v)| PathBuf::from(v));
        if path.is_absolute() {
            return Ok(path);
        }
        Err(Error::Config(format!("{name} must be an absolute path, but is {}", path.display())))
    };
    Ok((path("subnetFile", "subnet.env")?, path("dataDir", "ipam")?))
}

fn refuse_ports(input: &Map<String, Value>, options: &[(String, String)]) -> Result<(), Error> {
    if options.iter().any(|(k, v)| k.eq_ignore_ascii_case(IGNORE_PORTS) && v == "true") {
        return Ok(());
    }
    let ports = json::objects(input, "port_mappings").map_err(undecodable)?;
    let Some(first) = ports.first() else { return Ok(()) };
    let number = |name| json::member(first, name).map(Value::to_string).unwrap_or_default();
    Err(Error::Config(format!(
        "published ports (-p {}:{}) are not forwarded to a network of the loden driver: the container's own \
         address answers this host and the whole overlay without. Leave out -p; or, if another network of the \
         container is to forward them, say --network NAME:{IGNORE_PORTS}=true, or create the network with --opt \
         {IGNORE_PORTS}=true",
        number("host_port"),
        number("container_port"),
    )))
}

fn wishes(input: &Map<String, Value>, container: &Map<String, Value>) -> Result<Wishes, Error> {
    let mut wishes = Wishes::default();
    for text in json::strings(container, "static_ips").map_err(undecodable)?.unwrap_or_default() {
        let address: Option<IpAddr> = text.parse().ok();
        let wrong = || Error::Config(format!("static_ips has {text:?}, which is no address"));
        wishes.addresses.push(address.ok_or_else(wrong)?.to_canonical());
    }
    if let Some(text) = json::string(container, "static_mac").map_err(undecodable)?.filter(|t| !t.is_empty())
    {
        let mac = text.parse::<Mac>().ok().filter(Mac::is_unicast);
        let wrong = || {
            Error::Config(format!("static_mac is {text:?}, but must be an Ethernet address of one interface"))
        };
        wishes.mac = Some(mac.ok_or_else(wrong)?);
    }
    let name = json::string(input, "container_name").map_err(undecodable)?.map(str::to_owned);
    let aliases = json::strings(container, "aliases").map_err(undecodable)?.unwrap_or_default();
    wishes.aliases = aliases.into_iter().filter(|alias| wishes::is_name(alias)).collect();
    wishes.name = name.filter(|name| wishes::is_name(name)).or_else(|| wishes.aliases.first().cloned());
    Ok(wishes)
}

/// A map from text to text, such as Podman has for all options; absent or null is empty.
fn strings(object: &Map<String, Value>, name: &str) -> Result<Vec<(String, String)>, Error> {
    let map = json::object(object, name).map_err(undecodable)?;
    let text = |(key, value): (&String, &Value)| match value {
        Value::String(text) => Ok((key.clone(), text.clone())),
        other => {
            Err(undecodable(format!("{name} must hold strings, but holds {} as {key}", json::kind(other))))
        }
    };
    map.into_iter().flatten().map(text).collect()
}

fn decode(stdin: &[u8]) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(stdin).map_err(|e| undecodable(e.to_string()))? {
        Value::Object(object) => Ok(object),
        other => Err(undecodable(format!("it must be an object, but is {}", json::kind(&other)))),
    }
}

fn undecodable(reason: String) -> Error {
    Error::Decode(format!("cannot read what Podman passes: {reason}"))
}

#[cfg(test)]
#[path = "netavark_config_tests.rs"]
mod tests;
