//! How containers are connected, from the network configuration: the options of the
//! reference bridge plugin (`plugins/main/bridge/bridge.go`, `NetConf`) that have a meaning
//! here, and a refusal by name for those that have none. Parsed by `request.rs`, applied by
//! `add.rs` and `container.rs`. docs/cni.md has them all in a table.

use loden_proto::Family;
use loden_proto::subnet_env::SubnetEnv;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::json;
use crate::request::undecodable;

/// The options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// `hairpinMode`: the port sends back what came from it, so that a container reaches
    /// itself by its own published port.
    pub hairpin: bool,
    /// `portIsolation`: no frames between two containers that have it.
    pub isolated: bool,
    /// `isGateway` and `isDefaultGateway`.
    pub routes: Routes,
    /// `mtu`, where it is not the overlay's.
    pub mtu: Option<u32>,
    /// `ipMasq`: what leaves the overlay must be masqueraded.
    pub masquerade: bool,
    /// `portFilter`.
    pub port_filter: Guard,
    /// `sticky`: a container gets the address again that one of its name had before.
    pub sticky: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hairpin: false,
            isolated: false,
            routes: Routes::default(),
            mtu: None,
            masquerade: false,
            port_filter: Guard::default(),
            sticky: true,
        }
    }
}

/// Whether a container is held to its own MAC and addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Guard {
    /// As soon as the daemon's table is there.
    #[default]
    Default,
    /// Or ADD fails.
    Required,
    /// No.
    Off,
}

/// Which routes a container gets beside that to its own subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Routes {
    /// The default route.
    #[default]
    Default,
    /// To the overlay's networks (`isDefaultGateway` is false).
    Overlay,
    /// None (`isGateway` is false).
    None,
}

/// The least MTU of IPv6 (RFC 8200); below, the kernel takes IPv6 off an interface.
const MIN_MTU_V6: u32 = 1280;
/// The least MTU of IPv4 (RFC 791).
const MIN_MTU_V4: u32 = 68;

/// Options of the bridge plugin that are refused, but for a value that means "off": null,
/// false, 0, or anything empty.
const REFUSED: [(&str, &str); 7] = [
    ("vlan", "the containers of an overlay are on one bridge without VLANs"),
    ("vlanTrunk", "the containers of an overlay are on one bridge without VLANs"),
    ("promiscMode", "set hairpinMode instead"),
    ("forceAddress", "the bridge's address follows the lease by itself"),
    ("disableContainerInterface", "every container has an address here"),
    ("enabledad", "addresses come from this host's own lease, so there is no duplicate to detect"),
    ("ipMasqBackend", "the loden daemon masquerades, by nftables"),
];

impl Options {
    /// Reads them; members of flannel's `delegate` stand in `object` already.
    pub(crate) fn parse(object: &Map<String, Value>) -> Result<Self, Error> {
        refuse(object)?;
        let boolean = |name| json::boolean(object, name).map_err(undecodable);
        let default_gateway = boolean("isDefaultGateway")?;
        let routes = match (boolean("isGateway")?, default_gateway) {
            // As in the bridge plugin, being the default gateway implies being one.
            (_, Some(true)) | (None | Some(true), None) => Routes::Default,
            (None | Some(true), Some(false)) => Routes::Overlay,
            (Some(false), _) => Routes::None,
        };
        let mtu = match json::member(object, "mtu") {
            None => 0,
            Some(value) => {
                let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
                number.ok_or_else(|| Error::Config(format!("mtu must be a number, but is {value}")))?
            }
        };
        Ok(Self {
            hairpin: boolean("hairpinMode")?.unwrap_or_default(),
            isolated: boolean("portIsolation")?.unwrap_or_default(),
            routes,
            mtu: Some(mtu).filter(|mtu| *mtu > 0),
            masquerade: boolean("ipMasq")?.unwrap_or_default(),
            sticky: boolean("sticky")?.unwrap_or(true),
            // The bridge plugin's check of the MAC is a part of ours.
            port_filter: match (boolean("portFilter")?, boolean("macspoofchk")?.unwrap_or_default()) {
                (Some(false), true) => {
                    let error =
                        "macspoofchk is true, but portFilter, which checks the MAC too, is false; remove one";
                    return Err(Error::Config(error.into()));
                }
                (Some(false), false) => Guard::Off,
                (Some(true), _) | (None, true) => Guard::Required,
                (None, false) => Guard::Default,
            },
        })
    }

