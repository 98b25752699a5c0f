//! What a runtime wants for one container: addresses, MAC, DNS, and the container's name.
//! Read from three places (CONVENTIONS.md of CNI): `runtimeConfig` (capabilities), `args.cni`
//! and the environment's CNI_ARGS. For the MAC the first that has one counts; the addresses
//! are those of all three, as in host-local. Parsed by `request.rs`, granted by `add.rs`.

use std::net::IpAddr;

use loden_proto::Mac;
use loden_proto::name_record::{Protocol, PublishedPort};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::json;
use crate::naming;
use crate::options::is_off;
use crate::request::undecodable;

/// The wishes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Wishes {
    /// Addresses, each once.
    pub addresses: Vec<IpAddr>,
    /// The MAC of the container's end.
    pub mac: Option<Mac>,
    /// Gateways that the runtime takes for given.
    pub gateways: Vec<IpAddr>,
    /// Members of the result's `dns` that replace the configuration's.
    pub dns: Option<Map<String, Value>>,
    /// The container's name.
    pub name: Option<String>,
    /// What the container that comes in its place will be called as well.
    pub lasting_name: Option<String>,
    /// Further names of it.
    pub aliases: Vec<String>,
    /// Its published ports (`portMappings`), for whoever asks for its services by DNS. Another plugin of
    /// the chain forwards them, and judges what is malformed.
    pub published: Vec<PublishedPort>,
}

/// Longer than any name of Kubernetes' with its namespace.
const MAX_NAME: usize = 320;

impl Wishes {
    /// Reads the wishes; `network` is the name by which Podman keys its aliases.
    pub(crate) fn parse(object: &Map<String, Value>, args: &str, network: &str) -> Result<Self, Error> {
        let empty = Map::new();
        let member = |of, name| json::object(of, name).map(|o| o.unwrap_or(&empty)).map_err(undecodable);
        let runtime = member(object, "runtimeConfig")?;
        let cni = member(member(object, "args")?, "cni")?;
        let args = Args(args);
        if let Some(ranges) = json::member(runtime, "ipRanges").filter(|ranges| !is_off(ranges)) {
            let why = "addresses come from the subnet that the loden daemon has leased; ask for ips instead";
            return Err(Error::unsupported("runtimeConfig.ipRanges", ranges.clone(), why));
        }
        let mut addresses = Vec::new();
        for (from, place) in [(runtime, "runtimeConfig.ips"), (cni, "args.cni.ips")] {
            for text in json::strings(from, "ips").map_err(undecodable)?.unwrap_or_default() {
                addresses.push(address(&text).ok_or_else(|| bad_config(place, &text, ADDRESS))?);
            }
        }
        for text in args.get("IP") {
            addresses.push(address(text).ok_or_else(|| bad_args("IP", text, ADDRESS))?);
        }
        let mut wanted = Vec::new();
        for address in addresses {
            if !wanted.contains(&address) {
                wanted.push(address);
            }
        }
        let gateways = args.get("GATEWAY");
        let gateways = gateways.map(|text| address(text).ok_or_else(|| bad_args("GATEWAY", text, ADDRESS)));
        let mut aliases = aliases(runtime, network)?;
        aliases.extend(nomad_group(args));
        let name = name(args, &labels(cni)?, &aliases);
        Ok(Self {
            addresses: wanted,
            mac: mac(runtime, cni, args)?,
            gateways: gateways.collect::<Result<_, _>>()?,
            dns: dns(member(runtime, "dns")?).map_err(undecodable)?,
            lasting_name: nomad_group(args).or_else(|| name.clone()),
            name,
            aliases: aliases.into_iter().filter(|alias| is_name(alias)).collect(),
            published: published(runtime),
        })
    }
}

/// CNI_ARGS, `KEY=VALUE;KEY=VALUE`. Runtimes pass whatever they have (Nomad a value that is
/// JSON), so what is unknown or malformed is passed over, with or without IgnoreUnknown.
#[derive(Clone, Copy)]
struct Args<'a>(&'a str);

