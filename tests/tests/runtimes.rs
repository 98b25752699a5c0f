//! Loden's CNI plugin under real runtimes: containerd by `ctr` and by its Kubernetes interface,
//! Podman 4, and cnitool. Debian's containerd comes from `make docker`, Podman from `make podman`,
//! cnitool from `make peers`.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use loden_proto::Family;
use loden_proto::allocation::Allocation;
use loden_tests::story::{Cluster, SOON, Stack, VXLAN};
use loden_tests::{Container, Host, Needed, Runtimes, eventually, matrix, probe};
use serde_json::{Value, json};

/// The list of docs/cni.md: Loden's plugin and portmap.
fn documented() -> Value {
    let example = include_str!("../../docs/cni.md").split("```json").nth(1).expect("an example");
    let example = example.split("```").next().expect("its end");
    serde_json::from_str(example).expect("the example is JSON")
}

/// The list that the package brings: Loden's plugin alone.
fn packaged() -> Value {
    serde_json::from_str(include_str!("../../packaging/10-loden.conflist")).expect("JSON")
}

/// Hosts a and b with ready daemons, runtimes on a, and a container of the plugin's on b.
struct Scene {
    cluster: Cluster<2>,
    runtimes: Runtimes,
    b1: Container,
}

impl Scene {
    fn start(story: &str, needed: &[Needed], conflist: &Value) -> Option<Self> {
        Self::start_on(VXLAN, story, needed, conflist)
    }

    fn start_on(config: &str, story: &str, needed: &[Needed], conflist: &Value) -> Option<Self> {
        let cluster = Cluster::start(story, config, &[]);
        let runtimes = cluster.hosts[0].runtimes(needed, conflist)?;
        let b1 = cluster.hosts[1].container("b1");
        Some(Self { cluster, runtimes, b1 })
    }

    fn a(&self) -> &Host {
        &self.cluster.hosts[0]
    }

    fn b(&self) -> &Host {
        &self.cluster.hosts[1]
    }

    /// The name that a container's allocation keeps for people.
    #[track_caller]
    fn name_kept_of(&self, container: &Container) -> Option<String> {
        let path = format!("/run/loden/ipam/loden/{}", container.address());
        let text = self.a().read_file(&path).unwrap_or_else(|| panic!("no {path}"));
        Allocation::parse(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}")).name
    }

    /// Asserts that all containers of host a have left nothing, and what holds at every scenario's end.
    #[track_caller]
    fn end(self, addresses: &[IpAddr]) {
        self.a().has_no_leftovers(addresses);
        self.cluster.lab.check_invariants();
    }

    /// Asserts that `port` of host a leads to the echo server of a container there: from host b and
    /// from a container of it.
    #[track_caller]
    fn port_leads_to(&self, port: u16, container: &Container) {
        container.echo();
        let published = SocketAddr::new(self.a().address(), port);
        let seen = eventually(SOON, &format!("{published} answers host b"), || {
            probe::tcp_source_at(&self.b().ns(), published).ok_or("no answer")
        });
        assert_eq!(seen, self.b().address(), "the source that {} saw", container.name());
        eventually(SOON, &format!("{published} answers a container of another host"), || {
            probe::tcp_source_at(self.b1.ns(), published).is_some()
        });
        let rules = self.a().rules_about(&[container.address()]);
        assert!(rules.iter().any(|r| r.contains("dnat")), "what must go with the container: {rules:?}");
    }
}

#[test]
fn containerd_runs_containers_on_the_overlay() {
    let Some(scene) = Scene::start("containerd", &[Needed::Containerd], &packaged()) else { return };
    let containerd = scene.runtimes.containerd();
    let (a1, a2) = (containerd.container("a1"), containerd.container("a2"));
    for container in [&a1, &a2] {
        assert!(scene.a().subnet().contains(container.address()), "{:?}", container.addresses());
    }
    matrix(&[&a1, &a2, &scene.b1]);
    let addresses = [a1.address(), a2.address()];
    containerd.remove(a1);
    matrix(&[&a2, &scene.b1]);
    containerd.remove(a2);
    scene.end(&addresses);
}