    /// Whether the overlay of this host can do it; returns the containers' MTU.
    pub fn fit(&self, env: &SubnetEnv) -> Result<u32, Error> {
        if self.masquerade && !env.masquerade {
            return Err(Error::Config(
                "ipMasq is true, but the loden daemon, which masquerades for all containers of this host, \
                 is told not to; start it without --ip-masq=false, or remove ipMasq"
                    .into(),
            ));
        }
        if self.port_filter == Guard::Required && env.port_filter.is_none() {
            return Err(Error::Config(
                "portFilter (or macspoofchk) is true, but the daemon of this host filters no ports: subnet.env has \
                 no LODEN_PORT_FILTER; remove it from the configuration, or run Loden's daemon"
                    .into(),
            ));
        }
        let Some(mtu) = self.mtu else { return Ok(env.mtu) };
        let least = if env.subnet(Family::V6).is_some() { MIN_MTU_V6 } else { MIN_MTU_V4 };
        if (least..=env.mtu).contains(&mtu) {
            return Ok(mtu);
        }
        let overlay = env.mtu;
        Err(Error::Config(format!("mtu is {mtu}, but must be from {least} to the overlay's, {overlay}")))
    }
}

fn refuse(object: &Map<String, Value>) -> Result<(), Error> {
    for (key, why) in REFUSED {
        if let Some(value) = json::member(object, key).filter(|value| !is_off(value)) {
            return Err(Error::unsupported(key, value.clone(), why));
        }
    }
    // Here "off" is true.
    if let Some(value) = json::member(object, "preserveDefaultVlan").filter(|v| **v != Value::Bool(true)) {
        let why = "the containers of an overlay are on one bridge without VLANs";
        return Err(Error::unsupported("preserveDefaultVlan", value.clone(), why));
    }
    let Some(ipam) = json::object(object, "ipam").map_err(undecodable)? else { return Ok(()) };
    for (key, value) in ipam.iter().filter(|(_, value)| !is_off(value)) {
        if !(key.eq_ignore_ascii_case("type") && value == "loden") {
            let why = "addresses come from the subnet that the loden daemon has leased; remove ipam";
            return Err(Error::unsupported(&format!("ipam.{key}"), value.clone(), why));
        }
    }
    Ok(())
}

