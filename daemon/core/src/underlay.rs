//! Which interface and addresses carry the overlay. flannel's meaning of `--iface`,
//! `--iface-regex`, `--iface-can-reach` and `--public-ip`, plus: what comes late is waited for,
//! and only what can never be right is refused, with the candidates listed.

use std::net::IpAddr;

use loden_proto::{Family, Subnet};
use regex_lite::Regex;

use crate::observed::{Address, Link, Observed};

/// What the operator asked for.
#[derive(Debug, Clone, Default)]
pub struct UnderlayOptions {
    /// `--iface`: names, addresses or prefixes, in order of preference.
    pub interfaces: Vec<String>,
    /// `--iface-regex`, matched against addresses, then names.
    pub patterns: Vec<Regex>,
    /// `--iface-can-reach`
    pub can_reach: Option<IpAddr>,
    /// `--public-ip` and `--public-ipv6`
    pub public: Vec<IpAddr>,
}

/// The interface and addresses that carry the overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// Its name.
    pub interface: String,
    /// Its index.
    pub index: u32,
    /// MTU in bytes.
    pub mtu: u32,
    /// For each family of the network: the interface's address, and the one that peers send to.
    pub endpoints: Vec<Endpoint>,
    /// Prefixes on its link.
    pub on_link: Vec<Subnet>,
}

/// The underlay address of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// On the interface: the source of our packets.
    pub local: IpAddr,
    /// In our lease: where peers send to. Differs behind 1:1 NAT.
    pub public: IpAddr,
}

impl Underlay {
    /// The endpoint of a family.
    pub fn endpoint(&self, family: Family) -> Option<Endpoint> {
        self.endpoints.iter().copied().find(|e| Family::of(e.local) == family)
    }
}

/// Why there is no underlay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoUnderlay {
    /// It may come: an interface that is not there yet, an address that is missing.
    #[error("{0}; waiting for it")]
    NotYet(String),
    /// It cannot come.
    #[error("{0}")]
    Never(String),
}

/// Chooses. `route_to` is the interface index of the route to `--iface-can-reach`, if there is one;
/// `former` the interface chosen last, which stays the choice while there is no default route: routes
/// come and go with DHCP and its kin, the interface and its address do not.
pub fn choose(
    options: &UnderlayOptions,
    families: &[Family],
    observed: &Observed,
    own_devices: &dyn Fn(&Link) -> bool,
    route_to: Option<u32>,
    former: Option<&str>,
) -> Result<Underlay, NoUnderlay> {
    let candidates: Vec<&Link> = observed.links.values().filter(|l| !l.loopback && !own_devices(l)).collect();
    let asked = !options.interfaces.is_empty() || !options.patterns.is_empty() || options.can_reach.is_some();
    let found = if asked {
        find_asked(options, &candidates, observed, route_to)
    } else if let Some(link) = options.public.iter().find_map(|ip| with_address(&candidates, observed, *ip)) {
        // flannel: without interface flags, the interface that holds --public-ip.
        Some((link, None))
    } else {
        let default = families.iter().find_map(|f| observed.default_routes.get(f).copied());
        let default = default.and_then(|index| candidates.iter().copied().find(|l| l.index == index));
        default
            .or_else(|| candidates.iter().copied().find(|l| Some(l.name.as_str()) == former))
            .map(|l| (l, None))
    };
    let Some((link, wanted)) = found else {
        return Err(NoUnderlay::NotYet(missing(options, asked, &candidates, observed)));
    };
    let mut endpoints = Vec::new();
    for family in families {
        let public = options.public.iter().copied().find(|ip| Family::of(*ip) == *family);
        let usable = usable(observed, link.index, *family);
        let local = wanted
            .filter(|ip| {
                Family::of(*ip) == *family && !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
            })
            .or_else(|| public.filter(|ip| usable.iter().any(|a| a.address == *ip)))
            .or_else(|| usable.first().map(|a| a.address));
        let Some(local) = local else {
            return Err(NoUnderlay::NotYet(format!("the interface {} has no {family} address", link.name)));
        };
        endpoints.push(Endpoint { local, public: public.unwrap_or(local) });
    }
    let on_link = observed
        .addresses
        .get(&link.index)
        .into_iter()
        .flatten()
        .filter(|a| a.length < Family::of(a.address).bits())
        .filter_map(|a| Subnet::containing(a.address, a.length).ok())
        .collect();
    Ok(Underlay { interface: link.name.clone(), index: link.index, mtu: link.mtu, endpoints, on_link })
}

