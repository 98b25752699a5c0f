//! A host changes from flannel to Loden and back while packets flow: real flanneld, in its iptables
//! and its nftables mode, IPv4 alone and dual-stack.

use std::thread;
use std::time::Duration;

use loden_proto::subnet_env::SubnetEnv;
use loden_tests::probe::{Echo, Stream};
use loden_tests::story::{SOON, VXLAN};
use loden_tests::{Container, Daemon, Etcd, Host, Lab, PREFIX, eventually, kernel, matrix};

const VXLAN_NFT: &str = r#"{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
const DUAL: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","Backend":{"Type":"vxlan"}}"#;
const DUAL_NFT: &str = r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
const HOST_GW: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}"#;

fn flannel(host: &Host) -> Option<Daemon> {
    let daemon = host.flanneld(&["--iface=eth0", "--ip-masq"])?;
    daemon.wait_ready();
    Some(daemon)
}

/// Streams of 1,000 packets a second, answered, from each container to the next by each family, and
/// from the first to a machine outside.
struct Traffic<'a> {
    ends: Vec<&'a Container>,
    streams: Vec<Stream>,
    outside: Stream,
    echo: Echo,
}

impl<'a> Traffic<'a> {
    fn start(lab: &Lab, ends: &[&'a Container]) -> Self {
        let echo = Echo::start(&lab.outside(), Lab::OUTSIDE.parse().expect("an address"));
        // Its network card is new, and comes up in its own time.
        eventually(SOON, "the outside is there", || ends[0].pings(echo.address().ip()));
        let next = ends.iter().cycle().skip(1);
        let streams = ends.iter().zip(next).flat_map(|(from, to)| from.streams_to(to, 1000)).collect();
        let outside = Stream::start(ends[0].ns(), echo.address(), 1000);
        Self { ends: ends.to_vec(), streams, outside, echo }
    }

    /// Nothing was lost: neither on the way there, as the receiver counts, nor on the way back.
    #[track_caller]
    fn lost_nothing(self) {
        let outside = self.outside.stop();
        // Each waits for its stragglers.
        let stops: Vec<_> = self.streams.into_iter().map(|s| thread::spawn(|| s.stop())).collect();
        let all: Vec<_> = stops.into_iter().map(|s| s.join().expect("counting does not panic")).collect();
        assert!(outside.lost == 0 && all.iter().all(|l| l.lost == 0), "outside {outside:?}, inside {all:#?}");
        let sent: u64 = all.iter().map(|l| l.sent).sum();
        let arrived: u64 = self.ends.iter().map(|c| c.arrived()).sum();
        assert_eq!((arrived, self.echo.arrived()), (sent, outside.sent), "each packet arrived once");
        eprintln!("{} packets inside, {} to the outside, none lost", sent, outside.sent);
    }
}

fn is_dual(config: &str) -> bool {
    config.contains("EnableIPv6")
}

fn flannels_devices(config: &str) -> &'static [&'static str] {
    match config {
        HOST_GW => &[],
        _ if is_dual(config) => &["flannel.1", "flannel-v6.1"],
        _ => &["flannel.1"],
    }
}

/// Peers in `status` for so many hosts.
fn peers(config: &str, hosts: usize) -> usize {
    if is_dual(config) { 2 * hosts } else { hosts }
}