impl<'a> Args<'a> {
    fn get(self, name: &str) -> impl Iterator<Item = &'a str> {
        let pairs = self.0.split(';').filter_map(|pair| pair.split_once('='));
        pairs.filter(move |(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value)
    }

    fn last(self, name: &str) -> Option<&'a str> {
        self.get(name).last()
    }
}

const ADDRESS: &str = "an address such as 10.5.7.9";
const ETHERNET: &str = "an Ethernet address of one interface such as 02:00:0a:05:07:09";

fn bad_config(place: &str, value: &str, expected: &str) -> Error {
    Error::Config(format!("{place} has {value:?}, but must be {expected}"))
}

fn bad_args(key: &str, value: &str, expected: &str) -> Error {
    Error::EnvironmentValue {
        msg: format!("CNI_ARGS has {key}={value}, but must have {expected}"),
        details: format!("{key}={value}"),
    }
}

/// With or without a length, which is the subnet's in any case. `::ffff:10.5.7.9` is IPv4, as
/// for Go.
fn address(text: &str) -> Option<IpAddr> {
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    address.trim().parse::<IpAddr>().ok().map(|a| a.to_canonical())
}

fn mac(runtime: &Map<String, Value>, cni: &Map<String, Value>, args: Args<'_>) -> Result<Option<Mac>, Error> {
    let valid = |text: &str| {
        let mac = text.parse::<Mac>().ok()?;
        mac.is_unicast().then_some(mac)
    };
    for (from, place) in [(runtime, "runtimeConfig.mac"), (cni, "args.cni.mac")] {
        if let Some(text) = json::string(from, "mac").map_err(undecodable)?.filter(|t| !t.is_empty()) {
            return valid(text).map(Some).ok_or_else(|| bad_config(place, text, ETHERNET));
        }
    }
    let text = args.last("MAC");
    text.map(|text| valid(text).ok_or_else(|| bad_args("MAC", text, ETHERNET))).transpose()
}

/// `servers`, `searches` and `options` in the result's own spelling.
fn dns(dns: &Map<String, Value>) -> Result<Option<Map<String, Value>>, String> {
    let mut out = Map::new();
    for (from, to) in [("servers", "nameservers"), ("searches", "search"), ("options", "options")] {
        if let Some(list) = json::strings(dns, from)?.filter(|list| !list.is_empty()) {
            out.insert(to.into(), json!(list));
        }
    }
    Ok(Some(out).filter(|out| !out.is_empty()))
}

/// `portMappings` (CONVENTIONS.md of CNI), those that outsiders can reach.
pub(crate) fn published(runtime: &Map<String, Value>) -> Vec<PublishedPort> {
    let number = |mapping: &Map<String, Value>, name| {
        json::member(mapping, name)?.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
    };
    let one = |mapping: &Value| {
        let mapping = mapping.as_object()?;
        let text = |name| json::string(mapping, name).ok().flatten().unwrap_or_default();
        let protocol = match text("protocol").to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return None,
        };
        let loopback = text("hostIP").parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let port = number(mapping, "containerPort")?;
        let host_port = number(mapping, "hostPort")?;
        (!loopback).then_some(PublishedPort { protocol, port, host_port })
    };
    let list = json::member(runtime, "portMappings").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(one).collect()
}

/// A list of names; Podman sends one per network.
fn aliases(runtime: &Map<String, Value>, network: &str) -> Result<Vec<String>, Error> {
    let aliases = match json::member(runtime, "aliases") {
        Some(Value::Object(networks)) => json::strings(networks, network),
        _ => json::strings(runtime, "aliases"),
    };
    Ok(aliases.map_err(undecodable)?.unwrap_or_default())
}

fn labels(cni: &Map<String, Value>) -> Result<Vec<(&str, &str)>, Error> {
    let text = |label, name| json::string(label, name).map(Option::unwrap_or_default).map_err(undecodable);
    let labels = json::objects(cni, "labels").map_err(undecodable)?;
    labels.into_iter().map(|label| Ok((text(label, "key")?, text(label, "value")?))).collect()
}

