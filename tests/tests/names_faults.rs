//! Names when things go wrong: values that nobody should write, restarts, strangers on by-ways.

use std::sync::Arc;
use std::time::{Duration, Instant};

use loden_proto::status::Names;
use loden_tests::story::{Cluster, SOON, Stack};
use loden_tests::{Container, Dug, Host, Lab, Ns, Process, dig, eventually};
use serde_json::{Value, json};

const ZONE: &str = "loden.internal";
const SHARED: &str = "169.254.53.53";

/// What a runtime passes for a container of this name, with what else it says.
fn container(host: &Host, name: &str, runtime: &Value) -> Container {
    let config = json!({
        "cniVersion": "1.0.0", "name": "loden", "type": "loden", "runtimeConfig": runtime,
        "args": {"cni": {"labels": [{"key": "name", "value": name}]}},
    });
    let id = format!("{name}-{}", host.name());
    host.container_with(&id, config).unwrap_or_else(|e| panic!("ADD of {name} on {}: {e}", host.name()))
}

fn ask(from: &Ns, server: &str, question: &str) -> Dug {
    dig(from, &format!("@{server} {question}"))
}

fn resolves(from: &Ns, name: &str, address: &str) -> Result<(), String> {
    let answer = ask(from, SHARED, &format!("{name}.{ZONE} A"));
    if answer.answers == [address] { Ok(()) } else { Err(answer.text) }
}

fn names(host: &Host) -> Names {
    serde_json::from_str(&host.loden(&["names", "--json"]).expect_success()).expect("names as JSON")
}

