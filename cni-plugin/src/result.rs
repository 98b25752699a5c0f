//! The result of ADD in the form of the configuration's version. Built by `add.rs`, written
//! by `run.rs`.
//!
//! Chained plugins find their way by position: the bridge first (firewall's ingress policy),
//! then the host's end of the pair (bandwidth), then the container's interface (portmap,
//! tuning), to which `ips` point.

use std::net::IpAddr;

use loden_proto::{Family, Mac, Subnet};
use serde_json::{Map, Value, json};

use crate::json;
use crate::request::Version;

/// One interface of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// The namespace's path as the runtime gave it; absent for the host's interfaces.
    pub sandbox: Option<String>,
}

/// An address of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// The leased subnet, whose length and gateway it has.
    pub subnet: Subnet,
}

/// A route of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: Subnet,
    /// By which gateway.
    pub gateway: IpAddr,
}

/// What ADD made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddResult {
    /// The bridge, the host's end, the container's end.
    pub interfaces: [Interface; 3],
    /// One address per subnet, IPv4 first.
    pub addresses: Vec<Address>,
    /// The routes beside those to the container's own subnets.
    pub routes: Vec<Route>,
    /// `dns` of the configuration and the runtime.
    pub dns: Value,
}

/// Index of the container's end in [`AddResult::interfaces`].
const CONTAINER: usize = 2;

impl AddResult {
    /// The JSON for standard output. With a `prevResult`, ours is appended to it; its `dns`
    /// stays where we have none.
    pub fn to_json(&self, version: Version, previous: Option<&Map<String, Value>>) -> Value {
        let mut out = match version {
            Version::V0_1_0 | Version::V0_2_0 => self.by_family(previous),
            _ => self.by_interface(version, previous),
        };
        let no_dns = self.dns.as_object().is_none_or(Map::is_empty);
        let previous = previous.and_then(|p| json::member(p, "dns")).filter(|_| no_dns);
        out["cniVersion"] = json!(version.as_str());
        out["dns"] = previous.unwrap_or(&self.dns).clone();
        out
    }

