//! Leases in etcd: the key `<prefix>/subnets/10.5.7.0-24` and its value, flannel's `LeaseAttrs`
//! JSON (flannel `pkg/lease/lease.go`, `pkg/subnet/subnet.go`).
//!
//! What Loden adds stands in one extra member, `"Loden": {…}`, which flannel ignores. Members
//! that we do not know are kept when a value is written again.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use crate::json::{shown, take};
use crate::subnet::SubnetError;
use crate::{Family, Mac, Rare, Subnet, Text};

/// The subnets of one lease: IPv4, IPv6 or both. As text `10.5.7.0-24`,
/// `10.5.7.0-24&fd00:5:7::-64` or, where flannel never looks, `fd00:5:7::-64`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseKey {
    // Of its family each, which is smaller: there are many keys.
    v4: Option<Ipv4Network>,
    v6: Option<Ipv6Network>,
}

/// A key that names no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key:?} is not a lease key such as 10.5.7.0-24: {reason}")]
pub struct KeyError {
    key: String,
    reason: String,
}

impl LeaseKey {
    /// A key from at least one subnet; `None` if both are absent or of the wrong family.
    pub fn new(v4: Option<Subnet>, v6: Option<Subnet>) -> Option<Self> {
        let fits = v4.is_none_or(|s| s.family() == Family::V4) && v6.is_none_or(|s| s.family() == Family::V6);
        (fits && (v4.is_some() || v6.is_some()))
            .then_some(Self { v4: v4.and_then(Subnet::v4), v6: v6.and_then(Subnet::v6) })
    }

    /// The key of a lease of a single family.
    pub fn single(subnet: Subnet) -> Self {
        Self { v4: subnet.v4(), v6: subnet.v6() }
    }

    /// Parses the last component of a key. Stricter than flannel's expression, which takes
    /// `10x5x7.0-24` too: each lease has one way to be written, the one that flannel and we write, or
    /// two keys of etcd would be one lease, and the end of one the end of the other.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let error = |reason: String| KeyError { key: text.chars().take(80).collect(), reason };
        let subnet = |part: &str| {
            let (address, length) = part.rsplit_once('-').ok_or_else(|| error("no '-LENGTH'".into()))?;
            let (Ok(ip), Ok(bits)) = (address.parse(), length.parse()) else {
                return Err(error(SubnetError::Syntax(format!("{address}/{length}")).to_string()));
            };
            let subnet = Subnet::new(ip, bits).map_err(|e| error(e.to_string()))?;
            Ok((subnet, is_written(ip, [address, length])))
        };
        if text.contains('/') {
            return Err(error(
                "IPv6-only keys belong below loden/subnets/, all others below subnets/".into(),
            ));
        }
        let (key, as_written) = match text.split_once('&') {
            Some((first, second)) => {
                let ((first, one), (second, other)) = (subnet(first)?, subnet(second)?);
                let key = Self::new(Some(first), Some(second));
                let wrong = || error("'&' joins an IPv4 and an IPv6 subnet, in this order".into());
                (key.ok_or_else(wrong)?, one && other)
            }
            None => {
                let (subnet, as_written) = subnet(text)?;
                (Self::single(subnet), as_written)
            }
        };
        if as_written { Ok(key) } else { Err(error(format!("it must be written {key}"))) }
    }

    /// The subnet of a family.
    pub fn subnet(&self, family: Family) -> Option<Subnet> {
        match family {
            Family::V4 => self.v4.map(Subnet::of_v4),
            Family::V6 => self.v6.map(Subnet::of_v6),
        }
    }

    /// Its subnets in the order IPv4, IPv6.
    pub fn subnets(&self) -> impl Iterator<Item = Subnet> + use<> {
        Family::ALL.map(|family| self.subnet(family)).into_iter().flatten()
    }

    /// Whether any two subnets of the same family overlap.
    pub fn overlaps(&self, other: &LeaseKey) -> bool {
        self.subnets().any(|a| other.subnets().any(|b| a.overlaps(&b)))
    }
}

