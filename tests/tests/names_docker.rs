//! Names of Docker's containers: given by nobody but `docker run`, with the options of `loden docker-opts`.

use std::net::IpAddr;
use std::time::Duration;

use loden_tests::story::{Cluster, SOON, Stack};
use loden_tests::{Container, Docker, Engine, Host, Lab, Ns, always, dig, eventually};

/// Each scenario once for each engine.
macro_rules! scenarios {
    ($($name:ident)*) => {
        mod iptables_nft { $( #[test] fn $name() { super::$name(super::Engine::DebianNft); } )* }
        mod iptables_legacy { $( #[test] fn $name() { super::$name(super::Engine::DebianLegacy); } )* }
        mod docker29_iptables { $(
            #[test]
            #[ignore = "make test-docker29"]
            fn $name() { super::$name(super::Engine::Docker29Iptables); }
        )* }
        mod docker29_nftables { $(
            #[test]
            #[ignore = "make test-docker29"]
            fn $name() { super::$name(super::Engine::Docker29Nftables); }
        )* }
    };
}

scenarios! {
    a_container_resolves_both_ways_until_it_is_removed
    a_published_port_is_told_to_the_outside
    restarts_of_docker_and_of_the_daemon_keep_the_names
    a_network_named_like_the_zone
    the_later_start_has_the_name
    containers_of_other_networks_resolve_as_well
}

const ZONE: &str = "loden.internal";
/// Where every host answers.
const SHARED: &str = "169.254.53.53";
/// From `docker run` to every host; a loaded machine may take longer than the two seconds that it should.
const EVERYWHERE: Duration = Duration::from_secs(5);

struct Scene {
    cluster: Cluster<2>,
    dockers: [Docker; 2],
}

impl Scene {
    fn start(story: &str, engine: Engine, wired: bool) -> Option<Self> {
        let story = format!("names-{story}-{}", engine.name());
        let cluster = Cluster::<2>::start(&story, &Stack::Four.vxlan(), &[]);
        let [a, b] = &cluster.hosts;
        let dockers = [a.docker(engine)?, b.docker(engine)?];
        for docker in &dockers {
            docker.start(&if wired { docker.options(&[]) } else { String::new() });
        }
        Some(Self { cluster, dockers })
    }

    fn hosts(&self) -> &[Host; 2] {
        &self.cluster.hosts
    }
}

/// Name to address and back, as this host's daemon says to one who asks from there.
fn both_ways(from: &Ns, name: &str, address: IpAddr) -> Result<(), String> {
    let full = format!("{name}.{ZONE}");
    let forward = dig(from, &format!("@{SHARED} {full} A"));
    if forward.answers != [address.to_string()] {
        return Err(format!("{full} is not {address}: {}", forward.text));
    }
    let back = dig(from, &format!("@{SHARED} -x {address}"));
    if back.answers != [format!("{full}.")] {
        return Err(format!("{address} is not {full}: {}", back.text));
    }
    Ok(())
}

/// Neither the name nor the address is anybody's any more.
fn neither_way(from: &Ns, name: &str, address: IpAddr) -> Result<(), String> {
    let forward = dig(from, &format!("@{SHARED} {name}.{ZONE} A"));
    let back = dig(from, &format!("@{SHARED} -x {address}"));
    if forward.status == "NXDOMAIN" && back.status == "NXDOMAIN" {
        Ok(())
    } else {
        Err(format!("{}{}", forward.text, back.text))
    }
}

/// The same by what a program in the container asks: its resolv.conf.
fn inside(docker: &Docker, container: &Container, name: &str, address: IpAddr) -> Result<(), String> {
    let look = |what: &str| docker.exec(&["docker", "exec", container.name(), "busybox", "nslookup", what]);
    let full = format!("{name}.{ZONE}");
    let forward = look(&full);
    if !forward.stdout.lines().any(|l| l.starts_with("Address") && l.ends_with(&format!(" {address}"))) {
        return Err(format!("{full} is not {address}: {}", forward.describe()));
    }
    let back = look(&address.to_string());
    if !back.stdout.contains(&format!("name = {full}")) {
        return Err(format!("{address} is not {full}: {}", back.describe()));
    }
    Ok(())
}

fn a_container_resolves_both_ways_until_it_is_removed(engine: Engine) {
    let Some(scene) = Scene::start("both", engine, true) else { return };
    let ([a, b], [docker_a, docker_b]) = (scene.hosts(), &scene.dockers);
    let dn1 = docker_a.container_with("dn1", &["--hostname", "dn1.loden.internal"]);
    let nn = docker_b.container_with("namenode", &["--hostname", "nn"]);
    let nameless = docker_b.container("plain");
    eventually(EVERYWHERE, "both hosts know all of them", || {
        for host in [a, b] {
            both_ways(&host.ns(), "dn1", dn1.address())?;
            both_ways(&host.ns(), "nn", nn.address())?;
            both_ways(&host.ns(), "plain", nameless.address())?;
        }
        Ok::<(), String>(())
    });
    // By its own resolver: itself, and the other host's.
    inside(docker_a, &dn1, "dn1", dn1.address()).unwrap_or_else(|e| panic!("{e}"));
    inside(docker_a, &dn1, "nn", nn.address()).unwrap_or_else(|e| panic!("{e}"));
    inside(docker_b, &nn, "dn1", dn1.address()).unwrap_or_else(|e| panic!("{e}"));
    // The search list makes the short name enough.
    let short = docker_b.client(&["exec", "namenode", "busybox", "ping", "-c1", "-w5", "dn1"]);
    assert!(short.contains(&dn1.address().to_string()), "{short}");
    let second = dig(&b.ns(), &format!("@{SHARED} namenode.{ZONE} A"));
    assert_eq!(second.answers, [nn.address().to_string()], "the container's name too: {}", second.text);
    docker_b.client(&["rename", "plain", "fancy"]);
    eventually(EVERYWHERE, "a new name is followed", || both_ways(&a.ns(), "fancy", nameless.address()));

    let gone = dn1.address();
    docker_a.remove(dn1);
    eventually(EVERYWHERE, "it has no name any more, anywhere", || {
        neither_way(&a.ns(), "dn1", gone)?;
        neither_way(&b.ns(), "dn1", gone)
    });
    let gone = nn.address();
    docker_b.client(&["stop", "--time=1", "namenode"]);
    eventually(EVERYWHERE, "nor has one that was stopped", || neither_way(&a.ns(), "nn", gone));
    assert_eq!(scene.cluster.etcd.keys("/coreos.com/network/loden/names/").len(), 1);
    scene.cluster.lab.check_invariants();
}

fn a_published_port_is_told_to_the_outside(engine: Engine) {
    let Some(scene) = Scene::start("port", engine, true) else { return };
    let [a, b] = scene.hosts();
    let flags = ["-p", "19866:9866", "-p", "127.0.0.1:19867:9867", "-p", "5300:53/udp"];
    let dn1 = scene.dockers[0].container_with("dn1", &flags);
    let srv = |from: &Ns, server: &str, service: &str| {
        let answer = dig(from, &format!("@{server} SRV {service}.dn1.{ZONE}"));
        answer.answers.join(", ") + &answer.status.replace("NOERROR", "")
    };
    let machine = scene.cluster.lab.outside();
    let target = |port| format!("0 100 {port} dn1.{ZONE}.");
    eventually(EVERYWHERE, "either host tells the port of the host", || {
        for host in [a, b] {
            let told = srv(&machine, &host.address().to_string(), "_9866._tcp");
            if told != target(19866) {
                return Err(told);
            }
        }
        Ok(())
    });
    let server = a.address().to_string();
    assert_eq!(srv(&machine, &server, "_53._udp"), target(5300));
    let own_machine = srv(&machine, &server, "_9867._tcp");
    assert!(!own_machine.contains(ZONE), "only a itself reaches it: {own_machine}");
    let address = dig(&machine, &format!("@{server} dn1.{ZONE} A"));
    assert_eq!(address.answers, [a.address().to_string()], "{}", address.text);
    // In the overlay it is reached by its own address and port.
    assert_eq!(srv(dn1.ns(), SHARED, "_9866._tcp"), target(9866));
}

fn restarts_of_docker_and_of_the_daemon_keep_the_names(engine: Engine) {
    let Some(scene) = Scene::start("restart", engine, true) else { return };
    let ([a, b], [docker, _]) = (scene.hosts(), &scene.dockers);
    let dn1 = docker.container_with("dn1", &["--restart=always"]);
    eventually(EVERYWHERE, "b knows it", || both_ways(&b.ns(), "dn1", dn1.address()));
    let daemon = &scene.cluster.daemons[0];
    daemon.terminate();
    let dn2 = docker.container("dn2");
    let dn3 = docker.container("dn3");
    docker.remove(dn3);
    assert_eq!(both_ways(&b.ns(), "dn1", dn1.address()), Ok(()), "etcd has it while the daemon is away");
    // Docker does not answer just yet.
    let dockerd = docker.processes()[0].to_string();
    a.run(&["kill", "-STOP", &dockerd]);
    daemon.start();
    daemon.wait_ready();
    always(Duration::from_secs(3), "no moment without its name", || both_ways(&b.ns(), "dn1", dn1.address()));
    a.run(&["kill", "-CONT", &dockerd]);
    eventually(SOON, "what came meanwhile has its name", || {
        both_ways(&b.ns(), "dn2", dn2.address())?;
        both_ways(&a.ns(), "dn1", dn1.address())
    });
    // Its containers end with it; dn1 comes again, at whatever address.
    let gone = dn2.address();
    drop(dn1);
    docker.restart();
    let dn1 = eventually(SOON, "dn1 runs again", || docker.try_find("dn1"));
    eventually(SOON, "it has its name, and dn2 none", || {
        both_ways(&b.ns(), "dn1", dn1.address())?;
        let dn2 = dig(&b.ns(), &format!("@{SHARED} dn2.{ZONE} A"));
        if dn2.status == "NXDOMAIN" { Ok(()) } else { Err(format!("{gone}: {}", dn2.text)) }
    });
    docker.client(&["start", "dn2"]);
    let dn2 = docker.find("dn2");
    eventually(EVERYWHERE, "events are heard again", || both_ways(&b.ns(), "dn2", dn2.address()));
}

/// Docker's own resolver answers first on such a network, also for addresses.
fn a_network_named_like_the_zone(engine: Engine) {
    let Some(scene) = Scene::start("zone", engine, false) else { return };
    let start = |docker: &Docker, name: &str, alias: &str| {
        docker.run(&["sh", "-c", &docker.options(&["--network", ZONE])]);
        let dns = ["--dns", SHARED, "--dns-search", ZONE, "--dns-opt", "ndots:2"];
        let own = ["--network", ZONE, "--network-alias", alias];
        docker.container_with(name, &[&own[..], &dns[..]].concat())
    };
    let [docker_a, docker_b] = &scene.dockers;
    let dn1 = start(docker_a, "dn1", "datanodes");
    let dn2 = start(docker_b, "dn2", "datanodes");
    eventually(EVERYWHERE, "each has the other's name, and its own, by Docker's resolver", || {
        inside(docker_a, &dn1, "dn2", dn2.address())?;
        inside(docker_a, &dn1, "dn1", dn1.address())?;
        inside(docker_b, &dn2, "dn1", dn1.address())
    });
    for host in scene.hosts() {
        let group = dig(&host.ns(), &format!("@{SHARED} datanodes.{ZONE} A")).sorted();
        let mut both = [dn1.address(), dn2.address()].map(|a| a.to_string());
        both.sort();
        assert_eq!(group, both, "they share the alias");
    }
}

fn the_later_start_has_the_name(engine: Engine) {
    let Some(scene) = Scene::start("later", engine, true) else { return };
    let ([a, b], [docker_a, docker_b]) = (scene.hosts(), &scene.dockers);
    let everywhere = |address: IpAddr| {
        eventually(EVERYWHERE, "both hosts say who has started later", || {
            both_ways(&a.ns(), "nn", address)?;
            both_ways(&b.ns(), "nn", address)
        });
    };
    let first = docker_a.container_with("nn-a", &["--hostname", "nn"]);
    everywhere(first.address());
    let second = docker_b.container_with("nn-b", &["--hostname", "nn"]);
    everywhere(second.address());
    docker_a.client(&["restart", "-t", "0", "nn-a"]);
    everywhere(docker_a.find("nn-a").address());
}

/// dockerd has one resolver for all its networks.
fn containers_of_other_networks_resolve_as_well(engine: Engine) {
    let Some(scene) = Scene::start("others", engine, true) else { return };
    let docker = &scene.dockers[0];
    let dn1 = docker.container_with("dn1", &[]);
    docker.client(&["network", "create", "plain"]);
    let plain = docker.container_with("plain1", &["--network", "plain"]);
    eventually(EVERYWHERE, "one that is not in the overlay finds those that are", || {
        inside(docker, &plain, "dn1", dn1.address())
    });
    let stranger = scene.cluster.lab.outside();
    let host = scene.hosts()[0].address();
    stranger.ip(&format!("route add {SHARED} via {host}"));
    let told = dig(&stranger, &format!("@{SHARED} dn1.{ZONE} A"));
    assert_ne!(told.answers, [dn1.address().to_string()], "a neighbour of the host is outside");
}

#[test]
fn a_docker_that_may_not_be_asked_is_told_of() {
    let lab = Lab::new("names-docker-forbidden");
    lab.etcd().config(&Stack::Four.vxlan());
    let a = lab.host("a");
    let listen = ["socat", "UNIX-LISTEN:/var/run/docker.sock,mode=0600", "PIPE"];
    let _socket = a.spawn("docker.sock", &listen);
    let setpriv = a.as_nobody("--clear-groups", "+net_admin");
    let _daemon = a.daemon_under(&setpriv, &[]).ready();
    let words = ["/var/run/docker.sock", "--docker-socket"];
    eventually(SOON, "status says so", || {
        let notes = a.try_status(&[])?.notes;
        let said = notes.iter().any(|note| words.iter().all(|word| note.contains(word)));
        if said { Ok(()) } else { Err(format!("{notes:?}")) }
    });
}

/// docker.socket: systemd listens in Docker's place, and starts it for whoever connects.
#[test]
fn a_docker_that_was_stopped_is_not_started_by_being_asked() {
    let lab = Lab::new("names-docker-stopped");
    lab.etcd().config(&Stack::Four.vxlan());
    let Some(systemd) = lab.host("a").systemd() else { return };
    systemd.run(&[
        "sh",
        "-ec",
        "cd /etc/systemd/system
        printf '[Socket]\\nListenStream=/run/docker.sock\\nSocketMode=0666\\n' > docker.socket
        printf '[Service]\\nExecStart=/usr/bin/sleep 1000000\\n' > docker.service
        systemctl daemon-reload
        systemctl start docker.socket",
    ]);
    systemd.restart("loden");
    let stopped = || {
        let state = systemd.exec(&["systemctl", "is-active", "docker.service"]).stdout;
        if state == "inactive\n" { Ok(()) } else { Err(state) }
    };
    always(Duration::from_secs(12), "Docker stays as it is", stopped);
    systemd.run(&["socat", "-u", "OPEN:/dev/null", "UNIX-CONNECT:/run/docker.sock"]);
    eventually(SOON, "any connection would have started it", || stopped().is_err());
}
