//! Who is measured: pairs of hosts with an underlay of their own, bare, with flannel, with Loden.
//! Used by `mod.rs` and `gains.rs`.

use std::cell::Cell;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path as FilePath, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use loden_proto::subnet_env::SubnetEnv;
use loden_tests::{Container, Daemon, Host, Lab, Ns};
use serde_json::{Value, json};

use super::traffic::Path;
use super::underlay::{NIC, Underlay};
use crate::peers;

pub(crate) const CONFIG: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
/// Below flannel's they would see each other's hosts.
const LODEN_PREFIX: &str = "/bench/loden";
const PATIENCE: Duration = Duration::from_secs(15);

/// One way of carrying packets between two hosts, and between containers of one.
#[derive(Debug)]
pub(crate) struct Side {
    name: String,
    hosts: [Host; 2],
    underlay: Underlay,
    client: End,
    /// On the other host.
    server: End,
    /// On the client's host.
    neighbour: Option<End>,
    /// They run as long as they are measured.
    daemons: Vec<Daemon>,
}

#[derive(Debug)]
struct End {
    holder: Holder,
    address: IpAddr,
}

#[derive(Debug)]
enum Holder {
    Namespace(Arc<Ns>),
    Container(Container),
}

impl End {
    fn ns(&self) -> &Ns {
        match &self.holder {
            Holder::Namespace(ns) => ns,
            Holder::Container(container) => container.ns(),
        }
    }
}

impl From<Container> for End {
    fn from(container: Container) -> Self {
        Self { address: container.address(), holder: Holder::Container(container) }
    }
}

impl Side {
    /// For tables.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The client's host and the server's.
    pub(crate) fn hosts(&self) -> &[Host; 2] {
        &self.hosts
    }

    pub(crate) fn underlay(&self) -> &Underlay {
        &self.underlay
    }

    /// From host to host.
    pub(crate) fn between_hosts(&self) -> Path<'_> {
        path(&self.client, &self.server)
    }

    /// Between two containers of the client's host, if the side has containers.
    pub(crate) fn on_one_host(&self) -> Option<Path<'_>> {
        self.neighbour.as_ref().map(|neighbour| path(&self.client, neighbour))
    }

    /// Stops the daemons; what they made stays.
    pub(crate) fn stop_daemons(&self) {
        for daemon in &self.daemons {
            daemon.terminate();
        }
    }

    /// Namespaces of the containers, if the side has any.
    pub(crate) fn containers(&self) -> Vec<&Ns> {
        match &self.neighbour {
            Some(neighbour) => vec![self.client.ns(), self.server.ns(), neighbour.ns()],
            None => Vec::new(),
        }
    }
}

fn path<'a>(client: &'a End, server: &'a End) -> Path<'a> {
    Path { client: client.ns(), server: server.ns(), address: server.address }
}

/// Where sides are made: a lab with etcd.
#[derive(Debug)]
pub(crate) struct Arena {
    lab: Lab,
    pairs: Cell<u8>,
}