/// Whether a subnet's address and length are as they are written. Without writing all of it, since etcd holds
/// many: the standard library reads an IPv4 address in one form only.
fn is_written(address: IpAddr, [address_text, length_text]: [&str; 2]) -> bool {
    use fmt::Write as _;
    struct Rest<'a>(&'a str);
    impl fmt::Write for Rest<'_> {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            self.0 = self.0.strip_prefix(part).ok_or(fmt::Error)?;
            Ok(())
        }
    }
    let mut rest = Rest(address_text);
    let plain = length_text == "0" || !length_text.starts_with(['0', '+']);
    plain && (address.is_ipv4() || write!(rest, "{address}").is_ok() && rest.0.is_empty())
}

impl fmt::Display for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, subnet) in self.subnets().enumerate() {
            let joint = if i == 0 { "" } else { "&" };
            write!(f, "{joint}{}-{}", subnet.address(), subnet.length())?;
        }
        Ok(())
    }
}

impl fmt::Debug for LeaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The value of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeaseValue {
    /// `PublicIP`: where IPv4-encapsulated packets go. flannel writes `0.0.0.0` for none.
    pub public_ip: Option<Ipv4Addr>,
    /// `PublicIPv6`
    pub public_ipv6: Option<Ipv6Addr>,
    /// `BackendType`; empty for udp and alloc leases, and for reservations.
    pub backend_type: Text,
    /// `BackendData`
    pub backend_data: BackendData,
    /// `BackendV6Data`
    pub backend_v6_data: BackendData,
    /// `Loden`: absent when flannel holds the lease.
    pub loden: Option<Arc<LodenMember>>,
    /// Members that neither flannel 0.28 nor this version knows.
    pub other: Option<Box<Map<String, Value>>>,
}

/// Backend data of one family.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BackendData {
    /// The member is absent or null.
    #[default]
    None,
    /// `{"VNI":1,"VtepMAC":"…"}`. flannel's receivers ignore the VNI.
    Vxlan {
        /// Network identifier as the peer states it.
        vni: Option<u32>,
        /// MAC of the peer's VXLAN device.
        vtep_mac: Mac,
    },
    /// Data of another backend, kept as it is.
    Other(Box<Value>),
}

/// What Loden adds to a lease.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LodenMember {
    /// Lasting identity of the host, 32 hexadecimal digits.
    #[serde(rename = "HostID")]
    pub host_id: Text,
    /// The kernel's boot id: tells two lives of one host, or two clones, apart.
    #[serde(rename = "BootID", skip_serializing_if = "Text::is_empty")]
    pub boot_id: Text,
    /// Host name, for people.
    #[serde(skip_serializing_if = "Text::is_empty")]
    pub host_name: Text,
    /// Labels such as `rack=r7`.
    #[serde(skip_serializing_if = "Rare::is_default")]
    pub labels: Rare<BTreeMap<String, String>>,
    /// Loden's version.
    #[serde(skip_serializing_if = "Text::is_empty")]
    pub version: Text,
    /// What the host can do beyond flannel.
    #[serde(skip_serializing_if = "Rare::is_default")]
    pub features: Rare<Vec<String>>,
    /// Further addresses that the host's VXLAN packets may come from.
    #[serde(skip_serializing_if = "Rare::is_default")]
    pub sources: Rare<Vec<IpAddr>>,
    /// Set by an operator (`loden lease release --force`): the holder is to move to another subnet
    /// as soon as no container uses this one. Until then everybody still routes to it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
    /// Seconds between keep-alives; 0 if not stated. Tells how fresh a living holder's lease is.
    #[serde(skip_serializing_if = "is_zero")]
    pub keep_alive_seconds: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A value that is no lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {value}, but must be {expected}")]
pub struct ValueError {
    key: &'static str,
    value: String,
    expected: &'static str,
}

/// Values larger than this are refused unread. A lease takes some 300 bytes; labels are the
/// only part that an operator can grow.
pub const VALUE_LIMIT: usize = 64 * 1024;

