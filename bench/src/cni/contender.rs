//! Who is measured: Loden's plugin, flannel's chain, and the kernel's floor. A contender turns a
//! sandbox into the calls that connect, check and disconnect it. Used by `mod.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use loden_core::port_filter;
use loden_proto::Subnet;
use loden_proto::subnet_env::{LeaseState, SubnetEnv};
use serde_json::{Value, json};

use super::call::Call;
use crate::host::Sandbox;
use crate::peers;

const NETWORK: &str = "10.5.0.0/16";
const MTU: u32 = 1450;
const IFNAME: &str = "eth0";
/// The port filter's.
const TABLE: &str = "loden";
/// The floor's subnet is 10.5.10.0/24; a sandbox's address is this and its number.
const FLOOR_FIRST: u32 = u32::from_be_bytes([10, 5, 10, 2]);
const FLOOR_BRIDGE: &str = "floor0";

/// One way of connecting containers.
#[derive(Debug)]
pub(crate) struct Contender {
    /// For tables.
    pub(crate) name: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A CNI plugin, its `CNI_PATH`, its configuration, whether its CHECK works with that.
    Plugin { program: PathBuf, path: String, config: Value, checks: bool },
    /// The floor's program, the index of its bridge.
    Floor { program: PathBuf, bridge: u32 },
}

impl Contender {
    /// Loden's plugin with the packaged configuration.
    pub(crate) fn loden(program: PathBuf) -> Result<Self> {
        subnet_env("/run/loden/subnet.env", "10.5.8.0/24", true)?;
        make_port_filter()?;
        let config = json!({"cniVersion": "1.0.0", "name": "loden", "type": "loden"});
        let path = program.parent().unwrap_or(Path::new("/")).display().to_string();
        Ok(Self { name: "Loden".into(), kind: Kind::Plugin { program, path, config, checks: true } })
    }

    /// flannel's chain: its plugin, where there is one, hands to `bridge` what is written here for
    /// the case without it. All state in /run, as Loden's. `None` where `bridge` is missing.
    pub(crate) fn chain() -> Result<Option<Self>> {
        let Some(bridge) = peers::BRIDGE.find() else { return Ok(None) };
        subnet_env("/run/flannel/subnet.env", "10.5.9.0/24", false)?;
        let host_local = "/run/cni/networks";
        let (name, program, config, checks) = match peers::FLANNEL_CNI.find() {
            Some(program) => {
                let config = json!({
                    "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel", "dataDir": "/run/cni/flannel",
                    "ipam": {"dataDir": host_local},
                    "delegate": {"isDefaultGateway": true, "bridge": "cni0"},
                });
                // flannel has host-local add a route without a gateway, which the bridge plugin's CHECK
                // then does not find.
                ("flannel + bridge + host-local", program, config, false)
            }
            None => {
                let config = json!({
                    "cniVersion": "1.0.0", "name": "cbr0", "type": "bridge", "bridge": "cni0", "mtu": MTU,
                    "isGateway": true, "isDefaultGateway": true, "ipMasq": false,
                    "ipam": {
                        "type": "host-local", "dataDir": host_local,
                        "ranges": [[{"subnet": "10.5.9.0/24"}]],
                    },
                });
                ("bridge + host-local", bridge.clone(), config, true)
            }
        };
        let folder = |path: &Path| path.parent().unwrap_or(Path::new("/")).display().to_string();
        let path = format!("{}:{}", folder(&program), folder(&bridge));
        let kind = Kind::Plugin { program, path, config, checks };
        Ok(Some(Self { name: name.into(), kind }))
    }

    /// The kernel alone; its bridge is made here.
    pub(crate) fn floor(program: PathBuf) -> Result<Self> {
        let gateway = Ipv4Addr::from(FLOOR_FIRST - 1);
        for line in [
            format!("link add {FLOOR_BRIDGE} mtu {MTU} type bridge"),
            format!("addr add {gateway}/24 dev {FLOOR_BRIDGE}"),
            format!("link set {FLOOR_BRIDGE} up"),
        ] {
            let status = Command::new("ip").args(line.split(' ')).status().context("start ip")?;
            if !status.success() {
                bail!("ip {line}: {status}");
            }
        }
        // /sys shows the machine's interfaces, not this namespace's.
        let shown =
            Command::new("ip").args(["-j", "link", "show", FLOOR_BRIDGE]).output().context("start ip")?;
        let shown: Value = serde_json::from_slice(&shown.stdout).context("ip -j link")?;
        let bridge = shown[0]["ifindex"].as_u64().context("the bridge's index")?.try_into()?;
        Ok(Self { name: "kernel".into(), kind: Kind::Floor { program, bridge } })
    }