#[test]
fn loden_does_not_start_beside_flanneld_of_the_same_network() {
    let lab = Lab::new("beside");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    etcd.put("/blue/network/config", r#"{"Network":"10.6.0.0/16","Backend":{"Type":"vxlan","VNI":2}}"#);
    let [a, b] = lab.hosts();
    let Some(fa) = flannel(&a) else { return };
    // The other host's flanneld has the same process tree in this lab.
    let _db = b.daemon(&[]).ready();
    let nobody = a.as_nobody("--clear-groups", "+net_admin");
    for wrapper in [&[][..], &nobody[..]] {
        let refused = a.daemon_under(wrapper, &[]);
        let end = refused.ends_within(Duration::from_secs(5));
        assert!(!end.success(), "{end}");
        refused.logs(&[&format!("process {}", fa.pid()), PREFIX, "systemctl disable --now flanneld"]);
        assert!(!kernel::tables(&a).contains(&"inet loden".into()), "nothing has been changed");
    }
    // Another network is none of its business.
    let _blue = a.daemon(&["--network=blue", "--etcd-prefix=/blue/network"]).ready();
    fa.terminate();
    let _da = a.daemon_under(&nobody, &[]).ready();
    a.sees_peers(1);
    lab.check_invariants();
}

#[test]
fn a_flanneld_that_starts_beside_loden_is_named_and_its_end_heals_the_lease() {
    let lab = Lab::new("beside");
    let etcd = lab.etcd();
    etcd.config(VXLAN);
    let a = lab.host("a");
    let Some(fa) = flannel(&a) else { return };
    fa.terminate();
    let da = a.daemon(&[]).ready();
    let subnet = a.subnet();
    a.status_is_content();
    fa.start();
    fa.wait_ready();
    a.status_names(&["flanneld", &format!("process {}", fa.pid()), "stop one of the two"]);
    eventually(SOON, "flanneld has taken the lease", || a.held_subnet().is_err());
    fa.terminate();
    let again = eventually(SOON, "the lease is ours again", || a.held_subnet());
    assert_eq!(again, subnet);
    a.status_is_content();
    assert!(da.exited().is_none());
    lab.check_invariants();
}

#[test]
fn loden_takes_a_flannel_host_over_without_losing_a_packet() {
    for config in [VXLAN, VXLAN_NFT, DUAL, DUAL_NFT, HOST_GW] {
        eprintln!("{config}");
        take_over(config);
    }
}

fn take_over(config: &str) {
    let lab = Lab::new("adoption");
    let etcd = lab.etcd();
    etcd.config(config);
    let [a, b, c] = lab.hosts();
    let (Some(fa), Some(fb), Some(_fc)) = (flannel(&a), flannel(&b), flannel(&c)) else { return };
    let containers =
        [a.container_by_hand("a1", 10), b.container_by_hand("b1", 10), c.container_by_hand("c1", 10)];
    let [a1, b1, c1] = &containers;
    matrix(&[a1, b1, c1]);
    let names = flannels_devices(config);
    let identity = |name: &&str| {
        let link = kernel::link(&a, name).unwrap_or_else(|| panic!("no {name}"));
        (link["ifindex"].clone(), kernel::text(&link, "address").to_owned())
    };
    let devices: Vec<_> = names.iter().map(identity).collect();
    let (before, bridge) = (etcd.subnets(), kernel::addresses(&a.ns(), "cni0"));
    let traffic = Traffic::start(&lab, &[a1, b1, c1]);
    fa.terminate();
    let da = a.daemon(&[]).ready();
    fb.terminate();
    let _db = b.daemon(&[]).ready();
    for host in [&a, &b] {
        host.sees_peers(peers(config, 2));
    }
    matrix(&[a1, b1, c1]);
    da.restart();
    matrix(&[a1, b1, c1]);
    traffic.lost_nothing();
    let status = a.status();
    let shown: Vec<&str> = status.devices.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(shown, names, "the devices are adopted: {status:#?}");
    assert_eq!(names.iter().map(identity).collect::<Vec<_>>(), devices, "and are still the same");
    assert_eq!(etcd.subnets(), before, "each host kept its subnet");
    assert_eq!(kernel::addresses(&a.ns(), "cni0"), bridge);
    let file = |path| a.read_file(path).and_then(|t| SubnetEnv::parse(&t).ok()).expect(path);
    let (ours, flannels) = (file("/run/loden/subnet.env"), file("/run/flannel/subnet.env"));
    let mtu = match config {
        HOST_GW => 1500,
        _ if is_dual(config) => 1430,
        _ => 1450,
    };
    assert_eq!((ours.mtu, flannels.mtu), (mtu, mtu));
    assert_eq!(ours.subnets, flannels.subnets);
    if is_dual(config) {
        assert_eq!(kernel::link(&a, "flannel-v6.1").expect("the device")["mtu"], 1430, "IPv6 needs 70");
    }
    // A peer that flannel had programmed and that has left is removed as well.
    let gone = c.read_file("/run/flannel/subnet.env").expect("flannel's file");
    let gone = SubnetEnv::parse(&gone).expect("flannel's file").subnets;
    let key = before.iter().find(|k| k.contains(&gone[0].to_string().replace('/', "-"))).expect("its key");
    etcd.delete(&Etcd::key(key));
    for subnet in gone {
        eventually(SOON, "its route is gone", || kernel::route(&a, &subnet.to_string()).is_none());
    }
    lab.check_invariants();
}

#[test]
fn a_host_goes_back_to_flannel_from_an_adopted_device_without_losing_a_packet() {
    for config in [VXLAN, VXLAN_NFT, DUAL, DUAL_NFT, HOST_GW] {
        eprintln!("{config}");
        go_back(config, From::Flannel);
    }
}

#[test]
fn a_host_goes_back_to_flannel_from_a_device_of_ours_without_losing_a_packet() {
    for config in [VXLAN, VXLAN_NFT, DUAL, DUAL_NFT, HOST_GW] {
        eprintln!("{config}");
        go_back(config, From::Loden);
    }
}

#[test]
fn a_host_whose_kernel_cannot_rename_goes_back_to_flannel_without_losing_a_packet() {
    go_back(DUAL, From::LodenOnAnOldKernel);
}

/// Who made the devices.
#[derive(PartialEq)]
enum From {
    Flannel,
    Loden,
    /// Where an interface that is up gets flannel's name beside its own.
    LodenOnAnOldKernel,
}

fn go_back(config: &str, from: From) {
    let adopted = from == From::Flannel;
    let lab = Lab::new("back");
    let etcd = lab.etcd();
    etcd.config(config);
    let [a, b, c] = lab.hosts();
    let Some(_fb) = flannel(&b) else { return };
    let a1 = adopted.then(|| {
        let fa = flannel(&a).expect("flanneld is there");
        fa.terminate();
        a.container_by_hand("a1", 10)
    });
    let da = a.daemon(&[]).ready();
    a.sees_peers(peers(config, 1));
    let (a1, b1) = (a1.unwrap_or_else(|| a.container("a1")), b.container_by_hand("b1", 10));
    matrix(&[&a1, &b1]);
    let before = etcd.subnets();
    let identities = || -> Vec<_> {
        let links = kernel::links(&a).into_iter().filter_map(|name| kernel::link(&a, &name));
        let ours = links.filter(|l| l["linkinfo"]["info_data"]["id"] == 1);
        ours.map(|l| (l["ifindex"].clone(), l["address"].clone(), l["mtu"].clone())).collect()
    };
    let devices = identities();
    let traffic = Traffic::start(&lab, &[&a1, &b1]);
    da.terminate();
    let look = || {
        (
            kernel::routes(&a),
            kernel::links(&a),
            kernel::nexthops(&a),
            a.run(&["nft", "-s", "list", "ruleset"]),
        )
    };
    let untouched = look();
    let plan = a.loden(&["cleanup", "--to-flannel", "--dry-run"]).expect_success();
    assert!(plan.contains("would remove the VXLAN filter"), "{plan}");
    assert!(adopted || plan.contains("would set route to"), "{plan}");
    assert_eq!(look(), untouched, "a dry run changes nothing");
    if from == From::LodenOnAnOldKernel {
        for (ours, flannels) in [("loden.1", "flannel.1"), ("loden6.1", "flannel-v6.1")] {
            a.ip(&format!("link property add dev {ours} altname {flannels}"));
        }
    }
    a.loden(&["cleanup", "--to-flannel"]).expect_success();
    let Some(_fa) = flannel(&a) else { return };
    // A peer of which Loden has never heard is not filtered.
    let Some(_fc) = flannel(&c) else { return };
    let c1 = c.container_by_hand("c1", 10);
    matrix(&[&a1, &b1, &c1]);
    a.loden(&["cleanup"]).expect_success();
    matrix(&[&a1, &b1, &c1]);
    traffic.lost_nothing();
    assert!(before.iter().all(|key| etcd.subnets().contains(key)), "{before:?}, {:?}", etcd.subnets());
    assert_eq!(identities(), devices, "flannel has taken the devices over");
    for name in flannels_devices(config) {
        assert!(kernel::link(&a, name).is_some(), "{name}: {:?}", kernel::links(&a));
    }
    let ours = |v: &serde_json::Value| v["protocol"].to_string().contains("177");
    assert!(!kernel::routes(&a).iter().any(ours) && !kernel::nexthops(&a).iter().any(ours));
    assert!(!kernel::tables(&a).contains(&"inet loden".into()), "{:?}", kernel::tables(&a));
    lab.check_invariants();
}

/// Every rule of flannel's, in whatever holds it.
fn flannels_rules(host: &Host) -> String {
    let all = ["iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"];
    let mut lines: Vec<String> = all.iter().map(|save| host.run(&[save])).collect();
    lines.extend(kernel::tables(host));
    lines.iter().flat_map(|l| l.lines()).filter(|l| l.to_lowercase().contains("flannel")).collect()
}

#[test]
fn what_of_flannels_rules_cannot_be_removed_is_named() {
    let lab = Lab::new("stuck_rules");
    lab.etcd().config(VXLAN);
    let a = lab.host("a");
    let _daemon = a.daemon(&[]).ready();
    // Somebody else has come to rely on it.
    for line in ["-N FLANNEL-FWD", "-A INPUT -j FLANNEL-FWD"] {
        a.run(&[&["iptables-nft"], line.split(' ').collect::<Vec<_>>().as_slice()].concat());
    }
    let told = a.loden(&["cleanup", "--flannel"]).expect_failure();
    assert!(told.contains("not all of flannel's rules went") && told.contains("-X FLANNEL-FWD"), "{told}");
    a.run(&["iptables-nft", "-F", "INPUT"]);
    a.loden(&["cleanup", "--flannel"]).expect_success();
    assert!(!a.run(&["iptables-nft", "-S"]).contains("FLANNEL"));
    lab.check_invariants();
}

#[test]
fn flannels_leftovers_are_removed_while_the_daemon_runs() {
    for config in [DUAL, DUAL_NFT] {
        eprintln!("{config}");
        clean_beside_the_daemon(config);
    }
}

fn clean_beside_the_daemon(config: &str) {
    let lab = Lab::new("leftovers");
    lab.etcd().config(config);
    let [a, b] = lab.hosts();
    let (Some(fa), Some(_fb)) = (flannel(&a), flannel(&b)) else { return };
    let (a1, b1) = (a.container_by_hand("a1", 10), b.container_by_hand("b1", 10));
    let refused = a.loden(&["cleanup", "--flannel"]).expect_failure();
    assert!(refused.contains(&fa.pid().to_string()), "flanneld runs: {refused}");
    fa.terminate();
    let da = a.daemon(&[]).ready();
    a.sees_peers(2);
    matrix(&[&a1, &b1]);
    // A device of an earlier VNI, and a chain where an earlier iptables had put it, with a neighbour.
    a.ip("link add flannel.7 type vxlan id 7 dstport 8472 dev eth0 nolearning");
    for line in
        ["-N FLANNEL-FWD", "-A FORWARD -m comment --comment flanneld\\ forward -j FLANNEL-FWD", "-N THEIRS"]
    {
        a.run(&["sh", "-c", &format!("iptables-legacy {line}")]);
    }
    let legacy = || a.run(&["cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"]);
    let legacy_tables = legacy();
    let before = flannels_rules(&a);
    assert!(before.contains(if config == DUAL { "FLANNEL-POSTRTG" } else { "ip6 flannel-ipv6" }), "{before}");
    let traffic = Traffic::start(&lab, &[&a1, &b1]);
    let plan = a.loden(&["cleanup", "--flannel", "--dry-run"]).expect_success();
    assert!(plan.contains("would delete device flannel.7") && plan.contains("left flannel.1"), "{plan}");
    assert_eq!(flannels_rules(&a), before, "a dry run changes nothing");
    let said = a.loden(&["cleanup", "--flannel"]).expect_success();
    assert!(said.contains("left flannel.1") && said.contains("left flannel-v6.1"), "{said}");
    assert_eq!(flannels_rules(&a), "");
    assert!(kernel::link(&a, "flannel.7").is_none());
    assert!(a.run(&["iptables-legacy", "-S"]).contains("THEIRS"), "others' chains stay");
    assert_eq!(legacy(), legacy_tables, "looking makes no legacy tables");
    matrix(&[&a1, &b1]);
    traffic.lost_nothing();
    let status = a.kernel_matches_status().unwrap_or_else(|e| panic!("{e}"));
    assert!(status.repairs.is_empty(), "nothing of ours was touched: {:?}", status.repairs);
    // With the daemon stopped, what it had taken over goes as well.
    da.terminate();
    a.loden(&["cleanup"]).expect_success();
    assert!(kernel::link(&a, "flannel.1").is_some(), "not without being told");
    a.loden(&["cleanup", "--flannel"]).expect_success();
    assert!(kernel::link(&a, "flannel.1").is_none());
    lab.check_invariants();
}