impl LeaseValue {
    /// Parses a value. The backend data of the type `vxlan` must be sound; of other types they
    /// are kept as they are.
    pub fn parse(bytes: &[u8]) -> Result<Self, ValueError> {
        if bytes.len() > VALUE_LIMIT {
            let value = format!("{} bytes long", bytes.len());
            return Err(ValueError { key: "the value", value, expected: "at most 65536 bytes" });
        }
        match serde_json::from_slice::<Object<Plain<'_>>>(bytes) {
            Ok(Object(plain)) if plain.backend_type == "vxlan" => Ok(plain.into()),
            _ => Self::parse_any(bytes),
        }
    }

    /// Parses whatever flannel would, and tells what is wrong.
    fn parse_any(bytes: &[u8]) -> Result<Self, ValueError> {
        let error = |key, value: String, expected| ValueError { key, value, expected };
        let mut object = match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => object,
            Ok(other) => return Err(error("the value", shown(&other), "a JSON object")),
            Err(e) => return Err(error("the value", format!("not JSON ({e})"), "a JSON object")),
        };
        let public_ip = match take(&mut object, "PublicIP") {
            None => None,
            Some(value) => match value.as_str().and_then(|s| s.parse::<Ipv4Addr>().ok()) {
                Some(ip) => Some(ip).filter(|ip| !ip.is_unspecified()),
                None => return Err(error("PublicIP", shown(&value), "an IPv4 address")),
            },
        };
        let public_ipv6 = match take(&mut object, "PublicIPv6") {
            None => None,
            Some(value) => match value.as_str().and_then(|s| s.parse::<Ipv6Addr>().ok()) {
                Some(ip) => Some(ip).filter(|ip| !ip.is_unspecified()),
                None => return Err(error("PublicIPv6", shown(&value), "an IPv6 address or null")),
            },
        };
        let backend_type: Text = match take(&mut object, "BackendType") {
            None => Text::default(),
            Some(Value::String(kind)) => kind.into(),
            Some(value) => return Err(error("BackendType", shown(&value), "a text")),
        };
        let backend_data =
            BackendData::parse("BackendData", take(&mut object, "BackendData"), &backend_type)?;
        let backend_v6_data =
            BackendData::parse("BackendV6Data", take(&mut object, "BackendV6Data"), &backend_type)?;
        let loden = match take(&mut object, "Loden") {
            None => None,
            Some(value) => match Object::<LodenMember>::deserialize(&value) {
                Ok(Object(member)) => Some(Arc::new(member)),
                Err(_) => return Err(error("Loden", shown(&value), "an object with a text HostID")),
            },
        };
        let other = (!object.is_empty()).then(|| Box::new(object));
        Ok(Self { public_ip, public_ipv6, backend_type, backend_data, backend_v6_data, loden, other })
    }

    /// The text that flannel's Go code would write for the members it knows, in its order,
    /// followed by ours.
    pub fn to_json(&self) -> String {
        let mut members = vec![
            ("PublicIP".to_owned(), json!(self.public_ip.unwrap_or(Ipv4Addr::UNSPECIFIED))),
            ("PublicIPv6".to_owned(), json!(self.public_ipv6)),
        ];
        if !self.backend_type.is_empty() {
            members.push(("BackendType".into(), json!(self.backend_type)));
        }
        for (key, data) in [("BackendData", &self.backend_data), ("BackendV6Data", &self.backend_v6_data)] {
            let value = match data {
                BackendData::None => continue,
                BackendData::Vxlan { vni, vtep_mac } => match vni {
                    Some(vni) => json!({"VNI": vni, "VtepMAC": vtep_mac}),
                    None => json!({"VtepMAC": vtep_mac}),
                },
                BackendData::Other(value) => (**value).clone(),
            };
            members.push((key.into(), value));
        }
        if let Some(loden) = &self.loden {
            members.push(("Loden".into(), json!(loden)));
        }
        members.extend(self.other.iter().flat_map(|o| o.iter()).map(|(k, v)| (k.clone(), v.clone())));
        // Not a serde_json map, which would sort the members.
        let members: Vec<String> = members.iter().map(|(k, v)| format!("{}:{v}", json!(k))).collect();
        format!("{{{}}}", members.join(","))
    }

    /// The public address of a family.
    pub fn public_address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.public_ip.map(IpAddr::V4),
            Family::V6 => self.public_ipv6.map(IpAddr::V6),
        }
    }

    /// The backend data of a family.
    pub fn backend_data(&self, family: Family) -> &BackendData {
        match family {
            Family::V4 => &self.backend_data,
            Family::V6 => &self.backend_v6_data,
        }
    }

    /// The holder's host id, if Loden holds the lease.
    pub fn host_id(&self) -> Option<&Text> {
        self.loden.as_deref().map(|m| &m.host_id)
    }
}

