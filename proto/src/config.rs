//! The network config, `<prefix>/config` in etcd: flannel's JSON, by flannel's rules
//! (flannel `pkg/subnet/config.go`, v0.28).
//!
//! Deliberate differences, listed in docs/migration.md: a config without `Backend` means
//! vxlan (flannel's code takes it as udp), and numbers that flannel would silently cut
//! (a VNI of 2^24) are errors.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::dns_name::DnsName;
use crate::json::{shown, take};
use crate::{Family, Subnet};

/// The VXLAN port of the Linux kernel and so of flannel (`drivers/net/vxlan`, older than IANA's 4789).
pub const DEFAULT_VXLAN_PORT: u16 = 8472;
/// flannel's default VNI.
pub const DEFAULT_VNI: u32 = 1;
/// Leaves room for a name of two labels before it.
const LONGEST_ZONE: usize = 125;
/// Backend types that this version runs.
pub const BACKENDS: [&str; 3] = ["vxlan", "host-gw", "alloc"];

/// A network config that has passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The IPv4 pool, unless `EnableIPv4` is false.
    pub v4: Option<Pool>,
    /// The IPv6 pool, if `EnableIPv6` is true.
    pub v6: Option<Pool>,
    /// How packets cross the underlay.
    pub backend: Backend,
    /// The names of containers and hosts, unless `DNS` is false.
    pub dns: Option<Dns>,
    /// Whether the config has no `Backend` member, which flannel's code takes as udp.
    pub backend_implied: bool,
    /// What an operator should know: accepted but without effect.
    pub notes: Vec<String>,
}

/// The addresses of one family and how they are cut into leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// All overlay addresses of this family.
    pub network: Subnet,
    /// Prefix length of one lease.
    pub subnet_length: u8,
    /// First subnet to lease.
    pub min: Subnet,
    /// Last subnet to lease.
    pub max: Subnet,
}

/// The member `DNS`, which flannel passes over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// `Zone`: below which all names are.
    pub zone: DnsName,
    /// `TTL` of answers in seconds.
    pub ttl: u32,
    /// `NegativeTTL`: how long it may be remembered that there is no such name, in seconds.
    pub negative_ttl: u32,
    /// `Address`: where every host answers, the same on all of them, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// `Outside`
    pub outside: Outside,
}

/// Which names those outside of the overlay see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// `all`
    All,
    /// `published`: of containers with a published port.
    Published,
}

impl Outside {
    /// As in the config.
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Published => "published",
        }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            zone: DnsName::default_zone(),
            // The JVM remembers longer in any case; others should see a moved container soon.
            ttl: 5,
            // Who starts before its peers asks again.
            negative_ttl: 2,
            addresses: vec![DEFAULT_DNS_ADDRESS],
            outside: Outside::All,
        }
    }
}

/// Link-local (RFC 3927), so no network routes it and the same can be on every host.
pub const DEFAULT_DNS_ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 53, 53));

/// A backend with its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN, [RFC 7348].
    ///
    /// [RFC 7348]: https://www.rfc-editor.org/rfc/rfc7348
    Vxlan(Vxlan),
    /// Routes by the peers' own addresses; all hosts on one link.
    HostGw,
    /// Leases only; somebody else carries the packets.
    Alloc,
}

/// Settings of the vxlan backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// MTU of the underlay in bytes; `None` takes the underlay device's.
    pub underlay_mtu: Option<u32>,
    /// Group policy extension on the device.
    pub gbp: bool,
    /// Whether the device learns peers from traffic.
    pub learning: bool,
    /// Whether peers on the same link are reached without encapsulation.
    pub direct_routing: bool,
}

impl Backend {
    /// The `Type` in the config, and in leases' `BackendType`.
    pub fn name(&self) -> &'static str {
        match self {
            Backend::Vxlan(_) => "vxlan",
            Backend::HostGw => "host-gw",
            Backend::Alloc => "alloc",
        }
    }
}

