//! `loden attach`: connect what no container runtime connects, by the CNI plugin's own code.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::IpAddr;

use anyhow::{Context, bail};
use clap::Args;
use loden_cni::attached::Attached;
use loden_cni::ifname::IfName;
use loden_cni::netns::Netns;
use loden_cni::options::Guard;
use loden_cni::request::Request;
use loden_cni::result::AddResult;
use loden_cni::wishes::Wishes;
use loden_cni::{Error, add, attached, gc};
use loden_proto::Mac;
use loden_proto::allocation::Allocation;
use loden_proto::subnet_env::SubnetEnv;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;

use super::daemon::PlaceArgs;
use super::output::{print, print_json, table};
use crate::attachments::{Attachments, NETWORK};
use crate::target::{self, Target};

/// Connect a namespace, a process or a machine that no container runtime connects.
#[derive(Debug, Args)]
#[command(
    after_help = "TARGET, in this order:\n  with a slash     a path: /run/netns/web, /proc/4711/ns/net\n  a name           of ip netns, if /run/netns has it, digits or not\n  digits           a pid\n  another name     a machine of systemd's (machinectl list), or an LXC container\n\nExamples:\n  ip netns add web; loden attach web            a plain namespace\n  loden attach 4711 --name db --ip 10.5.7.9     the namespace of a process, with a fixed address\n  systemd-nspawn --private-network -M box ...; loden attach box\n  loden detach web                              takes it back, also when web is gone\n\nIt works without the daemon, as the CNI plugin does. Attached once more, a target keeps what it has.\nWhat has gone without loden detach is freed by the next attach, or by loden endpoints --free-dead."
)]
pub(super) struct AttachArgs {
    /// A namespace, a pid or a machine; see below
    #[arg(value_name = "TARGET")]
    target: String,
    /// Its name in the DNS (docs/dns.md) and in loden endpoints, by which loden detach --name finds it
    /// [default: TARGET]
    #[arg(long = "name", value_name = "NAME")]
    wanted_name: Option<String>,
    /// This address of the host's subnet; once for each address family [default: the next that is free]
    #[arg(long = "ip", value_name = "IP")]
    wanted_addresses: Vec<IpAddr>,
    /// This MAC [default: one that follows from the address]
    #[arg(long = "mac", value_name = "MAC", value_parser = mac)]
    wanted_mac: Option<Mac>,
    /// The interface's name inside
    #[arg(long = "interface", value_name = "NAME", default_value = "eth0", value_parser = ifname)]
    wanted_ifname: IfName,
    /// Hold the target to its own MAC and addresses. Off for one that has further addresses of its own, or
    /// a link-local address that does not follow from its MAC
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    port_filter: bool,
    /// Print as JSON with stable names
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// What a target has been given; `loden attach --json`.
#[derive(Debug, Serialize)]
struct Given {
    target: String,
    name: String,
    container_id: String,
    netns: String,
    interface: String,
    mac: Mac,
    mtu: u32,
    bridge: String,
    host_interface: String,
    addresses: Vec<GivenAddress>,
    already_attached: bool,
}

#[derive(Debug, Serialize)]
struct GivenAddress {
    /// With the subnet's length.
    address: String,
    gateway: IpAddr,
}

pub(super) async fn run(args: AttachArgs) -> anyhow::Result<()> {
    be_root("attach")?;
    // The plugin's code enters the namespace with its thread.
    let (given, json) = tokio::task::spawn_blocking(move || {
        let json = args.json;
        attach(args).map(|given| (given, json))
    })
    .await
    .context("attaching has panicked")??;
    if given.already_attached {
        eprintln!("loden: {} is attached already", given.target);
    }
    if json { print_json(&given) } else { print(&text(&given)) }
}

pub(super) fn be_root(command: &str) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("loden {command} enters namespaces and so needs root; run it with sudo");
    }
    // The daemon reads the allocations as a user of its own.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

pub(super) fn attachments(place: &PlaceArgs) -> Attachments {
    Attachments { subnet_file: place.subnet_file(), data_dir: place.run_dir().join("ipam") }
}