#[test]
fn what_is_too_much_for_a_record_is_told_and_the_rest_is_served() {
    let cluster = Cluster::<2>::start("names-large", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let port = |n: u16| json!({"containerPort": n, "hostPort": n, "protocol": "tcp"});
    let many: Vec<Value> = (30_000..30_600).map(port).collect();
    let web = container(a, "web", &json!({"portMappings": many}));
    eventually(SOON, "the other host has it", || resolves(&b.ns(), "web", &web.address().to_string()));
    let before = cluster.etcd.revision();
    std::thread::sleep(Duration::from_secs(1));
    let after = cluster.etcd.revision();
    assert!(after - before < 5, "{} writes for nothing", after - before);
    let problems = names(a).problems.join("\n");
    assert!(problems.contains("it has 600 published ports, of which the first 512"), "{problems}");
    assert!(problems.contains(&web.address().to_string()), "whose: {problems}");
}

#[test]
fn values_that_others_write_harm_nobody_else() {
    let cluster = Cluster::<2>::start("names-hostile", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let gateway = b.subnet().gateway();
    let under = format!("/coreos.com/network/loden/names/{}", b.held_key().expect("a lease"));
    let lease = cluster.etcd.lease_of(&loden_tests::Etcd::key(b.held_key().expect("a lease"))).expect("one");
    let put = |endpoint: &str, value: &str| {
        cluster.etcd.ctl(&["put", "--lease", &lease, &format!("{under}{endpoint}"), value]).expect_success();
    };
    // b itself deletes what it does not know, so that it is asked while b cannot.
    cluster.daemons[1].freeze();
    put("/ahead", r#"{"Names":["dn1"],"Addresses":["10.5.250.9"],"Since":18446744073709551615}"#);
    put("/gateway", &format!(r#"{{"Names":["evil"],"Addresses":["{gateway}"],"Since":1}}"#));
    put("/host", r#"{"Names":["r9.host"],"Addresses":["192.0.2.9"],"Since":1}"#);
    put("/garbage", "garbage");
    let forever = r#"{"Names":["ghost"],"Addresses":["192.0.2.9"],"Since":1}"#;
    cluster.etcd.put(&format!("{under}/forever"), forever);
    eventually(SOON, "a tells of each that it cannot read", || {
        let problems = names(a).problems.join("\n");
        let told = ["/ahead in etcd", "no time", "/garbage in etcd", "/forever in etcd", "no etcd lease"];
        if told.iter().all(|words| problems.contains(words)) { Ok(()) } else { Err(problems) }
    });
    let dn1 = container(a, "dn1", &json!({}));
    resolves(dn1.ns(), "dn1", &dn1.address().to_string()).expect("who runs has its name");
    for nobody in ["ghost", "r9.host"] {
        let answer = ask(dn1.ns(), SHARED, &format!("{nobody}.{ZONE} A"));
        assert_eq!(answer.status, "NXDOMAIN", "{}", answer.text);
    }
    let back = ask(dn1.ns(), SHARED, &format!("-x {gateway}"));
    assert_eq!(back.answers, [format!("gw.b.host.{ZONE}.")], "{}", back.text);
    cluster.daemons[1].thaw();
    eventually(SOON, "b has tidied up below its lease", || {
        let keys = cluster.etcd.keys(&under);
        if keys.is_empty() { Ok(()) } else { Err(format!("{keys:?}")) }
    });
}

#[test]
fn a_daemon_that_starts_while_etcd_hangs_denies_no_name() {
    let cluster = Cluster::<2>::start("names-start", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (dn1, dn2) = (container(a, "dn1", &json!({})), container(b, "dn2", &json!({})));
    eventually(SOON, "a knows dn2", || resolves(dn1.ns(), "dn2", &dn2.address().to_string()));
    let remembered = "/var/lib/loden/others-names.json";
    eventually(Duration::from_secs(20), "a remembers it", || match a.read_file(remembered) {
        Some(text) if text.contains("dn2") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // One that nobody had time to remember.
    let dn3 = container(b, "dn3", &json!({}));
    cluster.etcd.freeze();
    cluster.daemons[0].kill9();
    let began = Instant::now();
    cluster.daemons[0].start();
    eventually(SOON, "a serves its own", || resolves(dn1.ns(), "dn1", &dn1.address().to_string()));
    resolves(dn1.ns(), "dn2", &dn2.address().to_string()).expect("what it remembers");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(1));
            cluster.etcd.thaw();
        });
        // Whoever asks meanwhile waits.
        let answer = ask(dn1.ns(), SHARED, &format!("dn3.{ZONE} A +time=5"));
        let told = answer.answers == [dn3.address().to_string()];
        let denied = answer.status == "NXDOMAIN" && began.elapsed() < Duration::from_secs(4);
        assert!(told || !denied, "it may well exist: {}", answer.text);
    });
    eventually(SOON, "all is known", || resolves(dn1.ns(), "dn3", &dn3.address().to_string()));

    // Names that resolvers try in the zone first are not slow for as long as etcd is away.
    cluster.etcd.freeze();
    cluster.daemons[0].restart();
    eventually(SOON, "what is known counts as all", || {
        let nobody = ask(dn1.ns(), SHARED, &format!("example.com.{ZONE} A"));
        if nobody.status == "NXDOMAIN" { Ok(()) } else { Err(nobody.text) }
    });
    cluster.etcd.thaw();
}

#[test]
fn a_host_whose_subnet_is_reserved_has_names() {
    let lab = Lab::new("names-reserved");
    let etcd = lab.etcd();
    etcd.config(&Stack::Four.vxlan());
    let [a, b] = lab.hosts();
    let endpoints = format!("--etcd-endpoints={}", etcd.url());
    let address = a.address().to_string();
    a.loden(&["lease", "reserve", "10.5.7.0/24", "--public-ip", &address, &endpoints]).expect_success();
    let daemons = [&a, &b].map(|host| host.daemon(&[]));
    daemons.iter().for_each(loden_tests::Daemon::wait_ready);
    assert_eq!(a.subnet().to_string(), "10.5.7.0/24");
    let dn1 = container(&a, "dn1", &json!({}));
    eventually(SOON, "b has its name", || resolves(&b.ns(), "dn1", &dn1.address().to_string()));
    let before = etcd.revision();
    std::thread::sleep(Duration::from_secs(1));
    assert!(etcd.revision() - before < 5, "it is written again and again");
    dn1.delete();
    eventually(SOON, "b has it no more", || {
        let answer = ask(&b.ns(), SHARED, &format!("dn1.{ZONE} A"));
        if answer.status == "NXDOMAIN" { Ok(()) } else { Err(answer.text) }
    });
}

/// A server of other names, on a host without a daemon.
fn upstream(lab: &Lab) -> (String, Arc<Process>) {
    let host = lab.host("other");
    let address = host.address().to_string();
    let options = [
        "dnsmasq",
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--log-facility=-",
        "--pid-file=",
        "--bind-interfaces",
        "--listen-address",
        &address,
        "--address=/example.com/203.0.113.5",
    ];
    let process = host.spawn("dnsmasq", &options);
    (address, process)
}

#[test]
fn who_comes_by_way_of_a_host_is_outside_all_the_same() {
    for (name, backend) in [("vxlan", json!({"Type": "vxlan"})), ("host-gw", json!({"Type": "host-gw"}))] {
        let config = Stack::Four.config(backend, (1, 99));
        let other = ["--dns-upstream", "192.168.77.13"];
        let cluster = Cluster::<2>::start(&format!("names-by-way-{name}"), &config, &other);
        let (address, _upstream) = upstream(&cluster.lab);
        assert_eq!(address, other[1]);
        let [a, b] = &cluster.hosts;
        // With the first container comes the gateway.
        let (dn1, _dn2) = (container(a, "dn1", &json!({})), container(b, "dn2", &json!({})));
        eventually(SOON, "members may ask for others' names", || {
            let answer = ask(dn1.ns(), SHARED, "example.com A");
            if answer.answers == ["203.0.113.5"] { Ok(()) } else { Err(answer.text) }
        });
        let outside = cluster.lab.outside();
        outside.ip(&format!("route add {} via {}", b.subnet(), a.address()));
        let server = b.subnet().gateway().to_string();
        let seen = ask(&outside, &server, &format!("dn1.{ZONE} A"));
        assert_eq!(seen.answers, [a.address().to_string()], "{name}: {}", seen.text);
        for refused in ["example.com A".to_owned(), format!("-x {}", dn1.address())] {
            let answer = ask(&outside, &server, &refused);
            assert_eq!(answer.status, "REFUSED", "{name}: {}", answer.text);
        }
    }
}

#[test]
fn a_host_that_was_told_to_move_lets_its_names_go() {
    let cluster = Cluster::<2>::start("names-move", &Stack::Four.vxlan(), &[]);
    let [a, b] = &cluster.hosts;
    let (dn1, dn2) = (container(a, "dn1", &json!({})), container(a, "dn2", &json!({})));
    let old = a.held_key().expect("a lease");
    for (name, container) in [("dn1", &dn1), ("dn2", &dn2)] {
        let address = container.address().to_string();
        eventually(SOON, "b knows it", || resolves(&b.ns(), name, &address));
    }
    let endpoints = format!("--etcd-endpoints={}", cluster.etcd.url());
    a.loden(&["lease", "release", "--force", &a.subnet().to_string(), &endpoints]).expect_success();
    eventually(SOON, "a is told", || match a.held_key() {
        Ok(key) => Err(format!("it holds {key}")),
        Err(_) => Ok(()),
    });
    dn1.delete();
    let gone = |name: &str| {
        let answer = ask(&b.ns(), SHARED, &format!("{name}.{ZONE} A"));
        if answer.status == "NXDOMAIN" { Ok(()) } else { Err(answer.text) }
    };
    eventually(SOON, "b knows that it is gone", || gone("dn1"));
    resolves(&b.ns(), "dn2", &dn2.address().to_string()).expect("the other one still runs");
    dn2.delete();
    eventually(SOON, "a has moved", || match a.held_key()? {
        key if key == old => Err("not yet".to_owned()),
        _ => Ok(()),
    });
    eventually(SOON, "nothing is left of the old subnet", || {
        let keys = cluster.etcd.keys("/coreos.com/network/loden/names/");
        if keys.is_empty() { gone("dn2") } else { Err(format!("{keys:?}")) }
    });
}
