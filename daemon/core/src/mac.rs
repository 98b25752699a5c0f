//! Which MAC the VXLAN device gets. Peers send to it, so it must last as long as anything of
//! the host lasts.

use loden_proto::{Family, Mac};

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

/// FNV-1a, 64 bits (draft-eastlake-fnv): stable across versions and machines, unlike the
/// standard library's hashers; not against an adversary, which a MAC is not.
#[derive(Debug)]
pub(crate) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// The hash, its bits mixed once more (the last bytes written reach the high bits).
    pub(crate) fn finish(&self) -> u64 {
        let mut x = self.0;
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x ^ (x >> 33)
    }
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