/// What is wrong with a network config. Each names the key and its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not a JSON object.
    #[error("the network config is not a JSON object: {0}")]
    NotJson(String),
    /// A member has the wrong type or a value out of its range.
    #[error("{key} is {value}, but must be {expected}")]
    Value {
        /// The member's name as documented.
        key: &'static str,
        /// The value as given.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A member that must be there is not.
    #[error("{key} is missing: {expected}")]
    Missing {
        /// The member's name.
        key: &'static str,
        /// Why it is needed.
        expected: &'static str,
    },
    /// Two members whose names differ in case only, and whose values differ.
    #[error("{first} and {second} contradict each other; names match in any case, so keep one of them")]
    Contradiction {
        /// One, with its value.
        first: String,
        /// The other, with its value.
        second: String,
    },
    /// A backend that flannel has and this version does not.
    #[error("Backend.Type is {0:?}; this version of Loden runs vxlan, host-gw and alloc")]
    Backend(String),
}

fn bad(key: &'static str, value: &impl ToString, expected: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), expected: expected.into() }
}

impl NetworkConfig {
    /// Parses and checks the text at `<prefix>/config`.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut object = match serde_json::from_str(text) {
            Ok(Value::Object(object)) => object,
            Ok(other) => return Err(ConfigError::NotJson(shown(&other))),
            Err(e) => return Err(ConfigError::NotJson(e.to_string())),
        };
        contradictions(&object)?;
        let mut notes = Vec::new();
        if boolean(&mut object, "EnableNFTables", false)? {
            notes.push("EnableNFTables has no effect: Loden always uses nftables".to_owned());
        }
        let enable_v4 = boolean(&mut object, "EnableIPv4", true)?;
        let enable_v6 = boolean(&mut object, "EnableIPv6", false)?;
        if !enable_v4 && !enable_v6 {
            return Err(bad("EnableIPv4", &false, "true unless EnableIPv6 is true"));
        }
        let v4 = enable_v4.then(|| pool(&mut object, Family::V4)).transpose()?;
        let v6 = enable_v6.then(|| pool(&mut object, Family::V6)).transpose()?;
        let backend = take(&mut object, "Backend");
        let backend_implied = backend.is_none();
        let backend = parse_backend(backend, &mut notes)?;
        let dns = parse_dns(take(&mut object, "DNS"), &mut notes)?;
        let pools = || v4.iter().chain(&v6);
        if let Some(inside) =
            dns.iter().flat_map(|d| &d.addresses).find(|a| pools().any(|p| p.network.contains(**a)))
        {
            return Err(bad(
                "DNS.Address",
                inside,
                "outside of the network: containers have the addresses there",
            ));
        }
        for key in object.keys() {
            let reason =
                if key.to_ascii_lowercase().starts_with("ipv6") { " without EnableIPv6" } else { "" };
            notes.push(format!("{key} has no effect{reason}"));
        }
        Ok(Self { v4, v6, backend, dns, backend_implied, notes })
    }

    /// The pools in the order IPv4, IPv6.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.v4.iter().chain(&self.v6)
    }

    /// The pool of a family.
    pub fn pool(&self, family: Family) -> Option<&Pool> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Whether the address lies in one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.pools().any(|p| p.network.contains(address))
    }

    /// The config as flannel's documents spell it, every default written out.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        if let Some(pool) = &self.v4 {
            out.insert("Network".into(), json!(pool.network));
            out.insert("SubnetLen".into(), json!(pool.subnet_length));
            out.insert("SubnetMin".into(), json!(pool.min.address()));
            out.insert("SubnetMax".into(), json!(pool.max.address()));
        } else {
            out.insert("EnableIPv4".into(), json!(false));
        }
        if let Some(pool) = &self.v6 {
            out.insert("EnableIPv6".into(), json!(true));
            out.insert("IPv6Network".into(), json!(pool.network));
            out.insert("IPv6SubnetLen".into(), json!(pool.subnet_length));
            out.insert("IPv6SubnetMin".into(), json!(pool.min.address()));
            out.insert("IPv6SubnetMax".into(), json!(pool.max.address()));
        }
        let mut backend = Map::new();
        backend.insert("Type".into(), json!(self.backend.name()));
        if let Backend::Vxlan(vxlan) = &self.backend {
            backend.insert("VNI".into(), json!(vxlan.vni));
            backend.insert("Port".into(), json!(vxlan.port));
            if let Some(mtu) = vxlan.underlay_mtu {
                backend.insert("MTU".into(), json!(mtu));
            }
            for (key, value) in
                [("GBP", vxlan.gbp), ("Learning", vxlan.learning), ("DirectRouting", vxlan.direct_routing)]
            {
                backend.insert(key.into(), json!(value));
            }
        }
        out.insert("Backend".into(), Value::Object(backend));
        out.insert("DNS".into(), self.dns.as_ref().map_or(json!(false), Dns::to_json));
        Value::Object(out)
    }
}

