//! The names that are asked for: containers of a fleet's hosts, as records in etcd for Loden and, with the same
//! addresses, as other servers read them. Used by the group.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use etcd_client::{Client, DeleteOptions, PutOptions, Txn, TxnOp, WatchOptions};
use loden_proto::name_record::{NameRecord, NameSource};
use loden_tests::{Etcd, PREFIX};
use tokio::runtime::Runtime;

use super::question::{Question, Said};
use crate::control::fleet;

/// Hosts that the containers are on, which are in etcd as hosts of [`fleet`].
pub(crate) const HOSTS: u32 = 100;
/// The zone of a network config that does not say otherwise.
pub(crate) const ZONE: &str = "loden.internal";
/// Below which addresses have their names.
pub(crate) const REVERSE_ZONE: &str = "10.in-addr.arpa";
/// Seconds that an answer may be remembered: Loden's.
pub(crate) const TTL: u32 = 5;
/// The last number of the first containers' addresses; Loden's own are below.
const FIRST: u32 = 10;
/// Below it CoreDNS's plugin `etcd` finds records, as SkyDNS did.
pub(crate) const SKYDNS: &str = "/skydns";
/// etcd takes 128 operations in a transaction.
const PUTS_AT_ONCE: usize = 100;
/// Seconds.
const LEASE: i64 = 24 * 3600;

/// A container's name in full.
fn name(number: u32) -> String {
    format!("c{number}.{ZONE}")
}

/// Its address, in the subnet of its host.
fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(fleet::address(number % HOSTS)) + FIRST + number / HOSTS)
}

/// For the addresses of so many containers.
pub(crate) fn forward(count: u32) -> Vec<Question> {
    let question = |number| Question::address(&name(number), Said::Address(address(number)));
    (0..count).map(question).collect()
}

/// For the names of their addresses.
pub(crate) fn reverse(count: u32) -> Vec<Question> {
    let question = |number| Question::reverse(address(number), Said::Name(name(number)));
    (0..count).map(question).collect()
}

/// For names that nobody has.
pub(crate) fn nobody(count: u32) -> Vec<Question> {
    (0..count).map(|number| Question::address(&format!("nobody{number}.{ZONE}"), Said::NoName)).collect()
}

/// The names as a hosts file (hosts(5)).
pub(crate) fn hosts_file(count: u32) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "{} {}", address(number), name(number));
        text
    })
}

/// The two zones as files (RFC 1035 §5).
pub(crate) fn zone_files(count: u32) -> [String; 2] {
    let head = |zone: &str| {
        format!(
            "$ORIGIN {zone}.\n$TTL {TTL}\n@ IN SOA ns.{ZONE}. hostmaster.{ZONE}. 1 60 10 86400 2\n@ IN NS ns.{ZONE}.\n"
        )
    };
    let (mut forward, mut reverse) = (head(ZONE), head(REVERSE_ZONE));
    let _ = writeln!(forward, "ns IN A 192.0.2.53");
    for number in 0..count {
        let (name, [a, b, c, d]) = (name(number), address(number).octets());
        let _ = writeln!(forward, "{name}. IN A {}", address(number));
        let _ = writeln!(reverse, "{d}.{c}.{b}.{a}.in-addr.arpa. IN PTR {name}.");
    }
    [forward, reverse]
}

