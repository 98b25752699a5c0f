//! The fleet: leases in etcd as that many hosts would hold them. Used by every part of the group, and by
//! group `dns`.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use etcd_client::{Client, DeleteOptions, PutOptions};
use loden_proto::lease::{BackendData, LeaseKey, LeaseValue, LodenMember};
use loden_proto::{Mac, Subnet};
use loden_tests::{Etcd, PREFIX};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The overlay network. Daemons choose their own subnets from [`OWN_FIRST`] on, which in the order of
/// keys is behind the fleet's.
pub(crate) const NETWORK: &str = "10.0.0.0/8";
const OWN_FIRST: &str = "10.200.0.0";
const OWN_LAST: &str = "10.200.255.0";
/// A fleet's subnets have the second and third number of their addresses from here on, so many of the
/// third to one of the second: all of three digits, so that keys are in order of hosts.
const FIRST: u32 = 100;
const A_ROW: u32 = 150;
/// Public addresses of the fleet's hosts: behind the lab's router, so that packets go nowhere.
const PUBLIC: u32 = u32::from_be_bytes([172, 16, 0, 0]);
const VNI: u32 = 1;
/// Seconds. As flannel's.
const TTL: i64 = 24 * 3600;
/// Requests under way at once while the fleet is made.
const TOGETHER: usize = 64;

/// Writes the fleet's leases. Made and used on a thread in etcd's namespace.
pub(crate) struct Fleet {
    runtime: Runtime,
    client: Client,
    /// Hosts whose leases are in etcd: the first so many.
    size: u32,
    /// An etcd lease for keys that come and go while the clock runs.
    passing: i64,
    http: String,
}

/// When leases were put.
pub(crate) struct Puts {
    /// Before the first was sent.
    pub(crate) first_sent: Instant,
    /// After etcd had answered the last.
    pub(crate) last_answered: Instant,
}

/// The address of a host's subnet.
pub(crate) fn address(host: u32) -> Ipv4Addr {
    let (second, third) = (FIRST + host / A_ROW, FIRST + host % A_ROW);
    Ipv4Addr::from(10 << 24 | second << 16 | third << 8)
}

/// The subnet of a host of the fleet.
pub(crate) fn subnet(host: u32) -> Subnet {
    Subnet::containing(address(host).into(), 24).unwrap_or_else(|_| unreachable!("24 <= 32"))
}

/// Where the routes to these hosts lead, as notifications tell it.
pub(crate) fn routes(hosts: Range<u32>) -> BTreeSet<Ipv4Addr> {
    hosts.map(address).collect()
}

/// The address that a host's packets are sent to.
pub(crate) fn public(host: u32) -> Ipv4Addr {
    Ipv4Addr::from(PUBLIC + host + 1)
}

/// The MAC of its VXLAN device.
pub(crate) fn mac(host: u32) -> Mac {
    let [_, a, b, c] = host.to_be_bytes();
    Mac([2, 0x10, 0, a, b, c])
}

/// The key of its lease in etcd.
fn key(host: u32) -> String {
    format!("{PREFIX}/subnets/{}", LeaseKey::single(subnet(host)))
}

/// The value of its lease, as Loden writes it; flanneld reads it too.
fn value(host: u32) -> String {
    let member = LodenMember {
        host_id: format!("{host:032x}").into(),
        boot_id: format!("00000000-0000-4000-8000-{host:012x}").into(),
        host_name: format!("host-{host}.example.com").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        keep_alive_seconds: 60,
        ..LodenMember::default()
    };
    let value = LeaseValue {
        public_ip: Some(public(host)),
        backend_type: "vxlan".into(),
        backend_data: BackendData::Vxlan { vni: Some(VNI), vtep_mac: mac(host) },
        loden: Some(Arc::new(member)),
        ..LeaseValue::default()
    };
    value.to_json()
}