impl Dns {
    fn to_json(&self) -> Value {
        json!({
            "Zone": self.zone,
            "TTL": self.ttl,
            "NegativeTTL": self.negative_ttl,
            "Address": self.addresses,
            "Outside": self.outside.word(),
        })
    }
}

impl Pool {
    /// How many leases the pool can give.
    pub fn capacity(&self) -> u128 {
        self.index_of(&self.max) - self.index_of(&self.min) + 1
    }

    /// The lease at this position, counted from the first that may be leased.
    pub fn nth(&self, index: u128) -> Option<Subnet> {
        let step = 1u128.checked_shl(u32::from(self.network.family().bits() - self.subnet_length))?;
        let subnet = Subnet::new(self.min.nth(step.checked_mul(index)?), self.subnet_length).ok()?;
        self.accepts(&subnet).then_some(subnet)
    }

    /// Whether the subnet is one that the pool would lease.
    pub fn accepts(&self, subnet: &Subnet) -> bool {
        subnet.length() == self.subnet_length
            && self.network.contains_subnet(subnet)
            && (self.min..=self.max).contains(subnet)
    }

    fn index_of(&self, subnet: &Subnet) -> u128 {
        self.network.offset_of(subnet.address()) >> (self.network.family().bits() - self.subnet_length)
    }
}

/// Names of a family's members, and flannel's limits for it.
struct Keys {
    network: &'static str,
    length: &'static str,
    min: &'static str,
    max: &'static str,
    /// The usual subnet length, where the network is wide enough.
    usual: u8,
    /// Longest subnet that may be leased.
    longest: u8,
    example: &'static str,
}

const V4_KEYS: Keys = Keys {
    network: "Network",
    length: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    usual: 24,
    longest: 30,
    example: "an IPv4 network such as 10.5.0.0/16",
};
const V6_KEYS: Keys = Keys {
    network: "IPv6Network",
    length: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    usual: 64,
    longest: 126,
    example: "an IPv6 network such as fd00:10:5::/48",
};

fn pool(object: &mut Map<String, Value>, family: Family) -> Result<Pool, ConfigError> {
    let keys = match family {
        Family::V4 => V4_KEYS,
        Family::V6 => V6_KEYS,
    };
    let Some(value) = take(object, keys.network) else {
        return Err(ConfigError::Missing { key: keys.network, expected: keys.example });
    };
    let network: Subnet = match value.as_str().map(truncated) {
        Some(Ok(network)) if network.family() == family => network,
        Some(Err(e)) => return Err(bad(keys.network, &shown(&value), format!("{} ({e})", keys.example))),
        _ => return Err(bad(keys.network, &shown(&value), keys.example)),
    };
    let reserved = RESERVED.iter().filter_map(|r| r.parse::<Subnet>().ok()).find(|r| r.overlaps(&network));
    if let Some(reserved) = reserved {
        return Err(bad(
            keys.network,
            &network,
            format!("apart from {reserved}, whose addresses no container can have"),
        ));
    }
    let length = match number(object, keys.length, u64::from(keys.longest))? {
        Some(length) if length > 0 => length as u8,
        _ if network.length() <= keys.usual - 2 => keys.usual,
        _ if network.length() + 2 <= keys.longest => network.length() + 2,
        _ => return Err(bad(keys.network, &network, format!("/{} or wider", keys.longest - 2))),
    };
    if length < network.length() + 2 {
        let expected = format!("at least {}: {network} must hold four subnets or more", network.length() + 2);
        return Err(bad(keys.length, &length, expected));
    }
    let mut bound = |key: &'static str, default: IpAddr| -> Result<Subnet, ConfigError> {
        let Some(value) = take(object, key) else {
            return Subnet::new(default, length).map_err(|e| bad(key, &default, e.to_string()));
        };
        let address = value.as_str().and_then(|s| s.parse::<IpAddr>().ok());
        let Some(address) = address.filter(|a| network.contains(*a)) else {
            return Err(bad(key, &shown(&value), format!("an address inside {network}")));
        };
        Subnet::new(address, length)
            .map_err(|_| bad(key, &address, format!("the first address of a /{length} inside {network}")))
    };
    // flannel skips the first subnet, whose network address some software takes for the network's own.
    let step = 1u128 << (family.bits() - length);
    let min = bound(keys.min, network.nth(step))?;
    let max = bound(keys.max, network.nth(network.size().wrapping_sub(step)))?;
    if min > max {
        return Err(bad(keys.min, &min.address(), format!("not above {} {}", keys.max, max.address())));
    }
    Ok(Pool { network, subnet_length: length, min, max })
}

