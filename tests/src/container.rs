//! Containers: network namespaces wired by the real CNI plugin, or by hand on flannel's hosts.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loden_proto::Family;
use loden_proto::subnet_env::SubnetEnv;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde_json::{Value, json};

use crate::process::{self, Process, lock};
use crate::{Host, Ns, daemon, eventually, probe};

/// A container on a host. It lives until [`Container::delete`], a reboot or the lab's end.
#[derive(Debug)]
pub struct Container {
    host: Host,
    name: String,
    ns: Arc<Ns>,
    /// At least one; IPv4 comes first.
    addresses: Vec<IpAddr>,
    conf: Option<Value>,
    result: Value,
    echoes: Mutex<BTreeMap<IpAddr, probe::Echo>>,
}

/// What runtimes pass for a network of Loden's.
fn default_conf() -> Value {
    json!({"cniVersion": "1.0.0", "name": "loden", "type": "loden"})
}

impl Host {
    /// A container wired by the plugin.
    #[track_caller]
    pub fn container(&self, name: &str) -> Container {
        self.try_container(name).unwrap_or_else(|e| panic!("ADD of {name} on {}: {e}", self.name()))
    }

    /// A container wired by the plugin, or what the plugin answered instead.
    pub fn try_container(&self, name: &str) -> Result<Container, String> {
        self.container_with(name, default_conf())
    }

    /// The same with a network configuration of the scenario's own.
    pub fn container_with(&self, name: &str, conf: Value) -> Result<Container, String> {
        let ns = Arc::new(Ns::new());
        self.bind_netns(name, &ns);
        let answer = match cni(self, "ADD", name, &conf) {
            Ok(answer) => answer,
            Err(e) => {
                self.unbind_netns(name);
                return Err(e);
            }
        };
        let result: Value = serde_json::from_str(&answer).map_err(|e| format!("{e} in {answer}"))?;
        let addresses = addresses(&result["ips"]);
        if addresses.is_empty() {
            return Err(format!("no address in {answer}"));
        }
        Ok(Container::new(self, name, ns, addresses, Some(conf), result))
    }

    /// A container on a bridge `cni0` made with `ip`, as flannel's plugin would: for hosts that
    /// run flanneld. Its addresses are the subnets' with this last number.
    #[track_caller]
    pub fn container_by_hand(&self, name: &str, last: u8) -> Container {
        let env = eventually(Duration::from_secs(10), "flannel's subnet.env is there", || {
            SubnetEnv::parse(&self.read_file("/run/flannel/subnet.env")?).ok()
        });
        let ns = Arc::new(Ns::new());
        self.bind_netns(name, &ns);
        let host = self.ns();
        if !host.exec(&["ip", "link", "show", "cni0"]).success() {
            host.ip("link add cni0 type bridge\nlink set cni0 up");
            for subnet in &env.subnets {
                host.ip(&format!("addr add {}/{} dev cni0 nodad", subnet.gateway(), subnet.length()));
                host.sysctl(forwarding_of_all(subnet.family()), "1");
            }
        }
        let mtu = env.mtu;
        host.ip(&format!(
            "link add veth-{name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
             link set veth-{name} master cni0 up",
            ns.path()
        ));
        ns.ip("link set eth0 up");
        let mut addresses = Vec::new();
        for subnet in &env.subnets {
            let (gateway, length, address) = (subnet.gateway(), subnet.length(), subnet.nth(last.into()));
            ns.ip(&format!("addr add {address}/{length} dev eth0 nodad\nroute add default via {gateway}"));
            addresses.push(address);
        }
        Container::new(self, name, ns, addresses, None, Value::Null)
    }

    /// A namespace that `ip netns` knows by this name and nothing has connected.
    pub fn namespace(&self, name: &str) -> Arc<Ns> {
        let ns = Arc::new(Ns::new());
        self.bind_netns(name, &ns);
        ns
    }

    /// Removes the name of a namespace, as `ip netns del` does.
    pub fn remove_namespace(&self, name: &str) {
        self.unbind_netns(name);
    }

