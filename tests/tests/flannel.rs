//! The lab is proven by real flanneld: what works with it here is no artefact of Loden's.

use std::time::Duration;

use loden_tests::{Lab, PREFIX, eventually, kernel, matrix};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

#[test]
fn flanneld_connects_containers_of_two_hosts() {
    let lab = Lab::new("flannel");
    let etcd = lab.etcd();
    etcd.config(CONFIG);
    let [a, b] = lab.hosts();
    let Some(fa) = a.flanneld(&["--iface=eth0", "--ip-masq"]) else { return };
    let Some(fb) = b.flanneld(&["--iface=eth0", "--ip-masq"]) else { return };
    fa.wait_ready();
    fb.wait_ready();
    assert_eq!(etcd.keys(&format!("{PREFIX}/subnets/")).len(), 2);
    let (a1, b1) = (a.container_by_hand("a1", 10), b.container_by_hand("b1", 10));
    matrix(&[&a1, &b1]);
    eventually(Duration::from_secs(5), "flannel.1 is there", || kernel::link(&a, "flannel.1"));
    fa.restart();
    matrix(&[&a1, &b1]);
    lab.check_invariants();
}