/// flannel takes a network with host bits and cuts them.
fn truncated(text: &str) -> Result<Subnet, crate::SubnetError> {
    match text.parse() {
        Err(crate::SubnetError::HostBits { meant, .. }) => Ok(meant),
        other => other,
    }
}

/// Addresses that no container can have: this host, loopback, link-local, multicast
/// (RFC 6890, RFC 4291 §2.4).
const RESERVED: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/127",
    "fe80::/10",
    "ff00::/8",
    "::ffff:0:0/96",
];

fn contradictions(object: &Map<String, Value>) -> Result<(), ConfigError> {
    for (i, (key, value)) in object.iter().enumerate() {
        let twin = object.iter().skip(i + 1).find(|(k, v)| k.eq_ignore_ascii_case(key) && *v != value);
        if let Some((other, other_value)) = twin {
            return Err(ConfigError::Contradiction {
                first: format!("{key} ({})", shown(value)),
                second: format!("{other} ({})", shown(other_value)),
            });
        }
    }
    Ok(())
}

fn parse_backend(value: Option<Value>, notes: &mut Vec<String>) -> Result<Backend, ConfigError> {
    let mut object = match value {
        None => Map::new(),
        Some(Value::Object(object)) => {
            contradictions(&object)?;
            object
        }
        Some(other) => return Err(bad("Backend", &shown(&other), "an object such as {\"Type\":\"vxlan\"}")),
    };
    let kind = match take(&mut object, "Type") {
        None => "vxlan".to_owned(),
        Some(Value::String(kind)) => kind.to_ascii_lowercase(),
        Some(other) => return Err(bad("Backend.Type", &shown(&other), "one of vxlan, host-gw, alloc")),
    };
    let backend = match kind.as_str() {
        "vxlan" => Backend::Vxlan(Vxlan {
            vni: number(&mut object, "VNI", (1 << 24) - 1)?.map_or(DEFAULT_VNI, |n| n as u32),
            port: number(&mut object, "Port", u64::from(u16::MAX))?
                .map_or(DEFAULT_VXLAN_PORT, |n| if n == 0 { DEFAULT_VXLAN_PORT } else { n as u16 }),
            underlay_mtu: number(&mut object, "MTU", 65535)?.filter(|n| *n > 0).map(|n| n as u32),
            gbp: boolean(&mut object, "GBP", false)?,
            learning: boolean(&mut object, "Learning", false)?,
            direct_routing: boolean(&mut object, "DirectRouting", false)?,
        }),
        "host-gw" => Backend::HostGw,
        "alloc" => Backend::Alloc,
        _ => return Err(ConfigError::Backend(kind)),
    };
    if let Backend::Vxlan(Vxlan { underlay_mtu: Some(mtu), .. }) = &backend {
        // 68 bytes is the least IPv4 MTU (RFC 791), 50 the encapsulation.
        if *mtu < 118 {
            return Err(bad(
                "MTU",
                mtu,
                "at least 118 (it is the underlay's MTU; VXLAN takes 50 bytes of it)",
            ));
        }
    }
    for key in object.keys() {
        notes.push(format!("Backend.{key} has no effect with {kind}"));
    }
    Ok(backend)
}

