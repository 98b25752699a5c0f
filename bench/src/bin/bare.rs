//! `loden-bench-bare --etcd-endpoints=URL`: follows the leases in etcd with as little as etcd and the
//! kernel need. One paged list, one watch, and for each lease the messages that Loden would send; no
//! lease of its own, no filters, no check of what a lease says, no look at what is there. What Loden
//! takes beyond it is Loden's own cost.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use etcd_client::{Client, EventType, GetOptions, KeyValue, WatchOptions};
use loden_core::diff::Operation;
use loden_core::observed::{Nexthop, Route, Via};
use loden_core::plan::Device;
use loden_daemon::kernel::Kernel;
use loden_proto::lease::{BackendData, LeaseKey, LeaseValue};
use loden_proto::{Family, Mac, ROUTE_PROTOCOL};

const PREFIX: &str = "/coreos.com/network/subnets/";
const END: &str = "/coreos.com/network/subnets0";
/// Keys a page, as Loden: 10,000 leases are more than the 4 MiB that a client takes at once.
const PAGE: i64 = 2000;

/// What takes a lease's objects away again.
type Peers = BTreeMap<LeaseKey, [Operation; 4]>;

fn main() -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run())
}

async fn run() -> Result<()> {
    let url = std::env::args().find_map(|a| a.strip_prefix("--etcd-endpoints=").map(str::to_owned));
    let mut client = Client::connect([url.context("--etcd-endpoints=URL is needed")?], None).await?;
    let mut kernel = Kernel::open(Path::new("/run"), "bare")?;
    let device = add_device(&mut kernel).await?;

    let mut peers = Peers::new();
    let (mut from, mut revision) = (PREFIX.to_owned(), 0);
    loop {
        let mut options = GetOptions::new().with_range(END).with_limit(PAGE);
        if revision > 0 {
            options = options.with_revision(revision);
        }
        let page = client.get(from.as_str(), Some(options)).await?;
        if revision == 0 {
            revision = page.header().map_or(0, |h| h.revision());
        }
        bring(&mut kernel, device, page.kvs(), &mut peers).await?;
        match page.kvs().last() {
            Some(last) if page.more() => from = format!("{}\0", last.key_str()?),
            _ => break,
        }
    }
    let options = WatchOptions::new().with_range(END).with_start_revision(revision + 1);
    let mut stream = client.watch(PREFIX, Some(options)).await?;
    while let Some(response) = stream.message().await? {
        let (mut come, mut gone) = (Vec::new(), Vec::new());
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            match event.event_type() {
                EventType::Put => come.push(kv.clone()),
                EventType::Delete => gone.extend(peers.remove(&key(kv)?).into_iter().flatten()),
            }
        }
        bring(&mut kernel, device, &come, &mut peers).await?;
        kernel.apply(&gone).await?;
    }
    bail!("the watch ended")
}

async fn add_device(kernel: &mut Kernel) -> Result<u32> {
    const NAME: &str = "bare.1";
    let device = Device {
        name: NAME.into(),
        family: Family::V4,
        vni: 1,
        port: 8472,
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mtu: 1450,
        local: IpAddr::from([0, 0, 0, 0]),
        lower: index("eth0")?,
        learning: false,
        gbp: false,
        address: IpAddr::from([10, 0, 0, 0]),
    };
    carry_out(kernel, &[Operation::AddDevice(Box::new(device))]).await?;
    let index = index(NAME)?;
    carry_out(kernel, &[Operation::SetUp { device: index, name: NAME.into(), port: 8472 }]).await?;
    Ok(index)
}

fn index(name: &str) -> Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    rustix::net::netdevice::name_to_index(socket, name).with_context(|| format!("the index of {name}"))
}

fn key(kv: &KeyValue) -> Result<LeaseKey> {
    Ok(LeaseKey::parse(kv.key_str()?.trim_start_matches(PREFIX))?)
}

fn nexthop_id(key: &LeaseKey) -> u32 {
    let Some(IpAddr::V4(address)) = key.subnet(Family::V4).map(|s| s.address()) else { return 1 };
    u32::from(address) >> 8
}

async fn bring(kernel: &mut Kernel, device: u32, kvs: &[KeyValue], peers: &mut Peers) -> Result<()> {
    let (mut first, mut nexthops, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    for kv in kvs {
        let (key, value) = (key(kv)?, LeaseValue::parse(kv.value())?);
        let (Some(subnet), Some(public), BackendData::Vxlan { vtep_mac: mac, .. }) =
            (key.subnet(Family::V4), value.public_ip, value.backend_data)
        else {
            continue;
        };
        let (address, endpoint, id) = (subnet.address(), public.into(), nexthop_id(&key));
        first.push(Operation::SetFdb { device, mac, endpoint });
        first.push(Operation::SetNeighbour { device, address, mac });
        let hop = Nexthop { device, gateway: Some(address), onlink: true, protocol: ROUTE_PROTOCOL };
        nexthops.push(Operation::AddNexthop(id, hop));
        let route = Route { subnet, via: Via::Nexthop(id), protocol: ROUTE_PROTOCOL, metric: 0 };
        routes.push(Operation::SetRoute { route: route.clone(), replace: false });
        let removals = [
            Operation::DeleteRoute(route),
            Operation::DeleteNexthop(id),
            Operation::DeleteNeighbour { device, address },
            Operation::DeleteFdb { device, mac, endpoint },
        ];
        peers.insert(key, removals);
    }
    first.extend(nexthops);
    first.extend(routes);
    carry_out(kernel, &first).await
}

/// Carries operations out, none of which may be refused.
async fn carry_out(kernel: &mut Kernel, operations: &[Operation]) -> Result<()> {
    match kernel.apply(operations).await?.into_iter().next() {
        Some((_, error)) => Err(error.into()),
        None => Ok(()),
    }
}