    /// The form from 0.3.0 on.
    fn by_interface(&self, version: Version, previous: Option<&Map<String, Value>>) -> Value {
        let previous = |name| {
            previous
                .and_then(|p| json::member(p, name))
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let mut interfaces = previous("interfaces");
        let container = interfaces.len() + CONTAINER;
        interfaces.extend(self.interfaces.iter().map(|i| interface(i, version)));
        let mut ips = previous("ips");
        ips.extend(self.addresses.iter().map(|a| ip(a, container, version)));
        let mut routes = previous("routes");
        routes.extend(self.routes.iter().map(route));
        json!({ "interfaces": interfaces, "ips": ips, "routes": routes })
    }

    /// The form of 0.1.0 and 0.2.0: one address of each family and no interfaces. Where a
    /// previous plugin has given one, that is the container's.
    fn by_family(&self, previous: Option<&Map<String, Value>>) -> Value {
        let mut out = json!({});
        for (family, name) in [(Family::V4, "ip4"), (Family::V6, "ip6")] {
            let ours = self.addresses.iter().find(|a| a.subnet.family() == family).map(|a| {
                let routes: Vec<Value> =
                    self.routes.iter().filter(|r| r.to.family() == family).map(route).collect();
                json!({ "ip": with_length(a), "gateway": a.subnet.gateway(), "routes": routes })
            });
            if let Some(ip) = previous.and_then(|p| json::member(p, name)).cloned().or(ours) {
                out[name] = ip;
            }
        }
        out
    }
}

fn interface(interface: &Interface, version: Version) -> Value {
    let mut out = json!({ "name": interface.name, "mac": interface.mac });
    if version >= Version::V1_1_0 {
        out["mtu"] = json!(interface.mtu);
    }
    if let Some(sandbox) = &interface.sandbox {
        out["sandbox"] = json!(sandbox);
    }
    out
}

fn ip(address: &Address, container: usize, version: Version) -> Value {
    let mut out = json!({
        "address": with_length(address),
        "gateway": address.subnet.gateway(),
        "interface": container,
    });
    if version < Version::V1_0_0 {
        out["version"] = json!(match address.subnet.family() {
            Family::V4 => "4",
            Family::V6 => "6",
        });
    }
    out
}

fn with_length(Address { address, subnet }: &Address) -> String {
    format!("{address}/{}", subnet.length())
}

fn route(route: &Route) -> Value {
    json!({ "dst": route.to.to_string(), "gw": route.gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        let interface = |name: &str, sandbox: Option<&str>| Interface {
            name: name.into(),
            mac: Mac([0x0a, 0x58, 10, 5, 7, 2]),
            mtu: 1450,
            sandbox: sandbox.map(Into::into),
        };
        let address = |address: &str, subnet: &str| Address {
            address: address.parse().expect("address"),
            subnet: subnet.parse().expect("subnet"),
        };
        let route = |to: &str, gateway: &str| Route {
            to: to.parse().expect("subnet"),
            gateway: gateway.parse().expect("gateway"),
        };
        AddResult {
            interfaces: [
                interface("loden0", None),
                interface("veth1", None),
                interface("eth0", Some("/run/netns/x")),
            ],
            addresses: vec![address("10.5.7.2", "10.5.7.0/24"), address("fd00::2", "fd00::/64")],
            routes: vec![route("0.0.0.0/0", "10.5.7.1"), route("::/0", "fd00::1")],
            dns: json!({"nameservers": ["10.5.7.1"]}),
        }
    }

    #[test]
    fn only_versions_before_1_0_0_name_the_family_and_only_1_1_0_the_mtu() {
        for version in &Version::ALL[2..] {
            let out = result().to_json(*version, None);
            assert_eq!(out["cniVersion"], version.as_str());
            let families = (&out["ips"][0]["version"], &out["ips"][1]["version"]);
            if *version < Version::V1_0_0 {
                assert_eq!(families, (&json!("4"), &json!("6")));
            } else {
                assert_eq!(families, (&Value::Null, &Value::Null));
            }
            assert_eq!(out["interfaces"][0]["mtu"].is_null(), *version < Version::V1_1_0);
        }
    }

    #[test]
    fn the_oldest_versions_know_families_only() {
        for version in [Version::V0_1_0, Version::V0_2_0] {
            let expected = json!({
                "cniVersion": version.as_str(),
                "ip4": {
                    "ip": "10.5.7.2/24", "gateway": "10.5.7.1",
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.5.7.1"}],
                },
                "ip6": {"ip": "fd00::2/64", "gateway": "fd00::1", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
                "dns": {"nameservers": ["10.5.7.1"]},
            });
            assert_eq!(result().to_json(version, None), expected);
            let previous = json!({"ip4": {"ip": "192.0.2.2/24"}});
            let out = result().to_json(version, previous.as_object());
            assert_eq!((&out["ip4"]["ip"], &out["ip6"]), (&json!("192.0.2.2/24"), &expected["ip6"]));
        }
    }

    #[test]
    fn the_whole_result_is_as_in_the_specification() {
        let expected = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "loden0", "mac": "0a:58:0a:05:07:02"},
                {"name": "veth1", "mac": "0a:58:0a:05:07:02"},
                {"name": "eth0", "mac": "0a:58:0a:05:07:02", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"address": "10.5.7.2/24", "gateway": "10.5.7.1", "interface": 2},
                {"address": "fd00::2/64", "gateway": "fd00::1", "interface": 2},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.5.7.1"}, {"dst": "::/0", "gw": "fd00::1"}],
            "dns": {"nameservers": ["10.5.7.1"]},
        });
        assert_eq!(result().to_json(Version::V1_0_0, None), expected);
    }

    #[test]
    fn a_previous_result_is_extended_and_indexes_shift() {
        let previous = json!({
            "interfaces": [{"name": "other"}],
            "Ips": [{"address": "192.0.2.1/24", "interface": 0}],
            "routes": [{"dst": "192.0.2.0/24"}], "dns": {"domain": "example"},
        });
        let out = result().to_json(Version::V1_0_0, previous.as_object());
        assert_eq!(out["interfaces"].as_array().map(Vec::len), Some(4));
        assert_eq!(out["ips"][0]["interface"], 0);
        assert_eq!(out["ips"][1]["interface"], 3);
        assert_eq!(out["interfaces"][3]["name"], "eth0");
        assert_eq!(out["routes"].as_array().map(Vec::len), Some(3));
        assert_eq!(out["dns"], json!({"nameservers": ["10.5.7.1"]}), "ours counts");
        let out = AddResult { dns: json!({}), ..result() }.to_json(Version::V1_0_0, previous.as_object());
        assert_eq!(out["dns"], json!({"domain": "example"}), "we have none");
    }
}