pub(super) fn ifname(text: &str) -> Result<IfName, String> {
    IfName::new(text).map_err(str::to_owned)
}

fn mac(text: &str) -> Result<Mac, String> {
    let mac = text.parse::<Mac>().ok().filter(Mac::is_unicast);
    mac.ok_or_else(|| "must be an Ethernet address of one interface, such as 02:00:00:00:00:09".into())
}

fn attach(args: AttachArgs) -> anyhow::Result<Given> {
    let (target, netns) = target::resolve(&args.target)?;
    refuse_unfit(&args.target, &netns)?;
    let _lock = lock(&args.target, &netns)?;
    let attachments = attachments(&args.place);
    let (id, ifname) = (target.id(), &args.wanted_ifname);
    let name = args.wanted_name.clone().unwrap_or_else(|| args.target.clone());
    // Nobody else would: no runtime knows these.
    let own = BTreeSet::from([(id.clone(), ifname.to_string())]);
    if let Err(error) = gc::gc(&attachments.data_dir, NETWORK, &own) {
        eprintln!("loden: could not free what is gone: {error}");
    }
    refuse_taken_name(&attachments, &id, &name)?;
    let mut wishes = Wishes::default();
    wishes.addresses.extend(args.wanted_addresses.iter().map(IpAddr::to_canonical));
    wishes.mac = args.wanted_mac;
    wishes.name = Some(name.clone());
    let mut request = attachments.request(&id, ifname, &netns, wishes);
    if !args.port_filter {
        request.config.options.port_filter = Guard::Off;
    }
    if let Some(held) = attached::find(&request)? {
        refuse_other_wishes(&args, &held.allocations)?;
        return already(&args, &request, &held);
    }
    let result = add::add(&request).map_err(|e| explained(e, &args, &target))?;
    Ok(given(&args.target, &request, name, result))
}

/// Says what the plugin's error would say in the words of CNI.
fn refuse_unfit(target: &str, path: &str) -> anyhow::Result<()> {
    let Some(netns) = Netns::find(path).with_context(|| format!("cannot open the namespace of {target}"))?
    else {
        bail!("{path} is no network namespace; was it removed while something still held {target}?");
    };
    if netns.is_own()? {
        bail!(
            "{target} shares the network of this host ({path}), so there is nothing to attach; start it with a network of its own (systemd-nspawn --private-network)"
        );
    }
    Ok(())
}

/// One attach of a namespace at a time: the plugin relies on its runtime for that. Does not wait, since
/// what is inside could hold the lock too.
fn lock(target: &str, path: &str) -> anyhow::Result<File> {
    let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => {
            bail!("another loden attach works on {target} at this moment ({path} is locked); try again")
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {path}")),
    }
}

fn refuse_taken_name(attachments: &Attachments, id: &str, name: &str) -> anyhow::Result<()> {
    if name.is_empty() || name.len() > 253 || name.chars().any(char::is_control) {
        bail!("--name {name:?} must have 1 to 253 characters that can be printed");
    }
    let (all, _) = attachments.all()?;
    let taken = all.iter().flatten().find(|a| a.name.as_deref() == Some(name) && a.container_id != id);
    if let Some(Allocation { container_id, address, .. }) = taken {
        bail!(
            "the name {name} is that of {container_id} ({address}); give another with --name, or run loden detach --ip {address} first"
        );
    }
    Ok(())
}

/// A target that has something keeps it, so what is asked for must be that.
fn refuse_other_wishes(args: &AttachArgs, held: &[Allocation]) -> anyhow::Result<()> {
    let mut other = Vec::new();
    for wanted in args.wanted_addresses.iter().map(IpAddr::to_canonical) {
        if !held.iter().any(|a| a.address == wanted) {
            other.push(format!("--ip {wanted}"));
        }
    }
    if let Some(mac) = args.wanted_mac.filter(|mac| held.iter().any(|a| a.mac != *mac)) {
        other.push(format!("--mac {mac}"));
    }
    let differs = |name: &&String| held.iter().any(|a| a.name.as_ref() != Some(name));
    if let Some(name) = args.wanted_name.as_ref().filter(differs) {
        other.push(format!("--name {name}"));
    }
    if !other.is_empty() {
        bail!(
            "{} is attached already, {}, which is not {}; run loden detach {} first",
            args.target,
            spelled(held),
            other.join(" "),
            args.target
        );
    }
    Ok(())
}