impl Fleet {
    /// Connects to etcd.
    pub(crate) fn connect(etcd: &Etcd) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (client, passing) = runtime.block_on(async {
            let mut client = Client::connect([etcd.url()], None).await?;
            let passing = client.lease_grant(TTL, None).await?.id();
            anyhow::Ok((client, passing))
        })?;
        Ok(Self { runtime, client, size: 0, passing, http: etcd.url().replace("http://", "") })
    }

    /// Writes the network config.
    pub(crate) fn configure(&mut self) -> Result<()> {
        let config = format!(
            r#"{{"Network":"{NETWORK}","SubnetLen":24,"SubnetMin":"{OWN_FIRST}","SubnetMax":"{OWN_LAST}","Backend":{{"Type":"vxlan"}}}}"#
        );
        let put = self.client.put(format!("{PREFIX}/config"), config, None);
        self.runtime.block_on(put)?;
        Ok(())
    }

    /// How many hosts it has.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Makes it that large, each key with an etcd lease of its own, and forgets every other lease:
    /// those of daemons measured before.
    pub(crate) fn resize(&mut self, size: u32) -> Result<()> {
        if size.abs_diff(self.size) > 1000 {
            eprintln!("control: a fleet of {size} leases");
        }
        let (client, from) = (self.client.clone(), self.size);
        let end = self.runtime.block_on(async {
            let mut client = client;
            let behind = DeleteOptions::new().with_range(format!("{PREFIX}/subnets0"));
            client.delete(key(size.min(from)), Some(behind)).await?;
            let mut tasks: JoinSet<Result<()>> = JoinSet::new();
            for host in from..size {
                let mut client = client.clone();
                if tasks.len() >= TOGETHER {
                    tasks.join_next().await.context("there are tasks")???;
                }
                tasks.spawn(async move {
                    let lease = client.lease_grant(TTL, None).await?.id();
                    client.put(key(host), value(host), Some(PutOptions::new().with_lease(lease))).await?;
                    Ok(())
                });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            anyhow::Ok(())
        });
        end?;
        self.size = size;
        Ok(())
    }

    /// Puts one lease; returns when the request was sent.
    pub(crate) fn put(&mut self, host: u32) -> Result<Instant> {
        let options = PutOptions::new().with_lease(self.passing);
        let (key, value) = (key(host), value(host));
        let start = Instant::now();
        self.runtime.block_on(self.client.put(key, value, Some(options)))?;
        Ok(start)
    }

    /// Puts the leases of these hosts as fast as etcd takes them.
    pub(crate) fn put_all(&mut self, hosts: Range<u32>) -> Result<Puts> {
        let (client, lease) = (self.client.clone(), self.passing);
        let first_sent = Instant::now();
        self.runtime.block_on(async {
            let mut tasks: JoinSet<Result<()>> = JoinSet::new();
            for host in hosts {
                if tasks.len() >= TOGETHER {
                    tasks.join_next().await.context("there are tasks")???;
                }
                let mut client = client.clone();
                tasks.spawn(async move {
                    let options = PutOptions::new().with_lease(lease);
                    client.put(key(host), value(host), Some(options)).await?;
                    Ok(())
                });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            Ok(Puts { first_sent, last_answered: Instant::now() })
        })
    }

    /// Deletes the leases of these hosts in one request; returns when it was answered.
    pub(crate) fn delete_all(&mut self, hosts: Range<u32>) -> Result<Instant> {
        let options = DeleteOptions::new().with_range(key(hosts.end));
        self.runtime.block_on(self.client.delete(key(hosts.start), Some(options)))?;
        Ok(Instant::now())
    }

    /// Puts the leases of these hosts one by one, and watches them; returns, for each put, the time until
    /// the watch told of it.
    pub(crate) fn events(&mut self, hosts: Range<u32>) -> Result<Vec<Duration>> {
        let mut client = self.client.clone();
        let lease = self.passing;
        self.runtime.block_on(async {
            let mut watcher = client.clone();
            let options = etcd_client::WatchOptions::new().with_prefix();
            let mut stream = watcher.watch(format!("{PREFIX}/subnets/"), Some(options)).await?;
            if !stream.message().await?.context("the watch is made")?.created() {
                bail!("etcd did not answer that the watch was made");
            }
            let mut times = Vec::new();
            for host in hosts {
                let options = PutOptions::new().with_lease(lease);
                let start = Instant::now();
                let put = client.put(key(host), value(host), Some(options));
                let (put, event) = tokio::join!(put, async {
                    let message = stream.message().await;
                    (message, Instant::now())
                });
                put?;
                let (message, at) = event;
                if message?.context("the watch goes on")?.events().len() != 1 {
                    bail!("the watch told of something else");
                }
                times.push(at - start);
            }
            Ok(times)
        })
    }

    /// How many requests etcd has received so far: unary ones and messages on streams
    /// (`grpc_server_msg_received_total`).
    pub(crate) fn requests(&self) -> Result<f64> {
        use std::io::{Read as _, Write as _};
        let mut connection = std::net::TcpStream::connect(&self.http).context("etcd's metrics")?;
        write!(connection, "GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        connection.read_to_string(&mut text)?;
        let lines = text.lines().filter(|l| l.starts_with("grpc_server_msg_received_total{"));
        Ok(lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}