/// A VXLAN lease exactly as flannel and Loden write it, which nearly all are: read straight into its
/// place, in a quarter of the time. Anything else, such as a key in other letters, an unknown
/// member or a fault, is for [`LeaseValue::parse_any`].
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Plain<'a> {
    #[serde(rename = "PublicIP")]
    public_ip: Ipv4Addr,
    #[serde(rename = "PublicIPv6", default)]
    public_ipv6: Option<Ipv6Addr>,
    backend_type: &'a str,
    #[serde(default)]
    backend_data: Option<Object<PlainVxlan>>,
    #[serde(default)]
    backend_v6_data: Option<Object<PlainVxlan>>,
    #[serde(default)]
    loden: Option<Object<Arc<LodenMember>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainVxlan {
    #[serde(rename = "VNI")]
    vni: u32,
    #[serde(rename = "VtepMAC")]
    vtep_mac: Mac,
}

/// What is written as an object. Derived code would take an array of the members as well.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members)).map(Object)
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

impl From<Plain<'_>> for LeaseValue {
    fn from(plain: Plain<'_>) -> Self {
        let data = |data: Option<Object<PlainVxlan>>| match data {
            Some(Object(PlainVxlan { vni, vtep_mac })) => BackendData::Vxlan { vni: Some(vni), vtep_mac },
            None => BackendData::None,
        };
        Self {
            public_ip: Some(plain.public_ip).filter(|ip| !ip.is_unspecified()),
            public_ipv6: plain.public_ipv6.filter(|ip| !ip.is_unspecified()),
            backend_type: plain.backend_type.into(),
            backend_data: data(plain.backend_data),
            backend_v6_data: data(plain.backend_v6_data),
            loden: plain.loden.map(|Object(member)| member),
            other: None,
        }
    }
}

impl BackendData {
    fn parse(key: &'static str, value: Option<Value>, backend_type: &Text) -> Result<Self, ValueError> {
        let Some(value) = value else { return Ok(BackendData::None) };
        if *backend_type != *"vxlan" {
            return Ok(BackendData::Other(Box::new(value)));
        }
        let error = || ValueError { key, value: shown(&value), expected: "an object with a VtepMAC" };
        let Value::Object(mut object) = value.clone() else { return Err(error()) };
        let vni = take(&mut object, "VNI").and_then(|v| v.as_u64()).and_then(|n| u32::try_from(n).ok());
        let mac = take(&mut object, "VtepMAC").ok_or_else(error)?;
        let vtep_mac = mac.as_str().and_then(|s| s.parse().ok()).ok_or_else(error)?;
        Ok(BackendData::Vxlan { vni, vtep_mac })
    }