/// Checks what can be known without looking at the host: an option that no host could satisfy.
pub fn check(options: &UnderlayOptions) -> Result<(), NoUnderlay> {
    for name in &options.interfaces {
        let address = name.parse::<IpAddr>().is_ok() || name.contains('/');
        // IFNAMSIZ is 16 with the closing zero (include/uapi/linux/if.h).
        if !address
            && (name.is_empty() || name.len() > 15 || name.contains(|c: char| c.is_whitespace() || c == ':'))
        {
            return Err(NoUnderlay::Never(format!(
                "--iface {name:?} is neither an interface name (1 to 15 characters), an address nor a prefix"
            )));
        }
        if name.contains('/') && prefix(name).is_none() {
            return Err(NoUnderlay::Never(format!(
                "--iface {name:?} is not a prefix such as 192.168.0.0/24"
            )));
        }
    }
    for ip in &options.public {
        let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || link_local {
            return Err(NoUnderlay::Never(format!(
                "--public-ip {ip} is not a unicast address that peers can reach"
            )));
        }
    }
    Ok(())
}

fn find_asked<'a>(
    options: &UnderlayOptions,
    candidates: &[&'a Link],
    observed: &Observed,
    route_to: Option<u32>,
) -> Option<(&'a Link, Option<IpAddr>)> {
    let all_addresses = || {
        candidates.iter().flat_map(|l| {
            observed.addresses.get(&l.index).into_iter().flatten().map(move |a| (*l, a.address))
        })
    };
    for wanted in &options.interfaces {
        if let Ok(ip) = wanted.parse::<IpAddr>() {
            if let Some(link) = with_address(candidates, observed, ip) {
                return Some((link, Some(ip)));
            }
        } else if let Some(prefix) = prefix(wanted) {
            if let Some((link, ip)) = all_addresses().find(|(_, ip)| prefix.contains(*ip)) {
                return Some((link, Some(ip)));
            }
        } else if let Some(link) = candidates.iter().find(|l| l.name == *wanted) {
            return Some((link, None));
        }
    }
    for pattern in &options.patterns {
        if let Some((link, ip)) = all_addresses().find(|(_, ip)| pattern.is_match(&ip.to_string())) {
            return Some((link, Some(ip)));
        }
        if let Some(link) = candidates.iter().find(|l| pattern.is_match(&l.name)) {
            return Some((link, None));
        }
    }
    let index = options.can_reach.and(route_to)?;
    candidates.iter().find(|l| l.index == index).map(|l| (*l, None))
}

fn prefix(text: &str) -> Option<Subnet> {
    let (address, length) = text.split_once('/')?;
    Subnet::containing(address.parse().ok()?, length.parse().ok()?).ok()
}

fn with_address<'a>(candidates: &[&'a Link], observed: &Observed, ip: IpAddr) -> Option<&'a Link> {
    candidates
        .iter()
        .copied()
        .find(|l| observed.addresses.get(&l.index).is_some_and(|all| all.iter().any(|a| a.address == ip)))
}

/// An interface's addresses of a family, the best first: global before link-local, permanent
/// before dynamic, as flannel prefers; temporary and deprecated ones never.
fn usable(observed: &Observed, index: u32, family: Family) -> Vec<&Address> {
    let mut all: Vec<&Address> = observed
        .addresses
        .get(&index)
        .into_iter()
        .flatten()
        .filter(|a| Family::of(a.address) == family && !a.unusable)
        // Says nothing to a peer: it names a host on one link only, and not on which.
        .filter(|a| family == Family::V4 || !a.link_local())
        .collect();
    all.sort_by_key(|a| (a.link_local(), !a.permanent));
    all
}

