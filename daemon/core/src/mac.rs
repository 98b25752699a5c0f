//! Which MAC the VXLAN device gets. Peers send to it, so it must last as long as anything of
//! the host lasts.

use loden_proto::{Family, Mac};

use crate::fnv::Fnv;

/// Where a MAC could come from, at start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Candidates {
    /// MAC of an existing device of the same identity that somebody else made (flannel's).
    /// Peers know it and packets flow by it: it stays.
    pub adopted_device: Option<Mac>,
    /// From lasting state.
    pub lasting: Option<Mac>,
    /// From our former value in etcd.
    pub published: Option<Mac>,
}

/// The MAC to use: the adopted device's, else the lasting one, else the one that peers know,
/// else one made from identity.
pub fn choose(candidates: Candidates, host_id: &str, vni: u32, family: Family) -> Mac {
    let Candidates { adopted_device, lasting, published } = candidates;
    [adopted_device, lasting, published]
        .into_iter()
        .flatten()
        .find(Mac::is_unicast)
        .unwrap_or_else(|| derived(host_id, vni, family, 0))
}

/// A locally administered unicast MAC from host id, VNI and family. `attempt` counts the draws
/// after a peer was found with the same.
pub fn derived(host_id: &str, vni: u32, family: Family, attempt: u32) -> Mac {
    let mut hash = Fnv::default();
    hash.write(host_id.as_bytes());
    hash.write(&vni.to_be_bytes());
    hash.write(&[family.bits()]);
    hash.write(&attempt.to_be_bytes());
    let [_, _, bytes @ ..] = hash.finish().to_be_bytes();
    Mac::local(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adopted_device_keeps_its_mac_then_lasting_state_then_what_peers_know() {
        let [a, b, c] = [1, 2, 3].map(|n| Some(Mac([2, 0, 0, 0, 0, n])));
        let pick = |adopted_device, lasting, published| {
            choose(Candidates { adopted_device, lasting, published }, "host", 1, Family::V4)
        };
        assert_eq!(Some(pick(a, b, c)), a);
        assert_eq!(Some(pick(None, b, c)), b);
        assert_eq!(Some(pick(None, None, c)), c);
        assert_eq!(
            pick(None, Some(Mac([1; 6])), None),
            derived("host", 1, Family::V4, 0),
            "multicast is no MAC"
        );
    }

    #[test]
    fn a_derived_mac_is_stable_local_and_differs_by_every_input() {
        let base = derived("host", 1, Family::V4, 0);
        assert_eq!(base, derived("host", 1, Family::V4, 0));
        assert!(base.is_unicast() && base.0[0] & 2 == 2);
        let others = [
            derived("host2", 1, Family::V4, 0),
            derived("host", 2, Family::V4, 0),
            derived("host", 1, Family::V6, 0),
            derived("host", 1, Family::V4, 1),
        ];
        assert!(others.iter().all(|m| *m != base));
    }
}
