//! Subnets of either address family.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4, 32 bits.
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6, 128 bits.
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    /// Both, in the order in which they are always shown.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// Address length in bits.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// Why a text or a pair of address and length is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubnetError {
    /// Not `ADDRESS/LENGTH`.
    #[error("{0:?} is not a subnet such as 10.5.7.0/24")]
    Syntax(String),
    /// Bits are set to the right of the prefix.
    #[error("{address}/{length} has bits set beyond its prefix; did you mean {meant}?")]
    HostBits {
        /// The address as given.
        address: IpAddr,
        /// The prefix length as given.
        length: u8,
        /// The subnet that the address lies in.
        meant: Subnet,
    },
    /// Longer than the address.
    #[error("/{length} is longer than an {family} address")]
    Length {
        /// The prefix length as given.
        length: u8,
        /// The family of the address.
        family: Family,
    },
}

/// A subnet whose host bits are zero. Ordered by address, then by length, so that in a sorted
/// map all subnets inside another follow it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subnet(IpNetwork);

impl Subnet {
    /// `::/0`
    pub const ALL_V6: Subnet =
        Subnet(IpNetwork::V6(Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0).expect("length 0 is valid")));

    /// A subnet from its network address and length; host bits must be zero.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, SubnetError> {
        let meant = Self::containing(address, length)?;
        if meant.address() == address {
            Ok(meant)
        } else {
            Err(SubnetError::HostBits { address, length, meant })
        }
    }

    /// The subnet of this length that the address lies in.
    pub fn containing(address: IpAddr, length: u8) -> Result<Self, SubnetError> {
        let family = Family::of(address);
        let network = IpNetwork::new(address, length).map_err(|_| SubnetError::Length { length, family })?;
        IpNetwork::new(network.network(), length)
            .map(Self)
            .map_err(|_| SubnetError::Length { length, family })
    }

    /// The network address.
    pub fn address(&self) -> IpAddr {
        self.0.ip()
    }

    /// The prefix length in bits.
    pub fn length(&self) -> u8 {
        self.0.prefix()
    }

    /// The address family.
    pub fn family(&self) -> Family {
        Family::of(self.address())
    }

    /// What [`Subnet::v4`] made.
    pub(crate) fn of_v4(network: Ipv4Network) -> Self {
        Self(IpNetwork::V4(network))
    }

    /// What [`Subnet::v6`] made.
    pub(crate) fn of_v6(network: Ipv6Network) -> Self {
        Self(IpNetwork::V6(network))
    }

    /// Itself, if it is of IPv4.
    pub(crate) fn v4(self) -> Option<Ipv4Network> {
        match self.0 {
            IpNetwork::V4(network) => Some(network),
            IpNetwork::V6(_) => None,
        }
    }

    /// Itself, if it is of IPv6.
    pub(crate) fn v6(self) -> Option<Ipv6Network> {
        match self.0 {
            IpNetwork::V4(_) => None,
            IpNetwork::V6(network) => Some(network),
        }
    }

    /// The first host address (network address plus one), which the bridge holds.
    pub fn gateway(&self) -> IpAddr {
        self.nth(1)
    }

    /// The last address (IPv4: the broadcast address).
    pub fn last(&self) -> IpAddr {
        self.0.broadcast()
    }

    /// How many addresses it holds, at most `u128::MAX`.
    pub fn size(&self) -> u128 {
        1u128.checked_shl(u32::from(self.family().bits() - self.length())).unwrap_or(u128::MAX)
    }

    /// The address at this offset from the network address, wrapping at the end of the family.
    pub fn nth(&self, offset: u128) -> IpAddr {
        from_number(self.family(), to_number(self.address()).wrapping_add(offset))
    }

    /// Its upper half; `None` for a single address.
    pub fn upper_half(&self) -> Option<Subnet> {
        Self::new(self.nth(self.size() / 2), self.length() + 1).ok()
    }

    /// Offset of an address from the network address; meaningful when it lies inside.
    pub fn offset_of(&self, address: IpAddr) -> u128 {
        to_number(address).wrapping_sub(to_number(self.address()))
    }

    /// Whether the address lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }

    /// Whether all of the other lies inside (the same counts).
    pub fn contains_subnet(&self, other: &Subnet) -> bool {
        self.length() <= other.length() && self.contains(other.address())
    }

    /// Every subnet that holds this one, the widest first.
    pub fn wider(self) -> impl Iterator<Item = Self> {
        (0..self.length()).filter_map(move |length| Self::containing(self.address(), length).ok())
    }

    /// Whether the two share an address.
    pub fn overlaps(&self, other: &Subnet) -> bool {
        self.contains_subnet(other) || other.contains_subnet(self)
    }
}

/// An address as a number, IPv4 in the low 32 bits.
fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

fn from_number(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(number as u32).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

impl PartialOrd for Subnet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Subnet {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.address(), other.address()) {
            // Nearly all of them, and compared all the time.
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (u32::from(a), self.length()).cmp(&(u32::from(b), other.length()))
            }
            (a, b) => (a, self.length()).cmp(&(b, other.length())),
        }
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.length())
    }
}

impl fmt::Debug for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let bad = || SubnetError::Syntax(text.chars().take(64).collect());
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let address = address.parse().map_err(|_| bad())?;
        // `u8::from_str` takes a leading plus sign.
        if !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        Self::new(address, length.parse().map_err(|_| bad())?)
    }
}

impl Serialize for Subnet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().expect(text)
    }

    #[test]
    fn host_bits_are_refused_with_the_subnet_that_was_meant() {
        let error = "10.5.7.3/24".parse::<Subnet>().expect_err("host bits").to_string();
        assert!(error.contains("did you mean 10.5.7.0/24"), "{error}");
        for text in ["", "10.5.7.0", "10.5.7.0/33", "10.5.7.0/+24", "fd00::/129", "10.5.7/24", "x/24"] {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_counted_from_the_network_address() {
        assert_eq!(subnet("10.5.7.0/24").gateway().to_string(), "10.5.7.1");
        assert_eq!(subnet("10.5.7.0/24").last().to_string(), "10.5.7.255");
        assert_eq!(subnet("fd00:1::/64").gateway().to_string(), "fd00:1::1");
        assert_eq!(subnet("10.5.7.0/24").size(), 256);
        assert_eq!(subnet("::/0").size(), u128::MAX);
        assert_eq!(subnet("10.5.0.0/16").offset_of("10.5.7.0".parse().expect("ip")), 7 * 256);
    }

    #[test]
    fn overlap_is_containment_one_way_or_the_other() {
        let (wide, narrow, beside) = (subnet("10.5.0.0/16"), subnet("10.5.7.0/24"), subnet("10.6.0.0/24"));
        assert!(wide.overlaps(&narrow) && narrow.overlaps(&wide) && wide.contains_subnet(&narrow));
        assert!(!narrow.contains_subnet(&wide) && !narrow.overlaps(&beside));
        assert!(!wide.overlaps(&subnet("fd00::/16")), "families never overlap");
    }
}