fn missing(options: &UnderlayOptions, asked: bool, candidates: &[&Link], observed: &Observed) -> String {
    let wanted = if asked {
        let mut parts: Vec<String> = options.interfaces.iter().map(|i| format!("--iface {i}")).collect();
        parts.extend(options.patterns.iter().map(|p| format!("--iface-regex {p}")));
        parts.extend(options.can_reach.map(|ip| format!("--iface-can-reach {ip}")));
        format!("no interface matches {}", parts.join(" or "))
    } else {
        "there is no default route to name an interface; --iface NAME chooses one".to_owned()
    };
    // Ports of bridges are containers', seldom anything else.
    let list: Vec<String> = candidates
        .iter()
        .filter(|l| l.controller == 0)
        .map(|l| {
            let addresses: Vec<String> = observed
                .addresses
                .get(&l.index)
                .into_iter()
                .flatten()
                .map(|a| format!("{}/{}", a.address, a.length))
                .collect();
            if addresses.is_empty() {
                l.name.clone()
            } else {
                format!("{} ({})", l.name, addresses.join(", "))
            }
        })
        .collect();
    let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    format!("{wanted}; candidates: {list}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lo`, `eth0` with 192.168.0.1 and `eth1` with 10.9.0.1 and a link-local address.
    fn host() -> Observed {
        let mut observed = Observed::default();
        for (index, name) in [(1, "lo"), (2, "eth0"), (3, "eth1")] {
            observed.links.insert(
                index,
                Link {
                    index,
                    name: name.into(),
                    mac: None,
                    mtu: 1500,
                    up: true,
                    loopback: index == 1,
                    bridge: false,
                    controller: 0,
                    other_names: Vec::new(),
                    vxlan: None,
                },
            );
        }
        let address = |text: &str, length| Address {
            address: text.parse().expect(text),
            length,
            permanent: true,
            unusable: false,
            ours: false,
        };
        observed.addresses.insert(1, vec![address("127.0.0.1", 8)]);
        observed.addresses.insert(2, vec![address("192.168.0.1", 24)]);
        observed.addresses.insert(3, vec![address("169.254.3.3", 16), address("10.9.0.1", 24)]);
        observed
    }

    fn pick(
        options: &UnderlayOptions,
        observed: &Observed,
        former: Option<&str>,
    ) -> Result<(String, IpAddr), String> {
        choose(options, &[Family::V4], observed, &|_| false, Some(3), former)
            .map(|u| (u.interface, u.endpoints[0].local))
            .map_err(|e| e.to_string())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn each_way_of_asking_finds_its_interface() {
        let observed = host();
        let asked = |names: &[&str]| UnderlayOptions {
            interfaces: names.iter().map(|n| (*n).to_owned()).collect(),
            ..UnderlayOptions::default()
        };
        let eth1 = Ok(("eth1".to_owned(), ip("10.9.0.1")));
        assert_eq!(pick(&asked(&["eth1"]), &observed, None), eth1, "global before link-local");
        assert_eq!(pick(&asked(&["10.9.0.1"]), &observed, None), eth1);
        assert_eq!(pick(&asked(&["10.9.0.0/16"]), &observed, None), eth1);
        assert_eq!(pick(&asked(&["wlan0", "eth1"]), &observed, None), eth1, "the first that fits");
        let pattern =
            UnderlayOptions { patterns: vec![Regex::new("^eth1$").expect("regex")], ..Default::default() };
        assert_eq!(pick(&pattern, &observed, None), eth1);
        let reach = UnderlayOptions { can_reach: Some(ip("10.9.0.7")), ..Default::default() };
        assert_eq!(pick(&reach, &observed, None), eth1);
        let public = UnderlayOptions { public: vec![ip("10.9.0.1")], ..Default::default() };
        assert_eq!(pick(&public, &observed, None), eth1);
    }

    #[test]
    fn without_a_default_route_the_former_choice_stays_and_a_fresh_host_waits() {
        let mut observed = host();
        let options = UnderlayOptions::default();
        let waits = pick(&options, &observed, None).expect_err("no default route");
        assert!(waits.contains("eth0 (192.168.0.1/24)") && waits.contains("waiting"), "{waits}");
        assert_eq!(pick(&options, &observed, Some("eth1")), Ok(("eth1".into(), ip("10.9.0.1"))));
        observed.default_routes.insert(Family::V4, 2);
        assert_eq!(pick(&options, &observed, Some("eth1")), Ok(("eth0".into(), ip("192.168.0.1"))));
    }

    #[test]
    fn an_ipv6_address_of_one_link_is_waited_out() {
        let mut observed = host();
        let add = |observed: &mut Observed, text: &str| {
            let address =
                Address { address: ip(text), length: 64, permanent: true, unusable: false, ours: false };
            observed.addresses.entry(2).or_default().push(address);
        };
        let options = UnderlayOptions { interfaces: vec!["eth0".into()], ..Default::default() };
        let choice = |observed: &Observed| {
            choose(&options, &Family::ALL, observed, &|_| false, None, None).map(|u| u.endpoints[1].local)
        };
        add(&mut observed, "fe80::1");
        let waits = choice(&observed).expect_err("link-local only").to_string();
        assert!(waits.contains("eth0 has no IPv6 address") && waits.contains("waiting"), "{waits}");
        add(&mut observed, "fd77::1");
        assert_eq!(choice(&observed), Ok(ip("fd77::1")));
        let public = UnderlayOptions { public: vec![ip("fe80::1")], ..Default::default() };
        assert!(check(&public).is_err());
    }

    #[test]
    fn what_can_never_be_right_is_refused() {
        let interfaces = |name: &str| UnderlayOptions { interfaces: vec![name.into()], ..Default::default() };
        for wrong in ["", "a-name-of-17-bytes", "eth 0", "10.0.0.0/x"] {
            assert!(check(&interfaces(wrong)).is_err(), "{wrong:?}");
        }
        assert!(check(&UnderlayOptions { public: vec![ip("224.0.0.1")], ..Default::default() }).is_err());
        assert!(check(&interfaces("eth0")).is_ok());
    }
}