    /// A process in a network namespace of its own.
    #[track_caller]
    pub fn process_apart(&self, name: &str) -> (Arc<Process>, Arc<Ns>) {
        let process = self.spawn(name, &["unshare", "--net", "sleep", "1000"]);
        let own = |path: &str| std::fs::read_link(path).ok();
        let (host, path) = (own(&self.ns().path()), format!("/proc/{}/ns/net", process.pid()));
        eventually(Duration::from_secs(10), "it has left the namespaces of lab and host", || {
            let now = own(&path);
            now.is_some() && now != host && now != own("/proc/self/ns/net")
        });
        let ns = Ns::open(path.as_ref()).expect("the namespace of a living process");
        (process, Arc::new(ns))
    }

    /// What `loden attach` has connected, or what it answered instead.
    pub fn attach(&self, target: &str, ns: &Arc<Ns>, flags: &[&str]) -> Result<Container, String> {
        let output = self.loden(&[&["attach", target, "--json"], flags].concat());
        if !output.success() {
            return Err(output.describe());
        }
        let result: Value = serde_json::from_str(&output.stdout).map_err(|e| e.to_string())?;
        let addresses: Vec<IpAddr> = addresses(&result["addresses"]);
        Ok(Container::new(self, target, ns.clone(), addresses, None, result))
    }

    fn bind_netns(&self, name: &str, ns: &Ns) {
        let (path, source) = (netns_path(name), ns.path());
        self.ns().within_all(|| {
            std::fs::write(&path, "").expect("a mount point in the host's /run/netns");
            mount_bind(&source, &path).expect("binding a namespace");
        });
    }

    fn unbind_netns(&self, name: &str) {
        let path = netns_path(name);
        self.ns().within_all(|| {
            let _ = unmount(&path, UnmountFlags::DETACH);
            let _ = std::fs::remove_file(&path);
        });
    }
}

/// The addresses of a list of objects, without their lengths.
fn addresses(list: &Value) -> Vec<IpAddr> {
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    list.as_array().into_iter().flatten().filter_map(address).collect()
}

fn forwarding_of_all(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    }
}

fn netns_path(name: &str) -> String {
    format!("/run/netns/{name}")
}

/// Calls the plugin as a runtime does; the error is what it printed.
fn cni(host: &Host, command: &str, name: &str, conf: &Value) -> Result<String, String> {
    let plugin = daemon::binary("loden-cni");
    let dir = plugin.rsplit_once('/').map_or("/", |(dir, _)| dir).to_owned();
    let mut call = host.ns().command(&[&plugin]);
    call.env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", name)
        .env("CNI_NETNS", netns_path(name))
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", dir);
    let output = process::run(call, conf.to_string().as_bytes());
    if output.success() { Ok(output.stdout) } else { Err(output.describe()) }
}