fn parse_dns(value: Option<Value>, notes: &mut Vec<String>) -> Result<Option<Dns>, ConfigError> {
    let mut object = match value {
        None | Some(Value::Bool(true)) => return Ok(Some(Dns::default())),
        Some(Value::Bool(false)) => return Ok(None),
        Some(Value::Object(object)) => object,
        Some(other) => {
            return Err(bad(
                "DNS",
                &shown(&other),
                "false, or an object such as {\"Zone\":\"loden.internal\"}",
            ));
        }
    };
    contradictions(&object)?;
    let mut dns = Dns::default();
    if let Some(value) = take(&mut object, "Zone") {
        let expected = "the name of a zone such as loden.internal";
        let zone = value.as_str().ok_or_else(|| bad("DNS.Zone", &shown(&value), expected))?;
        dns.zone = zone.parse().map_err(|e| bad("DNS.Zone", &shown(&value), format!("{expected} ({e})")))?;
        if dns.zone.labels().next_back() == Some("arpa") {
            return Err(bad("DNS.Zone", &shown(&value), "no zone of addresses"));
        }
        // The longest label below it must fit.
        if dns.zone.as_str().len() > LONGEST_ZONE {
            return Err(bad("DNS.Zone", &shown(&value), format!("at most {LONGEST_ZONE} characters long")));
        }
    }
    // RFC 2181 §8: a TTL has 31 bits. More than a day is a mistake.
    const DAY: u64 = 86_400;
    dns.ttl = number(&mut object, "TTL", DAY)?.map_or(dns.ttl, |n| n as u32);
    dns.negative_ttl = number(&mut object, "NegativeTTL", DAY)?.map_or(dns.negative_ttl, |n| n as u32);
    if let Some(value) = take(&mut object, "Address") {
        let texts = match &value {
            Value::Array(list) => list.iter().map(Value::as_str).collect(),
            other => vec![other.as_str()],
        };
        let expected = "a link-local or private address that every host can have, such as 169.254.53.53, or a list with one of each family";
        let addresses: Option<Vec<IpAddr>> = texts.into_iter().map(|t| t?.parse().ok()).collect();
        // One that somebody in the Internet has could not be reached any more; fe80:: is no host's own address.
        let usable = |a: &IpAddr| match a {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_private(),
            IpAddr::V6(ip) => ip.is_unique_local(),
        };
        dns.addresses = addresses
            .filter(|all| all.iter().all(usable))
            .filter(|all| {
                Family::ALL.iter().all(|f| all.iter().filter(|a| Family::of(**a) == *f).count() <= 1)
            })
            .ok_or_else(|| bad("DNS.Address", &shown(&value), expected))?;
    }
    if let Some(value) = take(&mut object, "Outside") {
        dns.outside = match value.as_str() {
            Some("all") => Outside::All,
            Some("published") => Outside::Published,
            _ => return Err(bad("DNS.Outside", &shown(&value), "all or published")),
        };
    }
    notes.extend(object.keys().map(|key| format!("DNS.{key} has no effect")));
    Ok(Some(dns))
}

fn boolean(object: &mut Map<String, Value>, key: &'static str, default: bool) -> Result<bool, ConfigError> {
    match take(object, key) {
        None => Ok(default),
        Some(Value::Bool(value)) => Ok(value),
        Some(other) => Err(bad(key, &shown(&other), "true or false")),
    }
}

