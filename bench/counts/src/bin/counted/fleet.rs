//! A fleet of 10,000 hosts as one of them sees it: leases, rules, and a kernel as the daemon's
//! model of it. Everything follows from the host's number. Used by `operations.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use loden_core::diff::{Operation, Scope, applied, base, peers};
use loden_core::leases::{LeaseRecord, LeaseTable};
use loden_core::observed::{Link, Observed, VxlanLink};
use loden_core::options::Options;
use loden_core::peers::{PeerBook, Rules};
use loden_core::plan::{Base, Desired, Device, Inputs, plan};
use loden_core::underlay::{Endpoint, Underlay};
use loden_proto::config::{DEFAULT_VNI, NetworkConfig};
use loden_proto::lease::{BackendData, LeaseKey, LeaseValue, LodenMember};
use loden_proto::{Family, Mac};

/// How many peers.
pub(crate) const PEERS: u32 = 10_000;
/// How many of them leave at once.
pub(crate) const LEAVING: u32 = PEERS * 2 / 5;
const CONFIG: &str = r#"{"Network":"10.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
const OWN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 16, 0, 1));
const OWN_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const UNDERLAY: u32 = 2;
const DEVICE: u32 = 10;

/// A lease as etcd hands it over: the last component of its key, its value and its revisions.
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) value: Vec<u8>,
    create_revision: i64,
    mod_revision: i64,
}

/// The lease of a host, as the daemon on it writes it. In its second life it has another VTEP.
pub(crate) fn stored(number: u32, life: u8) -> Stored {
    let [_, _, high, low] = (number + 1).to_be_bytes();
    let member = LodenMember {
        host_id: format!("{:032x}", u128::from(number) * 0x9e37_79b9_7f4a_7c15).into(),
        boot_id: format!("6f1c0d1e-9c5b-4e55-8d0{life}-{number:012x}").into(),
        host_name: format!("node-{number}.rack-{}.example.net", number / 40).into(),
        version: "0.1.0".into(),
        keep_alive_seconds: 60,
        ..LodenMember::default()
    };
    let value = LeaseValue {
        public_ip: Some([172, 17, high, low].into()),
        backend_type: "vxlan".into(),
        backend_data: BackendData::Vxlan {
            vni: Some(DEFAULT_VNI),
            vtep_mac: Mac([0x0e, life, 0x5a, 1, high, low]),
        },
        loden: Some(Arc::new(member)),
        ..LeaseValue::default()
    };
    // Hosts of neighbouring subnets did not get their leases one after the other.
    let create_revision = i64::from(number * 7919 % PEERS) + 2;
    Stored {
        name: format!("10.{}.{low}.0-24", 64 + u32::from(high)),
        value: value.to_json().into_bytes(),
        create_revision,
        mod_revision: create_revision + i64::from(life) * i64::from(PEERS),
    }
}

/// The leases of all peers, in the order of their keys, as etcd lists them.
pub(crate) fn all_stored() -> Vec<Stored> {
    let mut all: Vec<Stored> = (0..PEERS).map(|number| stored(number, 1)).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// A lease as the store takes it in.
pub(crate) fn record(stored: &Stored) -> LeaseRecord {
    LeaseRecord {
        value: LeaseValue::parse(&stored.value).map_err(|e| e.to_string()),
        etcd_lease: 0x7000_0000_0000 + stored.create_revision,
        create_revision: stored.create_revision,
        mod_revision: stored.mod_revision,
    }
}

/// All leases.
pub(crate) fn table() -> LeaseTable {
    let mut table = LeaseTable::default();
    for stored in &all_stored() {
        table.put(&stored.name, record(stored));
    }
    table
}

/// Deletes the keys of those that leave.
pub(crate) fn leave(table: &mut LeaseTable) {
    (0..LEAVING).for_each(|number| table.delete(&stored(number, 1).name));
}

/// All peers.
pub(crate) fn book(table: &LeaseTable, rules: &Arc<Rules>) -> PeerBook {
    let mut book = PeerBook::default();
    let refused = book.update(table.clone(), Arc::clone(rules), 0);
    assert!(refused.is_empty(), "every lease is sound, but: {refused:?}");
    book
}

/// What one host knows of itself.
pub(crate) struct Own {
    inputs: Inputs,
    options: Options,
}

impl Own {
    pub(crate) fn new() -> Self {
        let config = NetworkConfig::parse(CONFIG).expect("a config that the tests of its parser cover");
        let inputs = Inputs {
            config: config.into(),
            own: LeaseKey::parse("10.127.255.0-24").expect("a key"),
            macs: [(Family::V4, OWN_MAC)].into(),
            underlay: Underlay {
                interface: "eth0".into(),
                index: UNDERLAY,
                mtu: 1500,
                endpoints: vec![Endpoint { local: OWN_ADDRESS, public: OWN_ADDRESS }],
                on_link: vec!["172.16.0.0/24".parse().expect("a subnet")],
            },
            adopted: BTreeMap::new(),
            bridges: BTreeSet::new(),
            docker_shares: false,
        };
        Self { inputs, options: Options::named("loden") }
    }

    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::new(Rules {
            config: Arc::clone(&self.inputs.config),
            own: Some(self.inputs.own),
            host_id: "us".into(),
            own_macs: vec![OWN_MAC],
            own_addresses: [OWN_ADDRESS].into(),
            on_link: self.inputs.underlay.on_link.clone(),
            hold: 600_000,
        })
    }

    pub(crate) fn base(&self) -> Base {
        plan(&self.inputs, &self.options)
    }
}

/// A kernel with the underlay's interface and nothing of ours.
pub(crate) fn empty_kernel() -> Observed {
    let mut observed = Observed { has_nexthops: true, ..Observed::default() };
    observed.links.insert(UNDERLAY, link(UNDERLAY, "eth0", 1500));
    observed
}

/// Makes the kernel hold what is wanted, but for the peers.
pub(crate) fn bring_base(desired: &Desired, observed: &mut Observed) {
    loop {
        let (operations, _) = base(desired, observed);
        if operations.is_empty() {
            return;
        }
        for operation in &operations {
            match operation {
                Operation::AddDevice(device) => add_device(observed, device),
                other => applied(observed, other),
            }
        }
    }
}

/// Makes the kernel hold the peers' objects as well.
pub(crate) fn bring_peers(desired: &Desired, observed: &mut Observed) {
    for operation in peers(desired, observed, Scope::All).0 {
        applied(observed, &operation);
    }
}

/// What the kernel does for `AddDevice`.
fn add_device(observed: &mut Observed, device: &Device) {
    let vxlan = VxlanLink {
        vni: device.vni,
        port: device.port,
        local: Some(device.local),
        lower: device.lower,
        learning: device.learning,
        gbp: device.gbp,
        group: false,
        external: false,
        family: device.family,
    };
    let link = link(DEVICE, &device.name, device.mtu);
    observed.links.insert(DEVICE, Link { mac: Some(device.mac), up: false, vxlan: Some(vxlan), ..link });
}

fn link(index: u32, name: &str, mtu: u32) -> Link {
    Link {
        index,
        name: name.into(),
        other_names: Vec::new(),
        mac: None,
        mtu,
        up: true,
        loopback: false,
        bridge: false,
        controller: 0,
        vxlan: None,
    }
}