/// `eth0 10.5.7.2 and fd00::2`
pub(super) fn spelled(held: &[Allocation]) -> String {
    let addresses: Vec<String> = held.iter().map(|a| a.address.to_string()).collect();
    let ifname = held.first().map(|a| a.ifname.as_str()).unwrap_or_default();
    format!("{ifname} {}", addresses.join(" and "))
}

fn explained(error: Error, args: &AttachArgs, target: &Target) -> anyhow::Error {
    match error {
        Error::InterfaceExists { ifname, netns } => anyhow::anyhow!(
            "{} has an interface {ifname} already ({netns}) that is not this network's, or has no allocation any more; choose another name with --interface, or, if it was attached here, run loden detach {} --interface {ifname} first",
            args.target,
            args.target
        ),
        Error::NoSubnet(path) => anyhow::anyhow!(
            "{} does not exist, so this host has no subnet yet; start the daemon (loden status), or name the file with --subnet-file",
            path.display()
        ),
        other => {
            anyhow::Error::from(other).context(format!("cannot attach {} ({})", args.target, target.id()))
        }
    }
}

fn given(target: &str, request: &Request, name: String, result: AddResult) -> Given {
    let AddResult { interfaces: [bridge, host, inside], addresses, .. } = result;
    let address = |a: &loden_cni::result::Address| GivenAddress {
        address: format!("{}/{}", a.address, a.subnet.length()),
        gateway: a.subnet.gateway(),
    };
    Given {
        target: target.into(),
        name,
        container_id: request.attachment.container_id.clone(),
        netns: request.attachment.netns.clone(),
        interface: inside.name,
        mac: inside.mac,
        mtu: inside.mtu,
        bridge: bridge.name,
        host_interface: host.name,
        addresses: addresses.iter().map(address).collect(),
        already_attached: false,
    }
}

fn already(args: &AttachArgs, request: &Request, held: &Attached) -> anyhow::Result<Given> {
    let path = &request.config.subnet_file;
    let env = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read {}: this host has no subnet; see loden status", path.display())
    })?;
    let env = SubnetEnv::parse(&env).map_err(|e| anyhow::anyhow!("{} {e}", path.display()))?;
    let mut addresses = Vec::new();
    for allocation in &held.allocations {
        let Some(subnet) = env.subnets.iter().find(|s| s.contains(allocation.address)) else {
            bail!(
                "{} is attached already, {}, but this host has another subnet now; run loden detach {} first",
                args.target,
                spelled(&held.allocations),
                args.target
            );
        };
        addresses.push(GivenAddress {
            address: format!("{}/{}", allocation.address, subnet.length()),
            gateway: subnet.gateway(),
        });
    }
    let first = held.allocations.first().context("no allocation")?;
    Ok(Given {
        target: args.target.clone(),
        name: first.name.clone().unwrap_or_default(),
        container_id: first.container_id.clone(),
        netns: request.attachment.netns.clone(),
        interface: first.ifname.clone(),
        mac: first.mac,
        mtu: held.mtu,
        bridge: held.bridge.clone().unwrap_or_default(),
        host_interface: first.host_veth.clone(),
        addresses,
        already_attached: true,
    })
}

fn text(given: &Given) -> String {
    let rows: Vec<Vec<String>> = given
        .addresses
        .iter()
        .map(|a| {
            vec![
                given.name.clone(),
                given.interface.clone(),
                a.address.clone(),
                a.gateway.to_string(),
                given.mac.to_string(),
                given.bridge.clone(),
            ]
        })
        .collect();
    table(&["NAME", "INTERFACE", "ADDRESS", "GATEWAY", "MAC", "BRIDGE"], &rows)
}
