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

/// What ADD made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddResult {
    /// The bridge, the host's end, the container's end.
    pub interfaces: [Interface; 3],
    /// One address per subnet, IPv4 first.
    pub addresses: Vec<Address>,
    /// `dns` of the configuration.
    pub dns: Value,
}

/// Index of the container's end in [`AddResult::interfaces`].
const CONTAINER: usize = 2;

impl AddResult {
    /// The JSON for standard output. With a `prevResult`, ours is appended to it.
    pub fn to_json(&self, version: Version, previous: Option<&Map<String, Value>>) -> Value {
        let previous = |name| {
            previous
                .and_then(|p| json::member(p, name))
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default()
        };
        let mut interfaces = previous("interfaces");
        let container = interfaces.len() + CONTAINER;
        interfaces.extend(self.interfaces.iter().map(interface));
        let mut ips = previous("ips");
        ips.extend(self.addresses.iter().map(|a| ip(a, container, version)));
        let mut routes = previous("routes");
        routes.extend(self.addresses.iter().map(default_route));
        json!({
            "cniVersion": version.as_str(),
            "interfaces": interfaces,
            "ips": ips,
            "routes": routes,
            "dns": self.dns,
        })
    }
}

fn interface(interface: &Interface) -> Value {
    let mut out = json!({ "name": interface.name, "mac": interface.mac });
    if let Some(sandbox) = &interface.sandbox {
        out["sandbox"] = json!(sandbox);
    }
    out
}

fn ip(Address { address, subnet }: &Address, container: usize, version: Version) -> Value {
    let mut out = json!({
        "address": format!("{address}/{}", subnet.length()),
        "gateway": subnet.gateway(),
        "interface": container,
    });
    if version < Version::V1_0_0 {
        out["version"] = json!(match subnet.family() {
            Family::V4 => "4",
            Family::V6 => "6",
        });
    }
    out
}

fn default_route(Address { subnet, .. }: &Address) -> Value {
    let dst = match subnet.family() {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    json!({ "dst": dst, "gw": subnet.gateway() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result() -> AddResult {
        let interface = |name: &str, sandbox: Option<&str>| Interface {
            name: name.into(),
            mac: Mac([0x0a, 0x58, 10, 5, 7, 2]),
            sandbox: sandbox.map(Into::into),
        };
        let address = |address: &str, subnet: &str| Address {
            address: address.parse().expect("address"),
            subnet: subnet.parse().expect("subnet"),
        };
        AddResult {
            interfaces: [
                interface("loden0", None),
                interface("veth1", None),
                interface("eth0", Some("/run/netns/x")),
            ],
            addresses: vec![address("10.5.7.2", "10.5.7.0/24"), address("fd00::2", "fd00::/64")],
            dns: json!({"nameservers": ["10.5.7.1"]}),
        }
    }

    #[test]
    fn only_versions_before_1_0_0_name_the_family() {
        for version in Version::ALL {
            let out = result().to_json(version, None);
            assert_eq!(out["cniVersion"], version.as_str());
            let families = (&out["ips"][0]["version"], &out["ips"][1]["version"]);
            if version < Version::V1_0_0 {
                assert_eq!(families, (&json!("4"), &json!("6")));
            } else {
                assert_eq!(families, (&Value::Null, &Value::Null));
            }
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
            "routes": [{"dst": "192.0.2.0/24"}],
        });
        let out = result().to_json(Version::V1_0_0, previous.as_object());
        assert_eq!(out["interfaces"].as_array().map(Vec::len), Some(4));
        assert_eq!(out["ips"][0]["interface"], 0);
        assert_eq!(out["ips"][1]["interface"], 3);
        assert_eq!(out["interfaces"][3]["name"], "eth0");
        assert_eq!(out["routes"].as_array().map(Vec::len), Some(3));
    }
}
