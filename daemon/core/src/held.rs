//! A lease in hand, against what stands in etcd: is it still ours?

use loden_proto::lease::{LeaseKey, LeaseValue};

use crate::claim::holder;
use crate::leases::LeaseTable;

/// Our lease as we wrote it last.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Its key.
    pub key: LeaseKey,
    /// The etcd lease it hangs on; 0: none, it is a reservation of ours.
    pub etcd_lease: i64,
    /// The revision of our last write; 0: not known, what stands there is judged by what it says.
    pub mod_revision: i64,
    /// Our last value.
    pub value: LeaseValue,
    /// What we tried to write since; it stands in etcd if only the answer was lost.
    pub attempted: Option<LeaseValue>,
}

/// How a held lease stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// As we wrote it.
    Unchanged,
    /// Changed and still ours: a write of ours whose answer was lost, or an operator's edit.
    Ours(Box<Held>),
    /// Somebody wrote what cannot be read; nobody lives behind it. The revision to replace.
    Garbled(i64),
    /// The key is gone.
    Gone,
    /// Somebody else's.
    Lost(String),
    /// Another process with our own identity wrote it: writing on would be a war with ourselves.
    Fenced(String),
}

/// Judges our key in a table that is at least as new as our last write. `host_id` and `boot_id` are
/// ours.
pub fn standing(held: &Held, table: &LeaseTable, host_id: &str, boot_id: &str) -> Standing {
    let Some(record) = table.get(&held.key) else { return Standing::Gone };
    if record.mod_revision <= held.mod_revision {
        return Standing::Unchanged;
    }
    let Ok(value) = &record.value else { return Standing::Garbled(record.mod_revision) };
    let addresses = |v: &LeaseValue| (v.public_ip, v.public_ipv6);
    let where_we_are = addresses(value) == addresses(&held.value) || held.attempted.as_ref() == Some(value);
    match &value.loden {
        // At another address it is a copy of this machine, memory and all.
        Some(member) if member.host_id == *host_id && member.boot_id == *boot_id && where_we_are => {
            Standing::Ours(Box::new(Held {
                key: held.key,
                etcd_lease: record.etcd_lease,
                mod_revision: record.mod_revision,
                value: value.clone(),
                attempted: None,
            }))
        }
        Some(member) if member.host_id == *host_id => Standing::Fenced(format!(
            "another process with our host id {host_id} wrote it (boot id {}): two machines run from one disk image, or from one snapshot",
            crate::printable(&member.boot_id.to_str())
        )),
        None if value.public_ip.is_some() && value.public_ip == held.value.public_ip => {
            Standing::Fenced("flanneld wrote it with our address; is flanneld running on this host?".into())
        }
        _ => Standing::Lost(holder(record)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leases::LeaseRecord;

    const OURS: &str =
        r#"{"PublicIP":"192.168.0.1","BackendType":"vxlan","Loden":{"HostID":"us","BootID":"now"}}"#;

    fn held() -> Held {
        Held {
            key: LeaseKey::parse("10.5.1.0-24").expect("key"),
            etcd_lease: 7,
            mod_revision: 10,
            value: LeaseValue::parse(OURS.as_bytes()).expect("value"),
            attempted: None,
        }
    }

    fn judge(held: &Held, value: &str, mod_revision: i64) -> Standing {
        let mut table = LeaseTable::default();
        let value = LeaseValue::parse(value.as_bytes()).map_err(|e| e.to_string());
        table.put("10.5.1.0-24", LeaseRecord { value, etcd_lease: 8, create_revision: 5, mod_revision });
        standing(held, &table, "us", "now")
    }

    #[test]
    fn our_own_writes_change_nothing() {
        assert_eq!(judge(&held(), OURS, 10), Standing::Unchanged);
        let Standing::Ours(again) = judge(&held(), OURS, 11) else { panic!("a lost answer") };
        assert_eq!((again.mod_revision, again.etcd_lease), (11, 8));
        let moved = OURS.replace("0.1", "0.9");
        let attempted = LeaseValue::parse(moved.as_bytes()).ok();
        assert!(
            matches!(judge(&Held { attempted, ..held() }, &moved, 11), Standing::Ours(_)),
            "our own move"
        );
    }

    #[test]
    fn what_is_not_ours_is_told_apart() {
        assert_eq!(standing(&held(), &LeaseTable::default(), "us", "now"), Standing::Gone);
        assert_eq!(judge(&held(), "garbage", 12), Standing::Garbled(12));
        for (value, word) in [
            (OURS.replace("now", "then"), "disk image"),
            (OURS.replace("0.1", "0.9"), "snapshot"),
            (r#"{"PublicIP":"192.168.0.1","BackendType":"vxlan"}"#.into(), "flanneld"),
        ] {
            let Standing::Fenced(reason) = judge(&held(), &value, 12) else { panic!("{value}") };
            assert!(reason.contains(word), "{reason}");
        }
        for value in
            [OURS.replace("us", "they"), r#"{"PublicIP":"192.168.0.5","BackendType":"vxlan"}"#.into()]
        {
            assert!(matches!(judge(&held(), &value, 12), Standing::Lost(_)), "{value}");
        }
    }

    #[test]
    fn after_etcd_began_anew_a_lower_revision_is_judged_by_what_it_says() {
        let anew = Held { mod_revision: 0, ..held() };
        assert!(matches!(judge(&anew, OURS, 3), Standing::Ours(_)));
        assert!(matches!(judge(&anew, &OURS.replace("us", "they"), 3), Standing::Lost(_)));
    }
}