    /// The peer's VXLAN device's MAC.
    pub fn vtep_mac(&self) -> Option<Mac> {
        match self {
            BackendData::Vxlan { vtep_mac, .. } => Some(*vtep_mac),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FLANNEL: &str = r#"{"PublicIP":"192.168.64.3","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#;

    #[test]
    fn keys_as_flannel_writes_them() {
        for text in ["10.12.13.0-24", "10.12.13.0-24&fd00:12:13::-56", "fd00:12:13::-64"] {
            assert_eq!(LeaseKey::parse(text).map(|k| k.to_string()), Ok(text.to_owned()));
        }
        let hostile = [
            "",
            "config",
            "10.12.13.0",
            "10.12.13.0-33",
            "10.12.13.1-24",
            "10x12x13.0-24",
            "10.12.13.0-24&",
            "10.12.13.0-",
            "fd00::-64&10.0.0.0-24",
            "10.0.0.0-24&10.1.0.0-24",
            "10.12.13.0-24/x",
            "-",
            "10.12.13.0-24&fd00::-64&x",
            "10.12.13.0-024",
            "10.12.13.0-+24",
            "FD00:12:13::-64",
            "fd00:0012:13::-64",
            "fd00:12:13:0::-64",
            "10.12.13.0-24&fd00:12:13:0:0:0:0:0-64",
        ];
        for text in hostile {
            assert!(LeaseKey::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flannels_value_is_kept_to_the_byte() {
        let value = LeaseValue::parse(FLANNEL.as_bytes()).expect("flannel's value");
        assert_eq!(value.backend_data.vtep_mac().map(|m| m.to_string()), Some("c6:d2:32:6f:8f:44".into()));
        assert_eq!(value.to_json(), FLANNEL);
        let bare = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#;
        assert_eq!(LeaseValue::parse(bare.as_bytes()).expect("udp").to_json(), bare);
        let wireguard = r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"wireguard","BackendData":{"PublicKey":"x","Port":51820}}"#;
        let again = LeaseValue::parse(wireguard.as_bytes()).expect("wireguard").to_json();
        assert_eq!(serde_json::from_str::<Value>(&again).ok(), serde_json::from_str::<Value>(wireguard).ok());
    }

    /// As flanneld v0.28.7 wrote them in the lab, with EnableIPv6.
    #[test]
    fn flannels_dual_stack_key_and_value_are_kept_to_the_byte() {
        let name = "10.5.43.0-24&fd00:10:5:1d::-64";
        assert_eq!(LeaseKey::parse(name).map(|k| k.to_string()), Ok(name.to_owned()));
        let text = r#"{"PublicIP":"192.168.77.11","PublicIPv6":"fd77::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"de:aa:19:0b:75:05"},"BackendV6Data":{"VNI":1,"VtepMAC":"76:19:b8:76:0c:9f"}}"#;
        let value = LeaseValue::parse(text.as_bytes()).expect("flannel's value");
        assert_eq!(value.to_json(), text);
        for (family, address, mac) in [
            (Family::V4, "192.168.77.11", "de:aa:19:0b:75:05"),
            (Family::V6, "fd77::11", "76:19:b8:76:0c:9f"),
        ] {
            assert_eq!(value.public_address(family).map(|a| a.to_string()), Some(address.into()));
            assert_eq!(value.backend_data(family).vtep_mac().map(|m| m.to_string()), Some(mac.into()));
        }
    }

    #[test]
    fn our_member_and_unknown_members_survive() {
        let text = r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1","BackendType":"host-gw","Loden":{"HostID":"abc","Labels":{"rack":"r7"},"Sources":["10.0.0.9"]},"Future":[1]}"#;
        let value = LeaseValue::parse(text.as_bytes()).expect("ours");
        assert_eq!(value.host_id(), Some(&"abc".into()));
        assert_eq!(value.to_json(), text);
    }

    #[test]
    fn what_is_no_lease_is_refused_with_key_and_value() {
        for (text, part) in [
            ("not json", "not JSON"),
            ("[]", "the value is []"),
            (r#"["1.2.3.4",null,"vxlan",[1,"c6:d2:32:6f:8f:44"],null,null]"#, "a JSON object"),
            (
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":[1,"c6:d2:32:6f:8f:44"]}"#,
                "BackendData is [1",
            ),
            (r#"{"PublicIP":"fd00::1"}"#, "PublicIP is \"fd00::1\""),
            (r#"{"PublicIP":"999.1.1.1"}"#, "PublicIP is"),
            (
                r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":{"VtepMAC":"zz"}}"#,
                "BackendData is",
            ),
            (r#"{"PublicIP":"1.2.3.4","BackendType":"vxlan","BackendData":"x"}"#, "BackendData is \"x\""),
            (r#"{"PublicIP":"1.2.3.4","Loden":7}"#, "Loden is 7"),
        ] {
            let error = LeaseValue::parse(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(LeaseValue::parse(&vec![b' '; VALUE_LIMIT + 1]).is_err());
    }

    const MEMBERS: &[&str] = &[
        r#""PublicIP":"1.2.3.4""#,
        r#""PublicIP":"0.0.0.0""#,
        r#""PublicIP":null"#,
        r#""publicip":"4.3.2.1""#,
        r#""PublicIPv6":null"#,
        r#""PublicIPv6":"fd00::1""#,
        r#""BackendType":"vxlan""#,
        r#""BackendType":"\u0076xlan""#,
        r#""BackendType":"host-gw""#,
        r#""BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#,
        r#""BackendData":{"VtepMAC":"C6-d2-32-6f-8f-44"}"#,
        r#""BackendData":{"VNI":-1,"VtepMAC":"c6:d2:32:6f:8f:44","x":{}}"#,
        r#""BackendData":{"vni":2,"vtepmac":"c6:d2:32:6f:8f:44"}"#,
        r#""BackendData":null"#,
        r#""BackendData":[1,"c6:d2:32:6f:8f:44"]"#,
        r#""BackendData":{"VtepMAC":""}"#,
        r#""BackendV6Data":{"VNI":4294967296,"VtepMAC":"c6:d2:32:6f:8f:45"}"#,
        r#""BackendV6Data":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:45"}"#,
        r#""Loden":{"HostID":"a","Labels":{"r":"1","r":"2"},"New":7,"Sources":["fd00::9"]}"#,
        r#""Loden":null"#,
        r#""Loden":{"HostID":7}"#,
        r#""Future":[1]"#,
    ];

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), key in ".{0,60}") {
            let _ = LeaseValue::parse(&bytes);
            let _ = LeaseKey::parse(&key);
        }

        #[test]
        fn keys_survive_text(a in any::<[u8; 4]>(), la in 0u8..=32, b in any::<[u8; 16]>(), lb in 0u8..=128, both in 0..3) {
            let v4 = Subnet::containing(a.into(), la).expect("length fits");
            let v6 = Subnet::containing(b.into(), lb).expect("length fits");
            let key = match both { 0 => LeaseKey::single(v4), 1 => LeaseKey::single(v6), _ => LeaseKey::new(Some(v4), Some(v6)).expect("of either family") };
            prop_assert_eq!(LeaseKey::parse(&key.to_string()), Ok(key));
        }

        #[test]
        fn a_text_that_is_read_as_a_key_is_how_it_is_written(
            text in "([+0]?10\\.0{0,2}5\\.[01]{1,3}\\.0-[+0]{0,2}(24|0)&?)?([fF]d00:0{0,3}5?:{1,2}-[+0]{0,2}(64|0))?",
        ) {
            if let Ok(key) = LeaseKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text);
            }
        }

        /// The quick way may refuse what the other takes, but never read it otherwise.
        #[test]
        fn both_ways_of_parsing_agree(members in prop::collection::vec(0..MEMBERS.len(), 0..9)) {
            let text = format!("{{{}}}", members.iter().map(|m| MEMBERS[*m]).collect::<Vec<_>>().join(","));
            prop_assert_eq!(LeaseValue::parse(text.as_bytes()), LeaseValue::parse_any(text.as_bytes()));
        }

        #[test]
        fn values_survive_text(ip in any::<[u8; 4]>(), mac in any::<[u8; 6]>(), vni in any::<Option<u32>>(), host in "[a-z0-9]{0,32}") {
            let value = LeaseValue {
                public_ip: Some(ip.into()).filter(|ip: &Ipv4Addr| !ip.is_unspecified()),
                backend_type: "vxlan".into(),
                backend_data: BackendData::Vxlan { vni, vtep_mac: Mac(mac) },
                loden: Some(Arc::new(LodenMember { host_id: host.into(), ..LodenMember::default() })),
                ..LeaseValue::default()
            };
            prop_assert_eq!(LeaseValue::parse(value.to_json().as_bytes()), Ok(value));
        }
    }
}
