//! What a changed network config means for a running daemon.

use loden_proto::config::{Backend, NetworkConfig, Vxlan};

/// Compares the config in force with a new one. `Ok`: the new one can be applied as it is.
/// `Err`: names what differs and needs a restart, since leases, devices or peers hang on it.
pub fn applicable(in_force: &NetworkConfig, new: &NetworkConfig) -> Result<(), String> {
    let mut differs = Vec::new();
    let shape =
        |config: &NetworkConfig| -> Vec<_> { config.pools().map(|p| (p.network, p.subnet_length)).collect() };
    if shape(in_force) != shape(new) {
        differs.push("the networks or the length of subnets");
    }
    match (&in_force.backend, &new.backend) {
        (Backend::Vxlan(old), Backend::Vxlan(new)) => {
            let identity = |v: &Vxlan| (v.vni, v.port, v.gbp);
            if identity(old) != identity(new) {
                differs.push("VNI, Port or GBP");
            }
        }
        (old, new) if old.name() != new.name() => differs.push("the backend type"),
        _ => {}
    }
    if differs.is_empty() {
        Ok(())
    } else {
        Err(format!("{} changed; restart the daemon to apply it", differs.join(" and ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text).expect(text)
    }

    #[test]
    fn mtu_and_direct_routing_apply_live_and_identity_needs_a_restart() {
        let old = parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let live = parse(
            r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","Backend":{"Type":"vxlan","MTU":1400,"DirectRouting":true}}"#,
        );
        assert_eq!(applicable(&old, &live), Ok(()));
        for (text, part) in [
            (r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan"}}"#, "networks"),
            (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#, "VNI"),
            (r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#, "backend type"),
        ] {
            let error = applicable(&old, &parse(text)).expect_err(text);
            assert!(error.contains(part) && error.contains("restart"), "{error}");
        }
    }
}