fn number(object: &mut Map<String, Value>, key: &'static str, max: u64) -> Result<Option<u64>, ConfigError> {
    match take(object, key) {
        None => Ok(None),
        Some(value) => match value.as_u64().filter(|n| *n <= max) {
            Some(number) => Ok(Some(number)),
            None => Err(bad(key, &shown(&value), format!("a whole number from 0 to {max}"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn error(text: &str) -> String {
        NetworkConfig::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn flannels_defaults() {
        let config = parse(r#"{"Network":"10.5.0.0/16"}"#);
        let pool = config.v4.expect("IPv4 is on by default");
        assert_eq!((pool.subnet_length, config.v6), (24, None));
        assert_eq!(
            (pool.min.to_string(), pool.max.to_string()),
            ("10.5.1.0/24".into(), "10.5.255.0/24".into())
        );
        assert!(config.backend_implied);
        let Backend::Vxlan(vxlan) = config.backend else { panic!("vxlan is the default") };
        assert_eq!((vxlan.vni, vxlan.port, vxlan.direct_routing), (1, 8472, false));
        assert_eq!(parse(r#"{"Network":"10.5.0.0/23"}"#).v4.map(|p| p.subnet_length), Some(25));
        assert_eq!(parse(r#"{"Network":"10.5.0.7/16"}"#).v4, Some(pool), "host bits are cut as flannel does");
    }

    #[test]
    fn keys_match_in_any_case_as_in_go() {
        let config = parse(
            r#"{"network":"10.5.0.0/16","SUBNETLEN":26,"enableipv6":true,"ipv6network":"fd00::/48",
                "backend":{"type":"VXLAN","vni":7,"directrouting":true}}"#,
        );
        assert_eq!(config.v4.map(|p| p.subnet_length), Some(26));
        assert_eq!(
            config.v6.map(|p| (p.subnet_length, p.min.to_string())),
            Some((64, "fd00:0:0:1::/64".into()))
        );
        assert!(matches!(config.backend, Backend::Vxlan(Vxlan { vni: 7, direct_routing: true, .. })));
    }

    #[test]
    fn an_error_names_the_key_and_its_value() {
        for (text, parts) in [
            ("nonsense", &["not a JSON object"][..]),
            ("[]", &["not a JSON object", "[]"]),
            ("{}", &["Network is missing"]),
            (r#"{"Network":"10.5.0.0"}"#, &["Network is \"10.5.0.0\"", "10.5.0.0/16"]),
            (r#"{"Network":"fd00::/48"}"#, &["Network is", "IPv4"]),
            (r#"{"Network":7}"#, &["Network is 7"]),
            (
                r#"{"Network":"10.5.0.0/16","network":"10.6.0.0/16"}"#,
                &["contradict", "10.5.0.0/16", "10.6.0.0/16"],
            ),
            (r#"{"Network":"10.5.0.0/16","Backend":{"VNI":1,"vni":2}}"#, &["contradict", "VNI (1)"]),
            (r#"{"Network":"0.0.0.0/0"}"#, &["Network is 0.0.0.0/0", "apart from"]),
            (r#"{"Network":"127.0.0.0/8"}"#, &["apart from 127.0.0.0/8"]),
            (r#"{"Network":"224.0.0.0/8"}"#, &["apart from"]),
            (r#"{"Network":"10.5.0.0/29"}"#, &["Network is 10.5.0.0/29", "/28 or wider"]),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":17}"#, &["SubnetLen is 17", "at least 18"]),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":31}"#, &["SubnetLen is 31", "from 0 to 30"]),
            (r#"{"Network":"10.5.0.0/16","SubnetLen":"24"}"#, &["SubnetLen is \"24\""]),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}"#,
                &["SubnetMin is \"10.6.0.0\"", "inside 10.5.0.0/16"],
            ),
            (r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.7"}"#, &["SubnetMax is 10.5.9.7", "/24"]),
            (
                r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}"#,
                &["SubnetMin is 10.5.9.0", "SubnetMax 10.5.8.0"],
            ),
            (r#"{"Network":"10.5.0.0/16","EnableIPv4":false}"#, &["EnableIPv4 is false"]),
            (r#"{"Network":"10.5.0.0/16","EnableIPv6":true}"#, &["IPv6Network is missing"]),
            (r#"{"Network":"10.5.0.0/16","Backend":"vxlan"}"#, &["Backend is \"vxlan\""]),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"wireguard"}}"#,
                &["\"wireguard\"", "vxlan, host-gw and alloc"],
            ),
            (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":16777216}}"#, &["VNI is 16777216"]),
            (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Port":70000}}"#, &["Port is 70000"]),
            (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","MTU":60}}"#, &["MTU is 60"]),
            (
                r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","Learning":"yes"}}"#,
                &["Learning is \"yes\""],
            ),
        ] {
            let error = error(text);
            assert!(parts.iter().all(|p| error.contains(p)), "{text}: {error}");
        }
    }

    #[test]
    fn what_has_no_effect_is_noted() {
        let config =
            parse(r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"host-gw","VNI":3}}"#);
        assert_eq!(config.notes.len(), 2, "{:?}", config.notes);
    }

    #[test]
    fn a_pool_counts_and_recognises_its_leases() {
        let pool = parse(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.10.0","SubnetMax":"10.5.29.0"}"#)
            .v4
            .expect("v4");
        assert_eq!(pool.capacity(), 20);
        assert_eq!(pool.nth(0).map(|s| s.to_string()), Some("10.5.10.0/24".into()));
        assert_eq!(pool.nth(19), Some(pool.max));
        assert_eq!(pool.nth(20), None);
        assert!(!pool.accepts(&"10.5.9.0/24".parse().expect("subnet")));
        assert!(!pool.accepts(&"10.5.10.0/25".parse().expect("subnet")));
    }

    #[test]
    fn a_config_written_out_parses_to_itself() {
        let config = parse(
            r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","Backend":{"Type":"vxlan","MTU":1400}}"#,
        );
        assert_eq!(parse(&config.to_json().to_string()), config);
    }
}
