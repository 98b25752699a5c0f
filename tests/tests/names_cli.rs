//! What belongs to names beside serving them: addresses that stay with a name, names by hand, exports, and
//! the doctor.

use std::net::IpAddr;

use loden_tests::story::{Cluster, Stack};
use loden_tests::{Container, Host};
use serde_json::{Value, json};

/// What a runtime passes for a container of this name.
fn named(name: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "loden", "type": "loden",
        "args": {"cni": {"labels": [{"key": "name", "value": name}]}},
    })
}

/// A container of this name; each life of it has an id of its own, as with all runtimes.
fn container(host: &Host, name: &str, life: &str) -> Container {
    let id = format!("{name}-{life}");
    host.container_with(&id, named(name)).unwrap_or_else(|e| panic!("ADD of {name} on {}: {e}", host.name()))
}

#[test]
fn a_container_that_comes_back_has_its_address_again() {
    let cluster = Cluster::<1>::start("sticky", &Stack::Dual.vxlan(), &[]);
    let [a] = &cluster.hosts;
    let addresses = |container: &Container| -> Vec<IpAddr> { container.addresses().to_vec() };
    let db = container(a, "db", "1");
    let before = addresses(&db);
    db.delete();
    // Others come and go; one that is not to be known again takes what comes next.
    let others: Vec<Container> = (0..5).map(|n| container(a, &format!("web{n}"), "1")).collect();
    others.into_iter().for_each(Container::delete);
    let passing = container(a, "passing", "1");
    let db = container(a, "db", "2");
    assert_eq!(addresses(&db), before);
    db.delete();
    let mut conf = named("db");
    conf["sticky"] = json!(false);
    let loose = a.container_with("db-loose", conf).expect("ADD");
    assert_ne!(addresses(&loose), before, "it does not ask for its own, and db's is kept for db");
    loose.delete();
    drop(passing);

    a.reboot();
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    // After a reboot the first address of the subnet comes first, which was db's.
    let other = container(a, "other", "1");
    assert_ne!(addresses(&other), before);
    let db = container(a, "db", "3");
    assert_eq!(addresses(&db), before);
    // Without hints everything works as well.
    db.delete();
    a.run(&["sh", "-ec", "rm -r /var/lib/loden/addresses; ln -s /etc /var/lib/loden/addresses"]);
    container(a, "db", "4");
    assert_eq!(a.read_file("/etc/given"), None, "nothing is written through a link");
    cluster.lab.check_invariants();
}