impl Container {
    pub(crate) fn new(
        host: &Host,
        name: &str,
        ns: Arc<Ns>,
        addresses: Vec<IpAddr>,
        conf: Option<Value>,
        result: Value,
    ) -> Self {
        lock(&host.lab().containers).insert((host.name().into(), name.into()), addresses.clone());
        let echoes = Mutex::default();
        Self { host: host.clone(), name: name.into(), ns, addresses, conf, result, echoes }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its network namespace.
    pub fn ns(&self) -> &Ns {
        &self.ns
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.addresses[0]
    }

    /// All its addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its address of a family.
    #[track_caller]
    pub fn address_of(&self, family: Family) -> IpAddr {
        let found = self.addresses.iter().copied().find(|a| Family::of(*a) == family);
        found.unwrap_or_else(|| panic!("{} has no {family} address: {:?}", self.name, self.addresses))
    }

    /// What the plugin answered to ADD.
    pub fn result(&self) -> &Value {
        &self.result
    }

    /// A second ADD of the same container; what the plugin answered.
    pub fn add_again(&self) -> Result<String, String> {
        let conf = self.conf.as_ref().expect("a container of the plugin's");
        cni(&self.host, "ADD", &self.name, conf)
    }

    /// Ends it, as a runtime does: DEL, then the namespace goes. One that was attached must have been
    /// detached before.
    #[track_caller]
    pub fn delete(self) {
        if let Some(conf) = &self.conf {
            cni(&self.host, "DEL", &self.name, conf)
                .unwrap_or_else(|e| panic!("DEL of {} on {}: {e}", self.name, self.host.name()));
        }
        self.host.unbind_netns(&self.name);
        lock(&self.host.lab().containers).remove(&(self.host.name().into(), self.name.clone()));
    }

    /// One ICMP echo to an address.
    pub fn pings(&self, target: IpAddr) -> bool {
        probe::ping(&self.ns, target)
    }

    /// Its echo server by its first address; the first call starts it.
    #[track_caller]
    pub fn echo(&self) -> SocketAddr {
        self.echo_on(self.address())
    }

    /// Its echo server by any of its addresses; the first call starts it.
    #[track_caller]
    pub fn echo_on(&self, address: IpAddr) -> SocketAddr {
        let mut echoes = lock(&self.echoes);
        echoes.entry(address).or_insert_with(|| probe::Echo::start(&self.ns, address)).address()
    }

    /// A steady stream from here to another container, by its first address.
    #[track_caller]
    pub fn stream_to(&self, other: &Container, per_second: u32) -> probe::Stream {
        probe::Stream::start(&self.ns, other.echo(), per_second)
    }

    /// A steady stream from here to each address of another container.
    #[track_caller]
    pub fn streams_to(&self, other: &Container, per_second: u32) -> Vec<probe::Stream> {
        let targets = other.addresses().iter().map(|a| other.echo_on(*a));
        targets.map(|to| probe::Stream::start(&self.ns, to, per_second)).collect()
    }

    /// How many datagrams of streams have arrived here.
    pub fn arrived(&self) -> u64 {
        lock(&self.echoes).values().map(probe::Echo::arrived).sum()
    }

    /// A steady stream to another container by the addresses of a family.
    #[track_caller]
    pub fn stream_by(&self, family: Family, other: &Container, per_second: u32) -> probe::Stream {
        probe::Stream::start(&self.ns, other.echo_on(other.address_of(family)), per_second)
    }

    /// The address that another container's echo server saw when this one sent to its first address.
    pub fn source_seen_by(&self, other: &Container) -> Option<IpAddr> {
        probe::udp_source(&self.ns, other.echo().ip())
    }

    /// Whether another container is reached by ICMP and UDP, by the addresses of a family, and
    /// sees this one's own address.
    fn reaches(&self, other: &Container, family: Family) -> Result<(), String> {
        let (source, target) = (self.address_of(family), other.address_of(family));
        let path = || format!("{} ({source}) to {} ({target})", self.name, other.name);
        if !self.pings(target) {
            return Err(format!("no ICMP from {}", path()));
        }
        match probe::udp_source(&self.ns, target) {
            Some(seen) if seen == source => Ok(()),
            seen => Err(format!("UDP from {} was seen from {seen:?}", path())),
        }
    }
}

/// Every container reaches every other, by ICMP and UDP, and is seen under its own address; by each
/// address family that both have, of which there must be one.
#[track_caller]
pub fn matrix(containers: &[&Container]) {
    for container in containers {
        for address in container.addresses() {
            container.echo_on(*address);
        }
    }
    let pairs: Vec<(&Container, &Container, Family)> = containers
        .iter()
        .flat_map(|from| containers.iter().map(move |to| (*from, *to)))
        .filter(|(from, to)| !std::ptr::eq(*from, *to))
        .flat_map(|(from, to)| {
            let families: Vec<Family> =
                families_of(from).filter(|f| families_of(to).any(|g| g == *f)).collect();
            assert!(!families.is_empty(), "{} and {} have no family in common", from.name, to.name);
            families.into_iter().map(move |family| (from, to, family))
        })
        .collect();
    eventually(Duration::from_secs(15), "every container reaches every other", || {
        pairs.iter().try_for_each(|(from, to, family)| from.reaches(to, *family))
    });
}

fn families_of(container: &Container) -> impl Iterator<Item = Family> {
    container.addresses.iter().map(|a| Family::of(*a))
}