    /// Connects a sandbox.
    pub(crate) fn add(&self, sandbox: &Sandbox) -> Result<Call> {
        match &self.kind {
            Kind::Plugin { config, .. } => self.plugin("ADD", Some(sandbox), config),
            Kind::Floor { bridge, .. } => {
                let address = self.address(sandbox, "")?.to_string();
                self.floor_call(&[
                    "add",
                    &sandbox.path,
                    &host_end(sandbox),
                    IFNAME,
                    &bridge.to_string(),
                    &address,
                ])
            }
        }
    }

    /// Disconnects it.
    pub(crate) fn del(&self, sandbox: &Sandbox) -> Result<Call> {
        match &self.kind {
            Kind::Plugin { config, .. } => self.plugin("DEL", Some(sandbox), config),
            Kind::Floor { .. } => self.floor_call(&["del", &host_end(sandbox)]),
        }
    }

    /// Checks it, given what ADD printed; `None` for who has no such call.
    pub(crate) fn check(&self, sandbox: &Sandbox, added: &str) -> Result<Option<Call>> {
        let Kind::Plugin { config, checks: true, .. } = &self.kind else { return Ok(None) };
        let mut config = config.clone();
        config["prevResult"] = serde_json::from_str(added).context("what ADD printed")?;
        self.plugin("CHECK", Some(sandbox), &config).map(Some)
    }

    /// A command without a container; for the floor a process that does nothing.
    pub(crate) fn command(&self, command: &str) -> Result<Call> {
        match &self.kind {
            Kind::Plugin { config, .. } => {
                let mut config = config.clone();
                // The first version that has STATUS.
                config["cniVersion"] = "1.1.0".into();
                self.plugin(command, None, &config)
            }
            Kind::Floor { .. } => self.floor_call(&["nothing"]),
        }
    }

    /// The address that a sandbox was given, from what ADD printed.
    pub(crate) fn address(&self, sandbox: &Sandbox, added: &str) -> Result<Ipv4Addr> {
        if let Kind::Floor { .. } = self.kind {
            return Ok(Ipv4Addr::from(FLOOR_FIRST + u32::from(sandbox.number)));
        }
        let result: Value = serde_json::from_str(added).context("what ADD printed")?;
        let address = result["ips"][0]["address"].as_str().and_then(|a| a.split('/').next());
        let address = address.with_context(|| format!("no address in {added}"))?;
        address.parse().with_context(|| format!("{address} is no IPv4 address"))
    }

    fn plugin(&self, verb: &str, sandbox: Option<&Sandbox>, config: &Value) -> Result<Call> {
        let Kind::Plugin { program, path, .. } = &self.kind else { bail!("{} is no plugin", self.name) };
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_PATH", path)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if let Some(sandbox) = sandbox {
            command
                .env("CNI_CONTAINERID", &sandbox.id)
                .env("CNI_NETNS", &sandbox.path)
                .env("CNI_IFNAME", IFNAME);
        }
        Call::new(command, &config.to_string())
    }

    fn floor_call(&self, arguments: &[&str]) -> Result<Call> {
        let Kind::Floor { program, .. } = &self.kind else { bail!("{} is not the floor", self.name) };
        let mut command = Command::new(program);
        command.env_clear().args(arguments);
        Call::new(command, "")
    }

    /// Forgets which addresses were freed lately, as on a host that was quiet for a minute.
    pub(crate) fn rest(&self) -> Result<()> {
        match fs::remove_dir_all("/run/loden/ipam/loden/freed") {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).context("remove the marks of freed addresses")
            }
            _ => Ok(()),
        }
    }
}

fn host_end(sandbox: &Sandbox) -> String {
    format!("floor{}-{IFNAME}", sandbox.number)
}

/// The table in which the plugin guards ports, as the daemon makes it.
fn make_port_filter() -> Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("start nft")?;
    let mut input = nft.stdin.take().context("a pipe")?;
    input.write_all(port_filter::script(TABLE, &BTreeSet::new()).as_bytes()).context("write to nft")?;
    drop(input);
    let status = nft.wait().context("wait for nft")?;
    if !status.success() {
        bail!("nft: {status}");
    }
    Ok(())
}

/// What a daemon would write.
fn subnet_env(path: &str, subnet: &str, ours: bool) -> Result<()> {
    let parse = |text: &str| text.parse::<Subnet>().with_context(|| format!("{text} is no subnet"));
    let env = SubnetEnv {
        networks: vec![parse(NETWORK)?],
        subnets: vec![parse(subnet)?],
        mtu: MTU,
        masquerade: true,
        lease: LeaseState::Held,
        bridge: None,
        docker_ranges: Vec::new(),
        port_filter: ours.then(|| TABLE.into()),
        dns: None,
        state_dir: None,
    };
    let path = Path::new(path);
    let folder = path.parent().context("a path with a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    fs::write(path, env.to_text(ours)).with_context(|| format!("write {}", path.display()))
}
