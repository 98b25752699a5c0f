//! What our lease says, and what of others' leases bears on it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use loden_core::claim;
use loden_core::leases::{LeaseRecord, LeaseTable};
use loden_core::mac;
use loden_core::underlay::Underlay;
use loden_proto::config::{Backend, NetworkConfig};
use loden_proto::lease::{BackendData, LeaseKey, LeaseValue, LodenMember};
use loden_proto::{Family, Mac, Rare};

use crate::reconcile::HostFacts;
use crate::state::{self, Last};

/// MACs of our VXLAN devices: what lasts longest of what there is.
pub(super) fn macs(
    config: &NetworkConfig,
    facts: &HostFacts,
    last: &Last,
    former: Option<&LeaseRecord>,
    host_id: &str,
) -> BTreeMap<Family, Mac> {
    let Backend::Vxlan(vxlan) = &config.backend else { return BTreeMap::new() };
    let published =
        |family| former.and_then(|r| r.value.as_ref().ok()).and_then(|v| v.backend_data(family).vtep_mac());
    config
        .pools()
        .map(|pool| pool.network.family())
        .map(|family| {
            let candidates = mac::Candidates {
                adopted_device: facts.adopted(vxlan, family).and_then(|link| link.mac),
                lasting: last.macs.get(&family).copied(),
                published: published(family),
            };
            (family, mac::choose(candidates, host_id, vxlan.vni, family))
        })
        .collect()
}

/// The value to publish. Members that we do not know stay as they are.
pub(super) fn value(
    config: &NetworkConfig,
    underlay: &Underlay,
    macs: &BTreeMap<Family, Mac>,
    host_id: &str,
    current: Option<&LeaseRecord>,
    labels: &BTreeMap<String, String>,
    ttl: u64,
) -> LeaseValue {
    let mut value = LeaseValue::default();
    value.other = current.and_then(|r| r.value.as_ref().ok()).and_then(|v| v.other.clone());
    for address in public_addresses(config, underlay) {
        match address {
            IpAddr::V4(ip) => value.public_ip = Some(ip),
            IpAddr::V6(ip) => value.public_ipv6 = Some(ip),
        }
    }
    match &config.backend {
        Backend::Vxlan(vxlan) => {
            value.backend_type = "vxlan".into();
            let data = |family| match macs.get(&family) {
                Some(mac) => BackendData::Vxlan { vni: Some(vxlan.vni), vtep_mac: *mac },
                None => BackendData::None,
            };
            value.backend_data = data(Family::V4);
            value.backend_v6_data = data(Family::V6);
        }
        Backend::HostGw => value.backend_type = "host-gw".into(),
        // flannel's alloc leases carry no type.
        Backend::Alloc => {}
    }
    // Behind 1:1 NAT our packets may also come from the address itself.
    let sources = underlay.endpoints.iter().filter(|e| e.local != e.public).map(|e| e.local);
    value.loden = Some(Arc::new(LodenMember {
        host_id: host_id.into(),
        boot_id: state::boot_id().into(),
        host_name: state::host_name().into(),
        labels: labels.clone().into(),
        version: env!("CARGO_PKG_VERSION").into(),
        features: Rare::default(),
        released: false,
        sources: sources.collect::<Vec<_>>().into(),
        keep_alive_seconds: claim::keep_alive_interval(ttl),
    }));
    value
}

/// The addresses that peers send to, in the order of the networks.
pub(super) fn public_addresses(config: &NetworkConfig, underlay: &Underlay) -> Vec<IpAddr> {
    config.pools().filter_map(|p| underlay.endpoint(p.network.family())).map(|e| e.public).collect()
}

/// Whether the underlay was chosen with this config's families in mind: before the config is known it
/// is IPv4's. flannel stands still for a minute at a dual-stack lease without an IPv6 address.
pub(super) fn complete(config: &NetworkConfig, underlay: &Underlay) -> bool {
    config.pools().all(|p| underlay.endpoint(p.network.family()).is_some())
}

/// A config without `Backend` is udp to flannel: where such hosts live, joining them as vxlan would
/// make two overlays that cannot talk.
pub(super) fn udp_peers(config: &NetworkConfig, table: &LeaseTable) -> Option<String> {
    if !config.backend_implied {
        return None;
    }
    let (key, _) = table.iter().find(|(_, r)| {
        r.etcd_lease != 0 && r.value.as_ref().is_ok_and(|v| v.backend_type.is_empty() && v.loden.is_none())
    })?;
    Some(format!(
        "the network config has no Backend, and the live lease {key} has no type: flannel runs udp there; set Backend.Type for all hosts (loden config set)"
    ))
}

/// Whether what changed between two tables can matter to our own lease: our key is not there, or changed,
/// or a key came or changed that has a MAC of ours.
pub(super) fn concerns(
    before: &LeaseTable,
    now: &LeaseTable,
    own: &LeaseKey,
    macs: &BTreeMap<Family, Mac>,
) -> bool {
    let twin = |record: &LeaseRecord| {
        let value = record.value.as_ref().ok();
        macs.iter().any(|(f, mac)| value.is_some_and(|v| v.backend_data(*f).vtep_mac() == Some(*mac)))
    };
    // `before` may be from a time when our key was not written yet.
    now.get(own).is_none()
        || before.changes(now).any(|(key, _, new)| key == *own || new.is_some_and(|r| twin(r)))
}

/// Whether a peer with an older claim has the same MAC: then we are the one to change it.
pub(super) fn has_older_twin(table: &LeaseTable, own: &LeaseKey, family: Family, mac: Mac) -> bool {
    let Some(ours) = table.get(own).map(|r| r.create_revision) else { return false };
    table.iter().any(|(key, record)| {
        key != own
            && record.create_revision < ours
            && record.value.as_ref().is_ok_and(|v| v.backend_data(family).vtep_mac() == Some(mac))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_key_and_twins_of_ours_concern_us() {
        let key = |text: &str| LeaseKey::parse(text).expect(text);
        let (own, other) = (key("10.5.1.0-24"), key("10.5.2.0-24"));
        let (ours, theirs) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let record = |mac: Mac, revision: i64| LeaseRecord {
            value: Ok(LeaseValue {
                backend_type: "vxlan".into(),
                backend_data: BackendData::Vxlan { vni: Some(1), vtep_mac: mac },
                ..LeaseValue::default()
            }),
            etcd_lease: 7,
            create_revision: revision,
            mod_revision: revision,
        };
        let macs = BTreeMap::from([(Family::V4, ours)]);
        let table = |records: &[(LeaseKey, Mac, i64)]| {
            let mut table = LeaseTable::default();
            for (key, mac, revision) in records {
                table.insert(*key, record(*mac, *revision));
            }
            table
        };
        let alone = table(&[(own, ours, 1)]);
        let both = table(&[(own, ours, 1), (other, theirs, 2)]);
        for (before, now, expected) in [
            (&alone, &both, false),
            (&alone, &table(&[(own, ours, 1), (other, ours, 2)]), true),
            (&both, &table(&[(own, theirs, 3), (other, theirs, 2)]), true),
            // Our key was written and deleted before it was ever seen.
            (&LeaseTable::default(), &table(&[(other, theirs, 2)]), true),
        ] {
            assert_eq!(concerns(before, now, &own, &macs), expected, "{before:?} {now:?}");
        }
    }
}
