//! Which subnet is ours: one step at a time, from what stands in etcd, what we remember and what
//! is known of other holders' liveness. The keeper carries a step out and asks again.
//!
//! | lease in etcd | means | step |
//! |---|---|---|
//! | our host id, our address | our own former life | take it |
//! | our host id, another address | we moved, or we are a clone | holder dead: take it; alive: new host id |
//! | another host id, our address | re-installed host, or duplicate address | dead: take it; alive: refuse |
//! | no Loden member, our address | our own former flannel lease | take it |
//! | reserved (no etcd lease) for our address or host id | ours for ever | take it, and keep it without an etcd lease |

use std::collections::BTreeMap;
use std::net::IpAddr;

use loden_proto::config::{NetworkConfig, Pool};
use loden_proto::lease::{LeaseKey, LeaseValue};
use loden_proto::{Family, Subnet};

use crate::fnv::Fnv;
use crate::leases::{LeaseRecord, LeaseTable};
use crate::{Millis, printable};

/// Who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Lasting identity of the host.
    pub host_id: String,
    /// Our public addresses, one per family that the network has.
    pub public: Vec<IpAddr>,
}

/// Whether the holder of a lease lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It refreshed its lease while we watched.
    Alive,
    /// It has not for three intervals, or not while we watched.
    Dead,
}

/// What to do next to get a subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Overwrite this key if its revision is still this one.
    Take {
        /// The key.
        key: LeaseKey,
        /// Its `mod_revision`.
        mod_revision: i64,
        /// Whether the key has no etcd lease and must stay so.
        reserved: bool,
        /// Why it is ours, for the log.
        why: &'static str,
    },
    /// Create this key, which does not exist.
    Create {
        /// The key.
        key: LeaseKey,
        /// Why this one, for the log.
        why: &'static str,
    },
    /// Find out whether the holder of this key lives, then ask again.
    AskHolder {
        /// The key.
        key: LeaseKey,
    },
    /// The holder of our host id lives elsewhere: we are a clone. Draw a new host id, then ask again.
    NewIdentity {
        /// The key of the original.
        key: LeaseKey,
    },
    /// Delete our own former key, which the config no longer allows, then ask again.
    Release {
        /// The key.
        key: LeaseKey,
        /// Its `mod_revision`.
        mod_revision: i64,
    },
    /// Another living host has our public address.
    Refuse {
        /// Its key.
        key: LeaseKey,
        /// Who it is.
        holder: String,
    },
    /// Every subnet of the pool is taken.
    Exhausted {
        /// How many subnets the pool has.
        capacity: u128,
    },
}

