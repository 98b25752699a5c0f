//! Lasting state: who this host is, and what it held last. Lost state costs a new host id and a
//! new subnet at worst, never correctness.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use loden_core::peers::Peer;
use loden_proto::name_record::NameRecord;
use loden_proto::{Family, Mac};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock;
use crate::files::{make_folder, write_atomically};

/// A file in the folder whose presence says that Docker uses the plugin's bridge, and with it the upper
/// half of the subnet. `loden docker-opts --shared` makes it.
pub const DOCKER_SHARES: &str = "docker-shares";

/// The folder of one network's lasting state.
#[derive(Debug, Clone)]
pub struct StateDir {
    folder: PathBuf,
}

/// Host id, bound to the machine id: a copied disk is another host.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct HostId {
    host_id: String,
    machine_id: String,
}

/// What the host held last. Enough to bring the data plane back while etcd is away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Last {
    /// The network config in force, every default written out.
    pub config: String,
    /// The lease's key.
    pub key: String,
    /// When the lease ends unless refreshed, in seconds since 1970; `u64::MAX` for a reservation.
    pub deadline: u64,
    /// MACs of our VXLAN devices.
    pub macs: BTreeMap<Family, Mac>,
}

/// What other hosts have told of names.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct OthersNames {
    /// When, in seconds since 1970.
    pub at: u64,
    /// The values of their leases, by the leases' keys in etcd.
    pub hosts: BTreeMap<String, Value>,
    /// Their endpoints.
    pub names: Vec<RememberedName>,
}

/// An endpoint's names as another host told them.
#[derive(Debug, Serialize, Deserialize)]
pub struct RememberedName {
    /// The host's lease, as its key in etcd.
    pub lease: String,
    /// The endpoint.
    pub endpoint: String,
    /// What it told.
    pub record: NameRecord,
}

const OTHERS_NAMES: &str = "others-names.json";

impl StateDir {
    /// Opens the folder, making it if need be.
    pub fn open(folder: &Path) -> io::Result<Self> {
        make_folder(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Its path.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The host's id. Drawn anew when there is none, or when the machine id is another than that
    /// it was drawn for: then the state was copied, and the original may live.
    pub fn host_id(&self) -> io::Result<String> {
        let machine_id = machine_id();
        if let Some(known) = self.read::<HostId>("host-id.json") {
            if known.machine_id == machine_id {
                return Ok(known.host_id);
            }
            tracing::warn!(
                host_id = known.host_id,
                "the lasting state belongs to another machine id; drawing a new host id and forgetting the former subnet"
            );
            self.forget();
        }
        self.new_host_id()
    }

    /// Draws a new host id and forgets what the old one held.
    pub fn new_host_id(&self) -> io::Result<String> {
        let host_id = format!("{:016x}{:016x}", clock::chance(), clock::chance());
        self.write("host-id.json", &HostId { host_id: host_id.clone(), machine_id: machine_id() })?;
        Ok(host_id)
    }

    /// Forgets subnet, MACs, peers and names by hand.
    pub fn forget(&self) {
        for name in ["last.json", "peers.json", "names.json", OTHERS_NAMES] {
            let _ = std::fs::remove_file(self.folder.join(name));
        }
    }

    /// Whether Docker uses the plugin's bridge.
    pub fn docker_shares(&self) -> bool {
        self.folder.join(DOCKER_SHARES).exists()
    }

    /// What the host held last.
    pub fn last(&self) -> Last {
        self.read("last.json").unwrap_or_default()
    }

    /// Remembers it.
    pub fn save_last(&self, last: &Last) -> io::Result<()> {
        self.write("last.json", last)
    }

    /// The peers known last.
    pub fn peers(&self) -> Vec<Peer> {
        self.read("peers.json").unwrap_or_default()
    }

    /// Remembers them.
    pub fn save_peers<'a>(&self, peers: impl Iterator<Item = &'a Peer>) -> io::Result<()> {
        self.write("peers.json", &peers.collect::<Vec<_>>())
    }

    /// Where the names are that were given by hand.
    pub fn names_path(&self) -> PathBuf {
        self.folder.join("names.json")
    }

    /// The names that were given by hand, each as it stands there. A file that is no list is put aside; the
    /// error says so.
    pub fn names(&self) -> Result<Vec<Value>, String> {
        let path = self.names_path();
        let read = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        };
        read.map_err(|error| {
            let aside = path.with_extension("json.damaged");
            let kept = match std::fs::rename(&path, &aside) {
                Ok(()) => format!("is now {}", aside.display()),
                Err(error) => format!("stays: {error}"),
            };
            format!(
                "names given by hand: {} is damaged ({error}) and {kept}; give them again (loden name add)",
                path.display()
            )
        })
    }

    /// Remembers them.
    pub fn save_names(&self, names: &[Value]) -> io::Result<()> {
        self.write("names.json", &names)
    }

    /// The names of other hosts known last.
    pub fn others_names(&self) -> OthersNames {
        self.read(OTHERS_NAMES).unwrap_or_default()
    }

    /// Remembers them.
    pub fn save_others_names(&self, names: &OthersNames) -> io::Result<()> {
        self.write(OTHERS_NAMES, names)
    }

    fn read<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Option<T> {
        let path = self.folder.join(name);
        let bytes = std::fs::read(&path).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "ignored a damaged file of lasting state");
                None
            }
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> io::Result<()> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
        write_atomically(&self.folder.join(name), &bytes, 0o644)
    }
}

/// machine-id(5)
fn machine_id() -> String {
    std::fs::read_to_string("/etc/machine-id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// The kernel's id of this boot (`random(4)`).
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}

/// The host's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