impl Arena {
    /// A new one.
    pub(crate) fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        lab.etcd().config(CONFIG);
        Self { lab, pairs: Cell::new(0) }
    }

    /// The two hosts themselves, without containers and rules.
    pub(crate) fn host_to_host(&self) -> Side {
        let (hosts, underlay) = self.hosts("bare");
        let [client, server] = [0, 1].map(|which: u8| End {
            holder: Holder::Namespace(hosts[usize::from(which)].ns()),
            address: underlay.address(which),
        });
        Side {
            name: "host to host".into(),
            client,
            server,
            neighbour: None,
            underlay,
            hosts,
            daemons: vec![],
        }
    }

    /// Loden's daemon and plugin as they come. Each side is an overlay network of its own.
    pub(crate) fn loden(&self, name: &str) -> Result<Side> {
        self.loden_with(name, CONFIG, |_| ())
    }

    /// The same with another config, and hosts that were changed before the daemons start.
    pub(crate) fn loden_with(&self, name: &str, config: &str, before: fn(&Host)) -> Result<Side> {
        let (hosts, underlay) = self.hosts(name);
        hosts.iter().for_each(before);
        let prefix = format!("{LODEN_PREFIX}/{name}");
        self.lab.etcd().put(&format!("{prefix}/config"), config);
        let flags = [format!("--etcd-prefix={prefix}"), format!("--iface={NIC}")];
        let flags = flags.each_ref().map(String::as_str);
        let daemons = hosts.iter().map(|host| host.daemon(&flags).ready()).collect();
        let container = |host: &Host, name: &str| host.try_container(name).map_err(anyhow::Error::msg);
        let side = Side {
            name: name.into(),
            client: container(&hosts[0], "client")?.into(),
            server: container(&hosts[1], "server")?.into(),
            neighbour: Some(container(&hosts[0], "neighbour")?.into()),
            underlay,
            hosts,
            daemons,
        };
        side.wait_until_connected()?;
        Ok(side)
    }

    /// flanneld with its masquerade rules, containers by the reference plugins, with flannel's plugin
    /// in front where it is there. `None` where flanneld or the plugins are missing.
    pub(crate) fn flannel(&self) -> Result<Option<Side>> {
        let (Some(chain), Some(_)) = (Chain::find(), peers::FLANNELD.find()) else { return Ok(None) };
        let (hosts, underlay) = self.hosts("flannel");
        let mut daemons = Vec::new();
        for host in &hosts {
            let daemon = host.flanneld(&[&format!("--iface={NIC}"), "--ip-masq"]);
            daemons.push(daemon.context("flanneld has gone")?);
        }
        for host in &hosts {
            within_patience("flanneld's masquerade rules", || {
                host.exec(&["iptables-save", "-t", "nat"]).stdout.contains("FLANNEL-POSTRTG")
                    && host.read_file("/run/flannel/subnet.env").is_some()
            })?;
        }
        let side = Side {
            name: "flannel".into(),
            client: chain.connect(&hosts[0], "client")?,
            server: chain.connect(&hosts[1], "server")?,
            neighbour: Some(chain.connect(&hosts[0], "neighbour")?),
            underlay,
            hosts,
            daemons,
        };
        side.wait_until_connected()?;
        Ok(Some(side))
    }

    fn hosts(&self, name: &str) -> ([Host; 2], Underlay) {
        let hosts = ["a", "b"].map(|which| self.lab.host(&format!("{name}-{which}")));
        for host in &hosts {
            host.remove_foreign();
            // A round's flows are gone in the next; none is ever idle for a second.
            for timeout in ["tcp_timeout_time_wait", "tcp_timeout_close", "udp_timeout", "udp_timeout_stream"]
            {
                host.ns().sysctl(&format!("net/netfilter/nf_conntrack_{timeout}"), "5");
            }
        }
        let number = self.pairs.replace(self.pairs.get() + 1);
        let underlay = Underlay::between(hosts.clone(), number);
        (hosts, underlay)
    }
}

impl Side {
    fn wait_until_connected(&self) -> Result<()> {
        let address = self.server.address.to_string();
        within_patience(&format!("{} to connect its containers", self.name), || {
            self.client.ns().exec(&["ping", "-c", "1", "-W", "1", &address]).success()
        })
    }
}

fn within_patience(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > PATIENCE {
            bail!("waited {PATIENCE:?} for {what}");
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// The plugins that connect flannel's containers.
struct Chain {
    flannel: Option<PathBuf>,
    bridge: PathBuf,
}

impl Chain {
    fn find() -> Option<Self> {
        Some(Self { flannel: peers::FLANNEL_CNI.find(), bridge: peers::BRIDGE.find()? })
    }

    /// What flannel's plugin is given, or what it hands to `bridge`.
    fn config(&self, host: &Host) -> Result<Value> {
        if self.flannel.is_some() {
            return Ok(json!({
                "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "dataDir": "/run/cni/flannel",
                "ipam": {"dataDir": "/run/cni/networks"},
                "delegate": {"isDefaultGateway": true, "hairpinMode": true},
            }));
        }
        let text = host.read_file("/run/flannel/subnet.env").context("no /run/flannel/subnet.env")?;
        let env = SubnetEnv::parse(&text).context("/run/flannel/subnet.env")?;
        let (subnet, network) = (env.subnets[0], env.networks[0]);
        Ok(json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "mtu": env.mtu,
            "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "dataDir": "/run/cni/networks",
                "ranges": [[{"subnet": subnet.to_string()}]], "routes": [{"dst": network.to_string()}],
            },
        }))
    }

    fn connect(&self, host: &Host, name: &str) -> Result<End> {
        let ns = host.namespace(name);
        let first = self.flannel.as_ref().unwrap_or(&self.bridge);
        let program = first.display().to_string();
        let folder = |path: &FilePath| path.parent().unwrap_or(FilePath::new("/")).display().to_string();
        let mut command = host.ns().command(&[&program]);
        command
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", name)
            .env("CNI_NETNS", format!("/run/netns/{name}"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", format!("{}:{}", folder(first), folder(&self.bridge)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // flannel's plugin is talkative.
            .stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("start {program}"))?;
        let mut stdin = child.stdin.take().context("a pipe")?;
        stdin.write_all(self.config(host)?.to_string().as_bytes()).context("write to the plugin")?;
        drop(stdin);
        let output = child.wait_with_output().context("wait for the plugin")?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{program} ended with {}: {}", output.status, text.trim());
        }
        let result: Value = serde_json::from_str(&text).context("what ADD printed")?;
        let address = result["ips"][0]["address"].as_str().and_then(|a| a.split('/').next());
        let address = address.with_context(|| format!("no address in {text}"))?;
        Ok(End { address: address.parse().context(address.to_owned())?, holder: Holder::Namespace(ns) })
    }
}
