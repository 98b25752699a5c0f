//! Containers: network namespaces wired by the real CNI plugin, or by hand on flannel's hosts.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loden_proto::subnet_env::SubnetEnv;
use loden_proto::{Family, Subnet};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde_json::{Value, json};

use crate::process::{self, lock};
use crate::{Host, Ns, daemon, eventually, probe};

/// A container on a host. It lives until [`Container::delete`], a reboot or the lab's end.
#[derive(Debug)]
pub struct Container {
    host: Host,
    name: String,
    ns: Arc<Ns>,
    address: IpAddr,
    conf: Option<Value>,
    result: Value,
    echoes: Mutex<Vec<probe::Echo>>,
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
        let address = result["ips"][0]["address"].as_str().and_then(|a| a.split('/').next()?.parse().ok());
        let address: IpAddr = address.ok_or_else(|| format!("no address in {answer}"))?;
        Ok(Container::new(self, name, ns, address, Some(conf), result))
    }

    /// A container on a bridge `cni0` made with `ip`, as flannel's plugin would: for hosts that
    /// run flanneld. Its addresses are the subnets' with this last number.
    #[track_caller]
    pub fn container_by_hand(&self, name: &str, last: u8) -> Container {
        let env = eventually(Duration::from_secs(10), "flannel's subnet.env is there", || {
            SubnetEnv::parse(&self.read_file("/run/flannel/subnet.env")?).ok()
        });
        let host = self.ns();
        if !host.exec(&["ip", "link", "show", "cni0"]).success() {
            host.ip("link add cni0 type bridge\nlink set cni0 up");
            for subnet in &env.subnets {
                host.ip(&format!(
                    "addr add {}/{} dev cni0{}",
                    subnet.gateway(),
                    subnet.length(),
                    nodad(subnet)
                ));
                // flannel leaves it to others.
                host.sysctl(
                    match subnet.family() {
                        Family::V4 => "net/ipv4/ip_forward",
                        Family::V6 => "net/ipv6/conf/all/forwarding",
                    },
                    "1",
                );
            }
        }
        let ns = Arc::new(Ns::new());
        self.bind_netns(name, &ns);
        let mtu = env.mtu;
        host.ip(&format!(
            "link add veth-{name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
             link set veth-{name} master cni0 up",
            ns.path()
        ));
        ns.ip("link set eth0 up");
        let mut ips = Vec::new();
        for subnet in &env.subnets {
            let address = format!("{}/{}", subnet.nth(last.into()), subnet.length());
            let gateway = subnet.gateway();
            ns.ip(&format!("addr add {address} dev eth0{}\nroute add default via {gateway}", nodad(subnet)));
            ips.push(json!({"address": address}));
        }
        let address = env.subnets.first().expect("a subnet").nth(last.into());
        Container::new(self, name, ns, address, None, json!({"ips": ips}))
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

/// An address that is in use nowhere else need not be proven unique, which takes a second.
fn nodad(subnet: &Subnet) -> &'static str {
    if subnet.family() == Family::V6 { " nodad" } else { "" }
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
        address: IpAddr,
        conf: Option<Value>,
        result: Value,
    ) -> Self {
        lock(&host.lab().containers).insert((host.name().into(), name.into()), address);
        Self { host: host.clone(), name: name.into(), ns, address, conf, result, echoes: Mutex::default() }
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
        self.address
    }

    /// All its addresses, as the plugin gave them.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array().cloned().unwrap_or_default();
        let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
        if ips.is_empty() { vec![self.address] } else { ips.iter().filter_map(address).collect() }
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

    /// Ends it, as a runtime does: DEL, then the namespace goes.
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

    /// The address of its echo server, which the first call starts.
    #[track_caller]
    pub fn echo(&self) -> SocketAddr {
        self.echoes()[0]
    }

    /// An echo server on each of its addresses, which the first call starts.
    #[track_caller]
    fn echoes(&self) -> Vec<SocketAddr> {
        let mut echoes = lock(&self.echoes);
        if echoes.is_empty() {
            echoes.extend(self.addresses().into_iter().map(|a| probe::Echo::start(&self.ns, a)));
        }
        echoes.iter().map(probe::Echo::address).collect()
    }

    /// How many datagrams of streams have arrived here.
    pub fn arrived(&self) -> u64 {
        lock(&self.echoes).iter().map(probe::Echo::arrived).sum()
    }

    /// An echo server on any of its addresses, which ends when dropped.
    #[track_caller]
    pub fn echo_on(&self, address: IpAddr) -> probe::Echo {
        probe::Echo::start(&self.ns, address)
    }

    /// The address that another container's echo server saw when this one sent to it.
    pub fn source_seen_by(&self, other: &Container) -> Option<IpAddr> {
        probe::udp_source(&self.ns, other.echo().ip())
    }

    /// A steady stream from here to another container.
    #[track_caller]
    pub fn stream_to(&self, other: &Container, per_second: u32) -> probe::Stream {
        probe::Stream::start(&self.ns, other.echo(), per_second)
    }

    /// A steady stream from here to each address of another container.
    #[track_caller]
    pub fn streams_to(&self, other: &Container, per_second: u32) -> Vec<probe::Stream> {
        other.echoes().into_iter().map(|to| probe::Stream::start(&self.ns, to, per_second)).collect()
    }
}

/// Every container reaches every other by each family that both have, by ICMP and UDP, and is seen
/// under its own address.
#[track_caller]
pub fn matrix(containers: &[&Container]) {
    let addresses: Vec<Vec<IpAddr>> = containers.iter().map(|c| c.addresses()).collect();
    for container in containers {
        container.echoes();
    }
    eventually(Duration::from_secs(15), "every container reaches every other", || {
        for (from, sources) in containers.iter().zip(&addresses) {
            for (to, targets) in
                containers.iter().zip(&addresses).filter(|(to, _)| !std::ptr::eq(**to, *from))
            {
                for target in targets {
                    let same_family = |s: &&IpAddr| s.is_ipv4() == target.is_ipv4();
                    let Some(source) = sources.iter().find(same_family) else { continue };
                    let path = format!("{} ({source}) to {} ({target})", from.name, to.name);
                    if !from.pings(*target) {
                        return Err(format!("no ICMP from {path}"));
                    }
                    match probe::udp_source(&from.ns, *target) {
                        Some(seen) if seen == *source => {}
                        other => return Err(format!("UDP from {path} was seen from {other:?}")),
                    }
                }
            }
        }
        Ok(())
    });
}