/// What allocations of a Nomad group share.
fn nomad_group(args: Args<'_>) -> Option<String> {
    Some(format!("{}/{}", args.last("NOMAD_JOB_ID")?, args.last("NOMAD_GROUP_NAME")?))
}

/// As much of an allocation's id as Nomad shows.
const NOMAD_SHORT_ID: usize = 8;

/// The first name that somebody gave. It is for people only, so one that is no name is none.
fn name(args: Args<'_>, labels: &[(&str, &str)], aliases: &[String]) -> Option<String> {
    let label = |key: &str| labels.iter().find(|(k, v)| *k == key && !v.is_empty()).map(|(_, v)| *v);
    let within = |outer: Option<&str>, name: &str| match outer {
        Some(outer) => format!("{outer}/{name}"),
        None => name.to_owned(),
    };
    let kubernetes = || Some(within(args.last("K8S_POD_NAMESPACE"), args.last("K8S_POD_NAME")?));
    let nomad = || {
        let id = args.last("NOMAD_ALLOC_ID")?;
        Some(within(nomad_group(args).as_deref(), id.get(..NOMAD_SHORT_ID).unwrap_or(id)))
    };
    let nerdctl = || args.last("NERDCTL_CNI_DHCP_HOSTNAME").map(str::to_owned);
    let pod = || Some(within(label("io.kubernetes.pod.namespace"), label("io.kubernetes.pod.name")?));
    let plain = || label("name").map(str::to_owned);
    let name = kubernetes().or_else(nomad).or_else(nerdctl).or_else(pod).or_else(plain);
    let name = name.or_else(|| aliases.first().cloned());
    name.filter(|n| is_name(n))
}

/// Whether people can read it.
pub(crate) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(|c| !c.is_control())
}