/// The keys and values of a container, for Loden and for CoreDNS's plugin `etcd`: forward and back.
fn entries(number: u32) -> [(String, String); 3] {
    let (name, address) = (name(number), address(number));
    let [a, b, c, d] = address.octets();
    [
        record(&format!("veth{number}"), number % HOSTS, &format!("c{number}"), address),
        skydns(&name, address),
        (format!("{SKYDNS}/arpa/in-addr/{a}/{b}/{c}/{d}"), format!(r#"{{"host":"{name}","ttl":{TTL}}}"#)),
    ]
}

/// A record of Loden's: an endpoint of a host of the fleet, with this name relative to the zone.
pub(crate) fn record(endpoint: &str, host: u32, name: &str, address: Ipv4Addr) -> (String, String) {
    let record = NameRecord {
        names: name.parse().into_iter().collect(),
        groups: Vec::new(),
        addresses: vec![address.into()],
        ports: Vec::new(),
        since: 1_763_755_200_000,
        source: NameSource::Cni,
    };
    let lease = fleet::subnet(host).to_string().replace('/', "-");
    (format!("{PREFIX}/loden/names/{lease}/{endpoint}"), record.to_json())
}

/// A record of SkyDNS's.
pub(crate) fn skydns(name: &str, address: Ipv4Addr) -> (String, String) {
    let path = name.rsplit('.').collect::<Vec<_>>().join("/");
    (format!("{SKYDNS}/{path}"), format!(r#"{{"host":"{address}","ttl":{TTL}}}"#))
}

/// The etcd that has them. Made and used on a thread in etcd's namespace.
pub(crate) struct Store {
    runtime: Runtime,
    client: Client,
    /// The etcd lease of the names that stay, and one for those that pass: a write on a lease with many keys
    /// takes etcd longer than on a host's.
    staying: i64,
    passing: i64,
}

/// A change of one key.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// It is put, with a value.
    Put(String, String),
    /// It is deleted.
    Delete(String),
}

impl Store {
    /// Connects.
    pub(crate) fn connect(etcd: &Etcd) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (client, staying, passing) = runtime.block_on(async {
            let mut client = Client::connect([etcd.url()], None).await?;
            let staying = client.lease_grant(LEASE, None).await?.id();
            let passing = client.lease_grant(LEASE, None).await?.id();
            anyhow::Ok((client, staying, passing))
        })?;
        Ok(Self { runtime, client, staying, passing })
    }

    /// Writes the names of so many containers, in place of all others.
    pub(crate) fn set(&mut self, count: u32) -> Result<()> {
        let (client, lease) = (&mut self.client, self.staying);
        self.runtime.block_on(async {
            for below in [format!("{PREFIX}/loden/names/"), format!("{SKYDNS}/")] {
                client.delete(below, Some(DeleteOptions::new().with_prefix())).await?;
            }
            let options = PutOptions::new().with_lease(lease);
            let put = |(key, value)| TxnOp::put(key, value, Some(options.clone()));
            let puts: Vec<TxnOp> = (0..count).flat_map(entries).map(put).collect();
            for part in puts.chunks(PUTS_AT_ONCE) {
                client.txn(Txn::new().and_then(part)).await?;
            }
            Ok(())
        })
    }

    /// Changes a key; returns when the request was sent.
    pub(crate) fn change(&mut self, change: Change) -> Result<Instant> {
        let start = Instant::now();
        self.runtime.block_on(carry_out(&mut self.client, self.passing, change))?;
        Ok(start)
    }

    /// Makes these changes one after the other and watches them, as a client that does nothing else would;
    /// how long it was until the watch told of each.
    pub(crate) fn watch(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<Vec<Duration>> {
        let (client, lease) = (&mut self.client, self.passing);
        self.runtime.block_on(async {
            let mut watcher = client.clone();
            let options = WatchOptions::new().with_prefix();
            let mut stream = watcher.watch(format!("{PREFIX}/loden/names/"), Some(options)).await?;
            if !stream.message().await?.context("the watch is made")?.created() {
                bail!("etcd did not answer that the watch was made");
            }
            let mut times = Vec::new();
            for change in changes {
                let start = Instant::now();
                let (done, told) = tokio::join!(carry_out(client, lease, change), async {
                    let message = stream.message().await;
                    (message, Instant::now())
                });
                done?;
                let (message, at) = told;
                if message?.context("the watch goes on")?.events().len() != 1 {
                    bail!("the watch told of something else");
                }
                times.push(at - start);
            }
            Ok(times)
        })
    }
}

async fn carry_out(client: &mut Client, lease: i64, change: Change) -> Result<()> {
    match change {
        Change::Put(key, value) => {
            _ = client.put(key, value, Some(PutOptions::new().with_lease(lease))).await?;
        }
        Change::Delete(key) => _ = client.delete(key, None).await?,
    }
    Ok(())
}