#[test]
fn kubernetes_pods_by_containerds_cri() {
    let config = Stack::Dual.vxlan();
    let scene = Scene::start_on(&config, "cri", &[Needed::Containerd], &documented());
    let Some(scene) = scene else { return };
    let containerd = scene.runtimes.containerd();
    let cri = containerd.cri();
    eventually(SOON, "the CRI has read the network", || cri.network_ready());
    let (pod, published) = (cri.run_pod("web", None), cri.run_pod("published", Some(7)));
    for pod in [&pod, &published] {
        assert_eq!(pod.told, pod.container.addresses(), "Kubernetes and the pod agree");
        for family in [Family::V4, Family::V6] {
            let (subnet, address) = (scene.a().subnet_of(family), pod.container.address_of(family));
            assert!(subnet.contains(address), "{address} lies outside {subnet}");
        }
    }
    assert_eq!(scene.name_kept_of(&pod.container).as_deref(), Some("default/web"));
    matrix(&[&pod.container, &published.container, &scene.b1]);
    scene.port_leads_to(7, &published.container);
    let addresses = [pod.container.addresses(), published.container.addresses()].concat();
    assert_eq!(scene.a().status().endpoints, 2);
    containerd.restart();
    eventually(SOON, "the CRI has read the network again", || cri.network_ready());
    matrix(&[&pod.container, &published.container, &scene.b1]);
    cri.remove_pod(pod);
    cri.remove_pod(published);
    scene.end(&addresses);
}

#[test]
fn podman_runs_containers_on_the_overlay() {
    let Some(scene) = Scene::start("podman", &[Needed::Podman], &documented()) else { return };
    let Some(podman) = scene.runtimes.podman() else { return };
    let a1 = podman.container("a1", &["--publish=8080:7"]);
    let wanted = scene.a().subnet().nth(77);
    let mac = "02:00:00:00:00:09";
    let a2 = podman.container("a2", &[&format!("--ip={wanted}"), &format!("--mac-address={mac}")]);
    assert_eq!(a2.addresses(), [wanted]);
    let network = podman.inspect("a2")["NetworkSettings"]["Networks"]["loden"].clone();
    assert_eq!(network["IPAddress"], json!(wanted), "Podman knows it: {network}");
    assert_eq!(network["MacAddress"], mac);
    assert_eq!(scene.name_kept_of(&a2).as_deref(), Some("a2"));
    assert!(a2.ns().run(&["ip", "link", "show", "eth0"]).contains(mac));
    matrix(&[&a1, &a2, &scene.b1]);
    scene.port_leads_to(8080, &a1);
    let first = a1.address();
    a1.delete();
    podman.run(&["restart", "--time=0", "a1"]);
    let a1 = podman.find("a1");
    assert_eq!(a1.address(), first, "its name has its address again");
    matrix(&[&a1, &a2, &scene.b1]);
    scene.port_leads_to(8080, &a1);
    let addresses = [a1.address(), wanted];
    podman.remove(a1);
    // A container that ends by itself is cleaned up by its monitor, not by a command of ours.
    podman.run(&["kill", "a2"]);
    scene.a().has_no_leftovers(&addresses);
    podman.remove(a2);
    scene.end(&addresses);
}

#[test]
fn containerd_and_podman_share_a_network() {
    let needed = [Needed::Containerd, Needed::Podman];
    let Some(scene) = Scene::start("two_runtimes", &needed, &packaged()) else { return };
    let Some(podman) = scene.runtimes.podman() else { return };
    let containerd = scene.runtimes.containerd();
    let mut all: Vec<Container> = Vec::new();
    thread::scope(|scope| {
        let by_podman = scope.spawn(|| ["p1", "p2"].map(|name| podman.container(name, &[])));
        all.extend(["c1", "c2"].map(|name| containerd.container(name)));
        all.extend(by_podman.join().expect("Podman runs them"));
    });
    let addresses: Vec<IpAddr> = all.iter().map(Container::address).collect();
    matrix(&[&all[0], &all[1], &all[2], &all[3], &scene.b1]);
    // Two addresses that are the same would show in the invariants.
    scene.cluster.lab.check_invariants();
    assert_eq!(scene.a().status().endpoints, 4);
    for (number, container) in all.into_iter().enumerate() {
        if number < 2 { containerd.remove(container) } else { podman.remove(container) }
    }
    scene.end(&addresses);
}

