//! Names by hand: whether one can be given on this host.

use std::net::IpAddr;

use loden_proto::dns_name::DnsName;
use loden_proto::lease::LeaseKey;
use loden_proto::name_record::ManualName;

use super::{Given, Settings};

/// The name with the zone taken off, or why it cannot be given here.
pub fn judge_manual(wanted: &ManualName, settings: &Settings, own: LeaseKey) -> Result<DnsName, String> {
    let zone = &settings.dns.zone;
    if wanted.name == *zone {
        return Err(format!("{zone} is the zone itself; give a name below it, such as kdc or kdc.{zone}"));
    }
    let mut given = Given::new([wanted.name.as_str()], [], zone);
    if let Some(problem) = given.problems.pop() {
        return Err(format!("{problem}; choose another name"));
    }
    let name = given.names.pop().ok_or("a name is missing")?;
    if wanted.addresses.is_empty() {
        return Err(format!("{name} needs an address; say --address"));
    }
    match wanted.addresses.iter().find_map(|address| refusal(*address, settings, own)) {
        Some(refusal) => Err(refusal),
        None => Ok(name),
    }
}

fn refusal(address: IpAddr, settings: &Settings, own: LeaseKey) -> Option<String> {
    let local = match address {
        IpAddr::V4(ip) => ip.is_broadcast() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || local {
        return Some(format!(
            "{address} is no address by which other hosts reach one machine; name the one that they use"
        ));
    }
    let network = settings.networks.iter().find(|network| network.contains(address))?;
    let subnets: Vec<String> = own.subnets().map(|s| s.to_string()).collect();
    match own.subnets().find(|subnet| subnet.contains(address)) {
        Some(subnet) if address == subnet.gateway() || address == subnet.address() => Some(format!(
            "{address} is this host's own in the overlay, and has a name below host.{}",
            settings.dns.zone
        )),
        Some(_) => None,
        None => Some(format!(
            "{address} is inside the overlay {network}, but not in this host's subnet {}, and nobody believes a host \
             what it says of others' addresses; run loden name add on the host that has it",
            subnets.join(" and ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use loden_proto::config::NetworkConfig;

    #[test]
    fn what_cannot_be_named_here_is_told_why() {
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16"}"#).expect("config");
        let settings = Settings {
            networks: config.pools().map(|pool| pool.network).collect(),
            dns: config.dns.clone().expect("on by default"),
            own_subnets: Vec::new(),
            own_addresses: Default::default(),
            public_addresses: Vec::new(),
            local_networks: Vec::new(),
        };
        let own = LeaseKey::parse("10.5.7.0-24").expect("lease");
        let judged = |name: &str, addresses: &[&str]| {
            let addresses = addresses.iter().map(|a| a.parse().expect("address")).collect();
            let name = name.parse().expect("name");
            let wanted = ManualName { name, group: false, addresses, ports: Vec::new(), since: 0 };
            judge_manual(&wanted, &settings, own).map(|name| name.to_string())
        };
        for name in ["kdc", "KDC.loden.internal"] {
            assert_eq!(judged(name, &["10.5.7.9", "192.0.2.7", "2001:db8::7"]), Ok("kdc".into()));
        }
        for (name, addresses, words) in [
            ("kdc.host", &["10.5.7.9"][..], "are the hosts; choose another"),
            ("kdc", &[], "--address"),
            (
                "kdc",
                &["10.5.8.9"],
                "10.5.8.9 is inside the overlay 10.5.0.0/16, but not in this host's subnet 10.5.7.0/24",
            ),
            ("kdc", &["10.5.7.9", "127.0.0.1"], "127.0.0.1 is no address"),
            ("kdc", &["::"], ":: is no address"),
            ("kdc", &["169.254.53.53"], "169.254.53.53 is no address"),
            ("kdc", &["fe80::1"], "fe80::1 is no address"),
            ("kdc", &["10.5.7.1"], "10.5.7.1 is this host's own"),
            ("Loden.Internal", &["10.5.7.9"], "is the zone itself"),
        ] {
            let error = judged(name, addresses).expect_err(name);
            assert!(error.contains(words), "{error}");
        }
    }
}
