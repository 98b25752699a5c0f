//! Machines that lack something: disk, programs, privileges.

use std::time::Duration;

use loden_tests::story::{Cluster, SOON, VXLAN};
use loden_tests::{Daemon, Host, Lab, always, eventually, matrix};

fn says(daemon: &Daemon, host: &Host, words: &[&str]) {
    eventually(SOON, &format!("log or status has {words:?}"), || {
        let said = format!("{}\n{:?}", daemon.log(), host.try_status(&[]).map(|s| s.problems));
        if said.lines().any(|line| words.iter().all(|w| line.contains(w))) { Ok(()) } else { Err(said) }
    });
}

#[test]
fn a_full_disk_stops_no_traffic() {
    let cluster = Cluster::<2>::start("full", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let subnet = a.subnet();
    cluster.daemons[0].terminate();
    a.run(&[
        "sh",
        "-ec",
        "mkdir /run/small; mount -t tmpfs -o size=64k lab /run/small
        cp -a /var/lib/loden/. /run/small/; mount --move /run/small /var/lib/loden",
    ]);
    // It fails, having filled the disk.
    a.exec(&["dd", "if=/dev/zero", "of=/var/lib/loden/ballast", "bs=4k"]);
    cluster.daemons[0].start();
    cluster.daemons[0].wait_ready();
    says(&cluster.daemons[0], a, &["/var/lib/loden"]);
    assert_eq!(eventually(SOON, "a holds its subnet", || a.held_subnet()), subnet, "etcd knows it");
    a.sees_peers(1);
    matrix(&[&a1, &b1, &a.container("a2")]);
    cluster.lab.check_invariants();
}

#[test]
fn a_read_only_disk_stops_no_traffic() {
    let cluster = Cluster::<2>::start("read_only", VXLAN, &[]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let before = a.status();
    a.run(&["mount", "-o", "bind", "/var/lib/loden", "/var/lib/loden"]);
    a.run(&["mount", "-o", "remount,ro,bind", "/var/lib/loden"]);
    cluster.daemons[0].restart();
    says(&cluster.daemons[0], a, &["/var/lib/loden"]);
    assert_eq!(
        eventually(SOON, "a holds its subnet", || a.held_subnet()),
        before.lease.expect("held").subnets[0]
    );
    assert_eq!(a.status().devices[0].mac, before.devices[0].mac);
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}

#[test]
fn without_nft_the_daemon_says_so() {
    let lab = Lab::new("no_nft");
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    let nft = a.run(&["sh", "-c", "command -v nft"]);
    a.run(&["mount", "--bind", "/dev/null", nft.trim()]);
    let daemon = a.daemon(&[]);
    says(&daemon, &a, &["nft"]);
    let up = || {
        let device = loden_tests::kernel::link(&a, "loden.1");
        device.is_some_and(|d| d["flags"].to_string().contains("\"UP\""))
    };
    always(Duration::from_secs(1), "without filters the device stays down", || !up());
    a.run(&["umount", nft.trim()]);
    daemon.wait_ready();
    eventually(Duration::from_secs(40), "with them it is up", up);
}

#[test]
fn without_cap_net_admin_the_daemon_says_so() {
    let lab = Lab::new("no_cap");
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    let setpriv = ["/usr/bin/setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    let daemon = a.daemon_under(&setpriv, &[]);
    says(&daemon, &a, &["CAP_NET_ADMIN"]);
}

#[test]
fn cap_net_admin_alone_is_enough() {
    let lab = Lab::new("one_cap");
    lab.etcd().config(VXLAN);
    let [a, b] = lab.hosts();
    let setpriv = a.as_nobody("--clear-groups", "+net_admin");
    // Not root: /proc/sys belongs to the owner of the namespace, which is root.
    let da = a.daemon_under(&setpriv, &[]);
    let db = b.daemon(&[]);
    da.wait_ready();
    db.wait_ready();
    a.sees_peers(1);
    matrix(&[&a.container("a1"), &b.container("b1")]);
    lab.check_invariants();
}

#[test]
fn a_broken_state_file_is_set_aside() {
    let cluster = Cluster::<2>::start("torn", VXLAN, &["--subnet-lease-ttl=6s"]);
    let [a, b] = &cluster.hosts;
    let (a1, b1) = (a.container("a1"), b.container("b1"));
    let subnet = a.subnet();
    for damage in ["truncate -s 7", "truncate -s 0", "sh -c 'head -c 200 /dev/urandom > $0'"] {
        cluster.daemons[0].kill9();
        a.run(&["sh", "-c", &format!("find /var/lib/loden -type f -exec {damage} {{}} \\;")]);
        cluster.daemons[0].start();
        cluster.daemons[0].wait_ready();
        let again = eventually(Duration::from_secs(40), "a holds its subnet", || a.held_subnet());
        assert_eq!(again, subnet, "after {damage}");
        a.sees_peers(1);
    }
    matrix(&[&a1, &b1]);
    cluster.lab.check_invariants();
}

#[test]
fn a_deleted_or_overwritten_subnet_env_and_a_deleted_socket_come_back() {
    let cluster = Cluster::<1>::start("files", VXLAN, &[]);
    let [a] = &cluster.hosts;
    let before = a.run(&["cat", "/run/loden/subnet.env"]);
    for damage in ["rm /run/loden/subnet.env", "echo nonsense > /run/loden/subnet.env"] {
        a.run(&["sh", "-ec", damage]);
        eventually(SOON, damage, || match a.exec(&["cat", "/run/loden/subnet.env"]).stdout {
            now if now == before => Ok(()),
            now => Err(now),
        });
    }
    a.run(&["rm", "/run/loden/loden.sock"]);
    eventually(SOON, "the socket is there", || match a.try_status(&[])?.source.as_str() {
        "daemon" => Ok(()),
        other => Err(other.to_owned()),
    });
    a.container("a1");
}

#[test]
fn systemd_frees_the_addresses_of_the_dead_before_it_starts_the_daemon() {
    let lab = Lab::new("systemd");
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    let Some(systemd) = a.systemd() else { return };
    systemd.restart("loden");
    for name in ["dead", "alive"] {
        let add = format!(
            r#"ip netns add {name}
            echo '{{"cniVersion":"1.0.0","name":"loden","type":"loden"}}' |
            CNI_COMMAND=ADD CNI_CONTAINERID={name} CNI_NETNS=/run/netns/{name} CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
            /opt/cni/bin/loden"#
        );
        systemd.run(&["sh", "-ec", &add]);
    }
    let endpoints = || {
        let json = systemd.run(&["loden", "endpoints", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let all = json["endpoints"].as_array().expect("endpoints").clone();
        let mut all: Vec<String> =
            all.iter().map(|e| format!("{} {}", e["container_id"], e["state"]).replace('"', "")).collect();
        all.sort();
        all
    };
    systemd.run(&["ip", "netns", "del", "dead"]);
    eventually(SOON, "one is dead", || match endpoints() {
        now if now == ["alive connected", "dead gone"] => Ok(()),
        now => Err(format!("{now:?}")),
    });
    systemd.restart("loden");
    assert_eq!(endpoints(), ["alive connected"]);
    let shown = systemd.run(&["systemctl", "show", "loden", "-p", "ActiveState,NRestarts,ExecStartPre"]);
    assert!(shown.contains("ActiveState=active\n") && shown.contains("NRestarts=0\n"), "{shown}");
    assert_eq!(shown.matches("code=exited ; status=0").count(), 2, "{shown}");
    let journal = systemd.journal("loden");
    assert!(journal.contains("of container dead, interface eth0"), "{journal}");
    systemd.run(&["ip", "netns", "exec", "alive", "ping", "-c1", "-W1", &a.address().to_string()]);
}