#[test]
fn a_chain_of_plugins_by_cnitool() {
    let mut list = documented();
    list["plugins"].as_array_mut().expect("a list").extend([
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
        json!({"type": "firewall", "backend": "iptables"}),
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "500"}}),
    ]);
    let Some(scene) = Scene::start("chain", &[Needed::Cnitool], &list) else { return };
    let cnitool = scene.runtimes.cnitool("loden");
    let published = json!({"portMappings": [{"hostPort": 8080, "containerPort": 7, "protocol": "tcp"}]});
    let rate = 8_000_000;
    let limits = json!({"bandwidth": {
        "ingressRate": rate, "ingressBurst": rate / 10, "egressRate": rate, "egressBurst": rate / 10,
    }});
    let (web, limited) = (cnitool.add("web", &published), cnitool.add("limited", &limits));
    matrix(&[&web, &limited, &scene.b1]);
    scene.port_leads_to(8080, &web);
    assert_eq!(web.ns().read_sysctl("net/core/somaxconn"), "500", "tuning has worked");

    // At the limit this takes a second.
    let fast = transfer(&scene.b1, &web, 1_000_000);
    let slow = transfer(&scene.b1, &limited, 1_000_000);
    assert!(slow > 3 * fast, "limited: {slow:?}, unlimited: {fast:?}");

    // Not that of `web`: CHECK of portmap 1.1.1 looks for its IPv4 rules in ip6tables.
    cnitool.exec("check", "limited", &limits).expect_success();
    limited.ns().ip("route del default");
    let told = cnitool.exec("check", "limited", &limits).expect_failure();
    assert!(told.contains("default") || told.contains("route"), "{told}");

    let addresses = [web.address(), limited.address()];
    cnitool.del(web, &published);
    cnitool.del(limited, &limits);
    scene.end(&addresses);
}

#[test]
fn status_and_gc_by_cnitool() {
    let Some(scene) = Scene::start("gc", &[Needed::Cnitool], &packaged()) else { return };
    let cnitool = scene.runtimes.cnitool("loden");
    let (lives, dead) = (cnitool.add("lives", &Value::Null), cnitool.add("dead", &Value::Null));
    matrix(&[&lives, &dead, &scene.b1]);
    cnitool.exec("status", "lives", &Value::Null).expect_success();

    // As after a runtime that has died, or has another cache than this one: libcni knows of neither.
    scene.runtimes.run(&["rm", "-r", "/var/lib/cni"]);
    let addresses = [lives.address(), dead.address()];
    scene.runtimes.run(&["ip", "netns", "del", "dead"]);
    dead.delete();
    cnitool.exec("gc", "lives", &Value::Null).expect_success();
    assert_eq!(scene.a().status().endpoints, 1);
    matrix(&[&lives, &scene.b1]);

    cnitool.del(lives, &Value::Null);
    scene.a().has_no_leftovers(&addresses);
    // No lease, no network: with the daemon gone and its file as well.
    scene.cluster.daemons[0].terminate();
    scene.a().run(&["rm", "/run/loden/subnet.env"]);
    let told = cnitool.exec("status", "lives", &Value::Null).expect_failure();
    assert!(told.contains("subnet.env"), "{told}");
    scene.end(&addresses);
}

/// How long so many bytes take from one container to another.
#[track_caller]
fn transfer(from: &Container, to: &Container, bytes: usize) -> Duration {
    let address = SocketAddr::new(to.address(), 5001);
    let listener = to.ns().within(|| TcpListener::bind(address)).expect("a listener");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        stream.write_all(&received.len().to_be_bytes())
    });
    let start = Instant::now();
    let mut stream = from.ns().within(|| TcpStream::connect_timeout(&address, SOON)).expect("a connection");
    stream.set_read_timeout(Some(2 * SOON)).expect("a timeout above zero");
    stream.write_all(&vec![7; bytes]).and_then(|()| stream.shutdown(Shutdown::Write)).expect("sending");
    let mut answer = [0; size_of::<usize>()];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(usize::from_be_bytes(answer), bytes);
    server.join().expect("no panic").expect("receiving");
    start.elapsed()
}