/// Whether a value says that something is not wanted.
pub(crate) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(config: Value) -> Result<Options, Error> {
        Options::parse(config.as_object().expect("object"))
    }

    #[test]
    fn gateways_are_as_in_the_bridge_plugin_but_for_the_default() {
        for (config, routes) in [
            (json!({}), Routes::Default),
            (json!({"isGateway": true}), Routes::Default),
            (json!({"isDefaultGateway": true, "isGateway": false}), Routes::Default),
            (json!({"isDefaultGateway": false}), Routes::Overlay),
            (json!({"isDefaultGateway": false, "isGateway": true}), Routes::Overlay),
            (json!({"isGateway": false}), Routes::None),
            (json!({"isGateway": false, "isDefaultGateway": false}), Routes::None),
        ] {
            assert_eq!(parse(config.clone()).expect("valid").routes, routes, "{config}");
        }
    }

    #[test]
    fn what_makes_no_sense_here_is_refused_unless_it_is_off() {
        for (config, words) in [
            (json!({"vlan": 100}), "vlan = 100"),
            (json!({"vlanTrunk": [{"id": 7}]}), "vlanTrunk = [{\"id\":7}]"),
            (json!({"preserveDefaultVlan": false}), "preserveDefaultVlan = false"),
            (json!({"PROMISCMODE": true}), "promiscMode = true"),
            (json!({"forceAddress": true}), "forceAddress = true"),
            (json!({"disableContainerInterface": true}), "disableContainerInterface = true"),
            (json!({"enabledad": true}), "enabledad = true"),
            (json!({"ipMasqBackend": "iptables"}), "ipMasqBackend = \"iptables\""),
            (json!({"ipam": {"type": "host-local"}}), "ipam.type = \"host-local\""),
            (json!({"ipam": {"type": "loden", "subnet": "10.5.7.0/24"}}), "ipam.subnet = \"10.5.7.0/24\""),
        ] {
            let error = parse(config.clone()).expect_err("unsupported");
            assert_eq!(error.code(), 2, "{config}");
            assert!(error.to_string().contains(words), "{error}");
        }
        let off = json!({
            "vlan": 0, "vlanTrunk": [], "preserveDefaultVlan": true, "promiscMode": false, "macspoofchk": false,
            "forceAddress": false, "disableContainerInterface": false, "enabledad": false, "ipMasqBackend": "",
            "ipam": {"type": "loden"}, "mtu": 0, "ipMasq": false, "hairpinMode": false, "portIsolation": false,
        });
        assert_eq!(parse(off).expect("off"), Options::default());
        assert_eq!(parse(json!({"ipam": {}})).expect("off"), Options::default());
    }

    #[test]
    fn ports_are_filtered_unless_told_otherwise() {
        for (config, expected) in [
            (json!({}), Guard::Default),
            (json!({"macspoofchk": false}), Guard::Default),
            (json!({"macspoofchk": true}), Guard::Required),
            (json!({"portFilter": true}), Guard::Required),
            (json!({"portFilter": false}), Guard::Off),
        ] {
            assert_eq!(parse(config.clone()).expect("valid").port_filter, expected, "{config}");
        }
        let both = parse(json!({"portFilter": false, "macspoofchk": true})).expect_err("a contradiction");
        assert_eq!(both.code(), 7);
        let flannel = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        let fits = |text: &str| {
            let required = Options { port_filter: Guard::Required, ..Options::default() };
            required.fit(&SubnetEnv::parse(text).expect("valid"))
        };
        assert_eq!(fits(flannel).expect_err("nobody filters").code(), 7);
        fits(&format!("{flannel}LODEN_PORT_FILTER=loden\n")).expect("the daemon does");
    }

    #[test]
    fn addresses_stay_with_their_names_unless_told_otherwise() {
        assert!(parse(json!({})).expect("valid").sticky);
        assert!(!parse(json!({"sticky": false})).expect("valid").sticky);
    }

    #[test]
    fn wrong_kinds_are_refused_by_name() {
        for (key, value, code) in [
            ("hairpinMode", json!("true"), 6),
            ("isGateway", json!(1), 6),
            ("sticky", json!("no"), 6),
            ("ipam", json!("loden"), 6),
            ("mtu", json!(-1), 7),
            ("mtu", json!(1.5), 7),
            ("mtu", json!("1400"), 7),
        ] {
            let error = parse(json!({ key: value })).expect_err(key);
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn the_overlay_sets_the_limits() {
        let env = |text: &str| SubnetEnv::parse(text).expect("valid");
        let v4 = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
        let both = format!("{v4}FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64\n");
        let mtu = |mtu| Options { mtu, ..Options::default() };
        assert_eq!(mtu(None).fit(&env(v4)).expect("the overlay's"), 1450);
        for (number, v4_ok, both_ok) in [
            (67, false, false),
            (68, true, false),
            (1280, true, true),
            (1450, true, true),
            (1451, false, false),
        ] {
            assert_eq!(mtu(Some(number)).fit(&env(v4)).is_ok(), v4_ok, "{number}");
            assert_eq!(mtu(Some(number)).fit(&env(&both)).is_ok(), both_ok, "{number}");
        }
        let masquerade = Options { masquerade: true, ..Options::default() };
        assert_eq!(masquerade.fit(&env(v4)).expect_err("nobody would").code(), 7);
        masquerade.fit(&env(&v4.replace("IPMASQ=false", "IPMASQ=true"))).expect("the daemon does");
    }
}