/// Whether a container may have this MAC with these addresses: those that the plugin makes
/// itself would meet their like when another container gets the address.
pub(crate) fn is_free_to_ask(mac: Mac, first: Option<IpAddr>) -> bool {
    !naming::is_ours(mac) || first.is_some_and(|address| naming::mac_of(address) == mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(config: Value, args: &str) -> Result<Wishes, Error> {
        Wishes::parse(config.as_object().expect("object"), args, "n")
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|t| t.parse().expect("ip")).collect()
    }

    #[test]
    fn addresses_of_all_three_places_count() {
        let config = json!({
            "runtimeConfig": {"ips": ["10.5.7.9/24", "fd00::9"]},
            "args": {"cni": {"ips": ["10.5.7.9", "10.5.7.10/16"]}},
        });
        let wishes = parse(config, "IgnoreUnknown=1;IP=::ffff:10.5.7.11;IP=").expect("valid");
        assert_eq!(wishes.addresses, ips(&["10.5.7.9", "fd00::9", "10.5.7.10", "10.5.7.11"]));
    }

    #[test]
    fn of_the_macs_the_runtimes_own_counts() {
        let place = |runtime: Option<&str>, cni: Option<&str>, args: &str| {
            let config = json!({"runtimeConfig": {"mac": runtime}, "args": {"cni": {"mac": cni}}});
            parse(config, args).map(|w| w.mac.map(|m| m.to_string()))
        };
        let (a, b, c) = ("02:00:00:00:00:0a", "02:00:00:00:00:0b", "MAC=02:00:00:00:00:0c");
        assert_eq!(place(Some(a), Some(b), c).expect("valid").as_deref(), Some(a));
        assert_eq!(place(Some(""), Some(b), c).expect("valid").as_deref(), Some(b));
        assert_eq!(place(None, None, c).expect("valid").as_deref(), Some("02:00:00:00:00:0c"));
        assert_eq!(place(None, None, "").expect("valid"), None);
        for bad in ["x", "01:00:5e:00:00:01", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"] {
            assert_eq!(place(Some(bad), None, "").expect_err(bad).code(), 7);
            assert_eq!(place(None, None, &format!("MAC={bad}")).expect_err(bad).code(), 4);
        }
    }

    #[test]
    fn args_that_nobody_knows_are_passed_over() {
        let args = r#"K8S_POD_UID=1;CONSUL_IPTABLES_CONFIG={"a":"b=c;d"};;X;=;IP=10.5.7.9"#;
        assert_eq!(parse(json!({}), args).expect("valid").addresses, ips(&["10.5.7.9"]));
        for (args, code) in [("IP=10.5.7", 4), ("GATEWAY=x", 4), ("ip=x", 0)] {
            assert_eq!(parse(json!({}), args).err().map_or(0, |e| e.code()), code, "{args}");
        }
    }

    #[test]
    fn the_first_name_that_somebody_gave_counts() {
        let labels = |pairs: &[(&str, &str)]| {
            let labels: Vec<Value> = pairs.iter().map(|(k, v)| json!({"key": k, "value": v})).collect();
            json!({"args": {"cni": {"labels": labels}}})
        };
        let aliases = |aliases: Value| json!({"runtimeConfig": {"aliases": aliases}});
        for (config, args, name) in [
            (json!({}), "K8S_POD_NAME=web-1;K8S_POD_NAMESPACE=shop", Some("shop/web-1")),
            (json!({}), "IgnoreUnknown=1;K8S_POD_NAME=ctr", Some("ctr")),
            (json!({}), "K8S_POD_NAMESPACE=shop", None),
            (json!({}), "NOMAD_NAMESPACE=default;NOMAD_JOB_ID=web;NOMAD_GROUP_NAME=api", Some("web/api")),
            (
                json!({}),
                "NOMAD_JOB_ID=web;NOMAD_GROUP_NAME=api;NOMAD_ALLOC_ID=1a2b3c4d-5e6f-7a8b",
                Some("web/api/1a2b3c4d"),
            ),
            (json!({}), "NERDCTL_CNI_DHCP_HOSTNAME=box", Some("box")),
            (labels(&[("x", "y"), ("name", "web")]), "", Some("web")),
            (
                labels(&[("io.kubernetes.pod.name", "p"), ("io.kubernetes.pod.namespace", "s")]),
                "",
                Some("s/p"),
            ),
            (aliases(json!(["db", "db-1"])), "", Some("db")),
            (aliases(json!({"other": ["x"], "N": ["db"]})), "", Some("db")),
            (aliases(json!({"other": ["x"]})), "", None),
            (aliases(json!(["db"])), "K8S_POD_NAME=ctr", Some("ctr")),
            (aliases(json!(["a\u{1b}[31m"])), "", None),
            (json!({}), "", None),
        ] {
            assert_eq!(parse(config.clone(), args).expect("valid").name.as_deref(), name, "{config} {args}");
        }
    }

    #[test]
    fn dns_takes_the_results_spelling() {
        let config = json!({"runtimeConfig": {"dns": {
            "Servers": ["10.5.7.1"], "Searches": ["a.example"], "Options": ["ndots:2"],
        }}});
        let dns = parse(config, "").expect("valid").dns.map(Value::Object);
        let expected = json!({"nameservers": ["10.5.7.1"], "search": ["a.example"], "options": ["ndots:2"]});
        assert_eq!(dns, Some(expected));
        assert_eq!(parse(json!({"runtimeConfig": {"dns": {"servers": []}}}), "").expect("valid").dns, None);
    }

    #[test]
    fn wrong_kinds_are_refused() {
        for (config, code) in [
            (json!({"runtimeConfig": []}), 6),
            (json!({"args": {"cni": "x"}}), 6),
            (json!({"runtimeConfig": {"ips": "10.5.7.9"}}), 6),
            (json!({"runtimeConfig": {"aliases": "x"}}), 6),
            (json!({"runtimeConfig": {"ips": ["x"]}}), 7),
            (json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.5.7.0/24"}]]}}), 2),
            (json!({"runtimeConfig": {"ipRanges": []}}), 0),
        ] {
            assert_eq!(parse(config.clone(), "").err().map_or(0, |e| e.code()), code, "{config}");
        }
    }
}