/// The next step. `previous` are subnets that we held, the best first; `liveness` what is known of
/// holders; `seed` decides among free subnets, so that simultaneous starters rarely meet.
pub fn next_step(
    table: &LeaseTable,
    config: &NetworkConfig,
    identity: &Identity,
    previous: &[LeaseKey],
    liveness: &BTreeMap<LeaseKey, Liveness>,
    seed: u64,
) -> Step {
    let mut related: Vec<(&LeaseKey, &LeaseRecord, Relation)> = table
        .iter()
        .filter_map(|(key, record)| relation(record, identity).map(|r| (key, record, r)))
        .collect();
    // What we held last comes first, then the older claim.
    related.sort_by_key(|(key, record, _)| (!previous.contains(key), record.create_revision));
    for (key, record, relation) in related {
        let alive = liveness.get(key);
        let why = match (relation, alive) {
            (Relation::Former, _) => "it was ours before",
            (Relation::Flannel, _) => "flannel held it for this host",
            (Relation::Reserved, _) => "it is reserved for this host",
            (Relation::Moved | Relation::SameAddress, None) => return Step::AskHolder { key: *key },
            (Relation::Moved, Some(Liveness::Alive)) => return Step::NewIdentity { key: *key },
            (Relation::Moved, Some(Liveness::Dead)) => "this host had another address before",
            (Relation::SameAddress, Some(Liveness::Alive)) => {
                return Step::Refuse { key: *key, holder: holder(record) };
            }
            (Relation::SameAddress, Some(Liveness::Dead)) => "its holder is dead and had our address",
        };
        if !allowed(key, config) {
            if relation == Relation::Reserved {
                continue;
            }
            return Step::Release { key: *key, mod_revision: record.mod_revision };
        }
        let reserved = record.etcd_lease == 0;
        return Step::Take { key: *key, mod_revision: record.mod_revision, reserved, why };
    }
    // A key wider than a lease is refused everywhere and must not keep us from what was ours.
    let free = |key: &LeaseKey| key.subnets().all(|s| table.inside(&s).is_none());
    if let Some(key) = previous.iter().find(|key| allowed(key, config) && free(key)) {
        return Step::Create { key: *key, why: "this host had it before" };
    }
    let mut chosen = [None, None];
    let mut kept = false;
    for pool in config.pools() {
        let family = pool.network.family();
        // Where a family was added to the network or taken from it, the other's subnet stays: containers
        // live in it.
        let former = previous
            .iter()
            .filter_map(|key| key.subnet(family))
            .find(|s| pool.accepts(s) && table.inside(s).is_none());
        kept |= former.is_some();
        let Some(subnet) = former.or_else(|| choose(pool, table, seed)) else {
            return Step::Exhausted { capacity: pool.capacity() };
        };
        chosen[usize::from(family == Family::V6)] = Some(subnet);
    }
    let why = if kept { "this host had a part of it before" } else { "it is free" };
    match LeaseKey::new(chosen[0], chosen[1]) {
        Some(key) => Step::Create { key, why },
        None => Step::Exhausted { capacity: 0 },
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Former,
    Moved,
    SameAddress,
    Flannel,
    Reserved,
}

fn relation(record: &LeaseRecord, identity: &Identity) -> Option<Relation> {
    let value = record.value.as_ref().ok()?;
    let same_address = identity.public.iter().any(|ip| value.public_address(Family::of(*ip)) == Some(*ip));
    let same_host = value.host_id().map(|id| *id == *identity.host_id);
    match (same_host, same_address) {
        (Some(true), true) => Some(Relation::Former),
        (Some(true), false) if record.is_reservation() => Some(Relation::Reserved),
        (Some(true), false) => Some(Relation::Moved),
        (Some(false), true) => Some(Relation::SameAddress),
        (None, true) if record.is_reservation() => Some(Relation::Reserved),
        (None, true) => Some(Relation::Flannel),
        (_, false) => None,
    }
}

/// Whether the config would lease this key: the right families, each subnet in its pool.
pub fn allowed(key: &LeaseKey, config: &NetworkConfig) -> bool {
    Family::ALL.iter().all(|family| match (key.subnet(*family), config.pool(*family)) {
        (Some(subnet), Some(pool)) => pool.accepts(&subnet),
        (None, None) => true,
        _ => false,
    })
}

/// Whether a key is one of this network at all, whatever of it may be leased now: the right families,
/// each subnet inside its network and of its length.
pub fn of_network(key: &LeaseKey, config: &NetworkConfig) -> bool {
    Family::ALL.iter().all(|family| match (key.subnet(*family), config.pool(*family)) {
        (Some(subnet), Some(pool)) => {
            pool.network.contains_subnet(&subnet) && subnet.length() == pool.subnet_length
        }
        (None, None) => true,
        _ => false,
    })
}

/// An older key that holds a subnet of this one, in a table that has this one. Two hosts that create
/// `10.5.7.0-24&fd00:7::-64` and `10.5.7.0-24&fd00:9::-64` write different keys, so that etcd sees no
/// conflict: the younger gives way.
pub fn outrun(table: &LeaseTable, key: &LeaseKey) -> Option<LeaseKey> {
    let created = table.get(key)?.create_revision;
    let older =
        |other: &LeaseKey| other != key && table.get(other).is_some_and(|r| r.create_revision < created);
    key.subnets().find_map(|subnet| table.all_inside(subnet).find(older))
}

/// Who holds a lease, for people.
pub fn holder(record: &LeaseRecord) -> String {
    let Ok(value) = &record.value else { return "an unreadable lease".into() };
    let LeaseValue { public_ip, public_ipv6, loden, .. } = value;
    let address = public_ip
        .map(IpAddr::V4)
        .or(public_ipv6.map(IpAddr::V6))
        .map_or("no address".into(), |a| a.to_string());
    let reserved = record.is_reservation();
    match loden.as_ref().map(|m| (printable(&m.host_name.to_str()), printable(&m.host_id.to_str()))) {
        Some((_, id)) if reserved => format!("{address} (reserved for host id {id})"),
        Some((name, id)) if !name.is_empty() => format!("{name} ({address}, host id {id})"),
        Some((_, id)) => format!("{address} (host id {id})"),
        None if reserved => format!("{address} (reserved)"),
        None => format!("{address} (flannel)"),
    }
}

/// A free subnet of the pool: random tries first, which hit soon unless the pool is nearly
/// full, then a walk through the whole pool from a random start.
fn choose(pool: &Pool, table: &LeaseTable, seed: u64) -> Option<Subnet> {
    const TRIES: u64 = 32;
    /// A pool of more subnets than this is not walked: 32 misses in it do not happen.
    const WALK_LIMIT: u128 = 1 << 20;
    let capacity = pool.capacity();
    let draw = |n: u64| {
        let mut hash = Fnv::default();
        hash.write(&seed.to_be_bytes());
        hash.write(&n.to_be_bytes());
        u128::from(hash.finish()) % capacity
    };
    let indexes = || {
        let walk = (0..capacity.min(WALK_LIMIT)).map(|i| (draw(TRIES) + i) % capacity);
        (0..TRIES).map(draw).chain(walk)
    };
    // Wider keys may be hosts of an earlier SubnetLen: avoided while there is room, but one bad key of
    // half the network must not use up the pool.
    let clear = |index: u128| pool.nth(index).filter(|subnet| table.overlapping(subnet).is_none());
    let free = |index: u128| pool.nth(index).filter(|subnet| table.inside(subnet).is_none());
    indexes().find_map(clear).or_else(|| indexes().find_map(free))
}

/// A holder's liveness from what etcd says of its lease, in seconds: granted TTL, remaining TTL
/// and the keep-alive interval. `None`: it must be watched for one and a half intervals.
pub fn liveness(granted: u64, remaining: u64, interval: u64) -> Option<Liveness> {
    let silent = granted.saturating_sub(remaining);
    (silent > interval.saturating_mul(3)).then_some(Liveness::Dead)
}

/// The keep-alive interval of a lease's holder, in seconds: as it states, but never longer than it
/// could be for the TTL it was granted, so that nobody can make us wait for ever.
pub fn holders_interval(record: &LeaseRecord, granted: u64) -> u64 {
    // flannel renews once in a lease's life.
    if record.value.as_ref().is_ok_and(|v| v.loden.is_none()) {
        return granted;
    }
    let longest = keep_alive_interval(granted);
    let stated =
        record.value.as_ref().ok().and_then(|v| v.loden.as_ref()).map_or(0, |m| m.keep_alive_seconds);
    if stated == 0 { longest } else { stated.min(longest) }
}

/// The keep-alive interval for a TTL, both in seconds: a third of it, at most a minute.
pub fn keep_alive_interval(ttl: u64) -> u64 {
    (ttl / 3).clamp(1, 60)
}

/// How long after a claim the first keep-alive is due: between half an interval and a whole one, so that
/// hosts that started together do not refresh together ever after. `chance` is any random number.
pub fn first_keep_alive(ttl: u64, chance: u64) -> Millis {
    let interval = keep_alive_interval(ttl) * 1000;
    interval / 2 + chance % (interval / 2 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text).expect(text)
    }

    fn small() -> NetworkConfig {
        config(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.10.0","SubnetMax":"10.5.29.0"}"#)
    }

    fn key(text: &str) -> LeaseKey {
        LeaseKey::parse(text).expect(text)
    }

    fn us() -> Identity {
        Identity { host_id: "us".into(), public: vec!["192.168.0.1".parse().expect("ip")] }
    }

    fn table(entries: &[(&str, i64, &str)]) -> LeaseTable {
        let mut table = LeaseTable::default();
        for (i, (name, etcd_lease, value)) in entries.iter().enumerate() {
            let value = LeaseValue::parse(value.as_bytes()).map_err(|e| e.to_string());
            let revision = i as i64 + 1;
            table.put(
                name,
                LeaseRecord {
                    value,
                    etcd_lease: *etcd_lease,
                    create_revision: revision,
                    mod_revision: revision,
                },
            );
        }
        table
    }

    fn step(table: &LeaseTable, previous: &[LeaseKey], liveness: &[(&str, Liveness)]) -> Step {
        let liveness = liveness.iter().map(|(k, l)| (key(k), *l)).collect();
        next_step(table, &small(), &us(), previous, &liveness, 7)
    }

    const OURS: &str = r#"{"PublicIP":"192.168.0.1","BackendType":"vxlan","Loden":{"HostID":"us"}}"#;
    const OURS_MOVED: &str = r#"{"PublicIP":"192.168.0.9","BackendType":"vxlan","Loden":{"HostID":"us"}}"#;
    const OTHER_HERE: &str = r#"{"PublicIP":"192.168.0.1","BackendType":"vxlan","Loden":{"HostID":"they"}}"#;
    const FLANNEL_HERE: &str =
        r#"{"PublicIP":"192.168.0.1","BackendType":"vxlan","BackendData":{"VtepMAC":"02:00:00:00:00:01"}}"#;
    const OTHER: &str = r#"{"PublicIP":"192.168.0.2","BackendType":"vxlan"}"#;

    #[test]
    fn our_own_former_life_is_taken_at_once() {
        let table = table(&[("10.5.11.0-24", 5, OTHER), ("10.5.12.0-24", 6, OURS)]);
        assert!(
            matches!(step(&table, &[], &[]), Step::Take { key: k, mod_revision: 2, reserved: false, .. } if k == key("10.5.12.0-24"))
        );
    }

    #[test]
    fn our_host_id_elsewhere_is_asked_and_then_either_taken_or_left_to_the_original() {
        let table = table(&[("10.5.12.0-24", 6, OURS_MOVED)]);
        assert_eq!(step(&table, &[], &[]), Step::AskHolder { key: key("10.5.12.0-24") });
        let dead = [("10.5.12.0-24", Liveness::Dead)];
        assert!(matches!(step(&table, &[], &dead), Step::Take { .. }));
        let alive = [("10.5.12.0-24", Liveness::Alive)];
        assert_eq!(step(&table, &[], &alive), Step::NewIdentity { key: key("10.5.12.0-24") });
    }

    #[test]
    fn our_address_under_another_host_id_is_taken_from_the_dead_and_refused_by_the_living() {
        let table = table(&[("10.5.12.0-24", 6, OTHER_HERE)]);
        assert_eq!(step(&table, &[], &[]), Step::AskHolder { key: key("10.5.12.0-24") });
        assert!(matches!(step(&table, &[], &[("10.5.12.0-24", Liveness::Dead)]), Step::Take { .. }));
        let Step::Refuse { holder, .. } = step(&table, &[], &[("10.5.12.0-24", Liveness::Alive)]) else {
            panic!("refused")
        };
        assert!(holder.contains("192.168.0.1") && holder.contains("they"), "{holder}");
    }

    #[test]
    fn a_wide_bad_key_neither_blocks_a_former_subnet_nor_uses_up_the_pool() {
        let bad = table(&[("10.5.0.0-16", 0, "garbage"), ("10.5.10.0-24", 3, OTHER)]);
        let former = [key("10.5.12.0-24")];
        assert!(matches!(step(&bad, &former, &[]), Step::Create { key: k, .. } if k == former[0]));
        assert!(matches!(step(&bad, &[], &[]), Step::Create { .. }));
    }

    #[test]
    fn our_former_flannel_lease_is_taken() {
        let table = table(&[("10.5.12.0-24", 6, FLANNEL_HERE)]);
        assert!(matches!(step(&table, &[], &[]), Step::Take { reserved: false, .. }));
    }

    #[test]
    fn a_reservation_is_taken_by_its_owner_and_left_by_everybody_else() {
        let reserved = r#"{"PublicIP":"192.168.0.1"}"#;
        assert!(matches!(
            step(&table(&[("10.5.12.0-24", 0, reserved)]), &[], &[]),
            Step::Take { reserved: true, .. }
        ));
        let by_id = r#"{"Loden":{"HostID":"us"}}"#;
        assert!(matches!(
            step(&table(&[("10.5.12.0-24", 0, by_id)]), &[], &[]),
            Step::Take { reserved: true, .. }
        ));
        let others = table(&[("10.5.12.0-24", 0, r#"{"PublicIP":"192.168.0.2"}"#)]);
        let wanted = [key("10.5.12.0-24")];
        assert!(matches!(step(&others, &wanted, &[]), Step::Create { key: k, .. } if k != wanted[0]));
    }

    #[test]
    fn the_former_subnet_is_created_again_if_free_and_allowed() {
        let wanted = [key("10.5.3.0-24"), key("10.5.12.0-24"), key("10.5.13.0-24")];
        let taken = table(&[("10.5.12.0-24", 6, OTHER)]);
        assert!(
            matches!(step(&taken, &wanted, &[]), Step::Create { key: k, .. } if k == wanted[2]),
            "first is outside the pool, second taken"
        );
    }

    #[test]
    fn a_former_lease_outside_the_pool_is_released() {
        let table = table(&[("10.5.3.0-24", 6, OURS)]);
        assert_eq!(step(&table, &[], &[]), Step::Release { key: key("10.5.3.0-24"), mod_revision: 1 });
    }

    #[test]
    fn every_subnet_of_the_pool_is_found_before_it_is_called_exhausted() {
        let mut table = LeaseTable::default();
        for round in 0..20u64 {
            let Step::Create { key, .. } = next_step(&table, &small(), &us(), &[], &BTreeMap::new(), round)
            else {
                panic!("round {round}: {} taken", table.len());
            };
            table.insert(
                key,
                LeaseRecord {
                    value: Err("unreadable".into()),
                    etcd_lease: 1,
                    create_revision: 1,
                    mod_revision: 1,
                },
            );
        }
        assert_eq!(step(&table, &[], &[]), Step::Exhausted { capacity: 20 });
    }

    #[test]
    fn dual_stack_takes_one_subnet_of_each_family() {
        let config = config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#);
        let Step::Create { key, .. } =
            next_step(&LeaseTable::default(), &config, &us(), &[], &BTreeMap::new(), 1)
        else {
            panic!("both pools are free");
        };
        assert!(allowed(&key, &config) && key.subnets().count() == 2);
    }

    #[test]
    fn of_two_keys_that_share_a_subnet_the_younger_gives_way() {
        let names = ["10.5.12.0-24&fd00:7::-64", "10.5.12.0-24&fd00:9::-64", "10.5.13.0-24&fd00:9::-64"];
        let table = table(&names.map(|name| (name, 6, OTHER)));
        let [first, second, third] = names.map(key);
        assert_eq!(outrun(&table, &first), None);
        assert_eq!(outrun(&table, &second), Some(first));
        assert_eq!(outrun(&table, &third), Some(second));
        assert_eq!(outrun(&table, &key("10.5.14.0-24")), None, "not ours any more");
    }

    #[test]
    fn a_subnet_outlives_the_coming_and_going_of_the_other_family() {
        let four = config(r#"{"Network":"10.5.0.0/16"}"#);
        let dual = config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}"#);
        let six = config(r#"{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48"}"#);
        let create = |table: &LeaseTable, config: &NetworkConfig, previous: &str| match next_step(
            table,
            config,
            &us(),
            &[key(previous)],
            &BTreeMap::new(),
            1,
        ) {
            Step::Create { key, .. } => key,
            other => panic!("{other:?}"),
        };
        let none = LeaseTable::default();
        let grown = create(&none, &dual, "10.5.12.0-24");
        assert_eq!(grown.subnet(Family::V4), key("10.5.12.0-24").subnet(Family::V4));
        assert!(allowed(&grown, &dual));
        assert!(of_network(&grown, &dual) && !of_network(&grown, &four) && !of_network(&grown, &six));
        assert!(!of_network(&key("10.5.12.0-25"), &four) && !of_network(&key("10.6.12.0-24"), &four));
        assert_eq!(create(&none, &four, &grown.to_string()), key("10.5.12.0-24"));
        assert_eq!(create(&none, &six, &grown.to_string()).subnet(Family::V6), grown.subnet(Family::V6));
        // Never what somebody else has by now.
        let taken = table(&[("10.5.12.0-24&fd00:0:0:7::-64", 6, OTHER)]);
        assert!(!create(&taken, &dual, "10.5.12.0-24").overlaps(&key("10.5.12.0-24")));
    }

    #[test]
    fn a_holder_silent_for_more_than_three_intervals_is_dead() {
        assert_eq!(keep_alive_interval(86400), 60);
        assert_eq!(keep_alive_interval(15), 5);
        assert_eq!(liveness(15, 14, 5), None);
        assert_eq!(liveness(86400, 86400 - 181, 60), Some(Liveness::Dead));
        assert_eq!(liveness(86400, 0, u64::MAX), None, "no overflow");
        let value = r#"{"Loden":{"HostID":"zz","KeepAliveSeconds":9223372036854775807}}"#;
        let table = table(&[("10.5.12.0-24", 6, value)]);
        let record = table.get(&key("10.5.12.0-24")).expect("the record");
        assert_eq!(holders_interval(record, 86400), 60);
        let flannel = self::table(&[("10.5.12.0-24", 6, OTHER)]);
        let interval = holders_interval(flannel.get(&key("10.5.12.0-24")).expect("the record"), 86400);
        assert_eq!(liveness(86400, 10, interval), None, "flannel's lease is alive to its end");
    }

    #[test]
    fn hosts_that_start_together_refresh_apart_and_none_later_than_an_interval() {
        let first: Vec<u64> = (0..1000).map(|n| first_keep_alive(86400, n * 7919)).collect();
        assert!(first.iter().all(|at| (30_000..=60_000).contains(at)), "{first:?}");
        for second in 30..60 {
            let together = first.iter().filter(|at| **at / 1000 == second).count();
            assert!(together < 100, "{together} of 1000 hosts in one second");
        }
    }
}
