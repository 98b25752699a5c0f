//! The names that were given by hand, kept in lasting state.

use std::collections::BTreeMap;
use std::sync::Arc;

use loden_proto::dns_name::DnsName;
use loden_proto::name_record::ManualName;
use tokio::sync::watch;

use crate::state::StateDir;

/// Names by hand; copies are the same names. Changed on one thread alone.
#[derive(Debug, Clone)]
pub struct Manual {
    state: StateDir,
    names: watch::Sender<Arc<BTreeMap<DnsName, ManualName>>>,
}

impl Manual {
    /// Those of lasting state.
    pub fn open(state: StateDir) -> Self {
        let known = state.names().into_iter().map(|name| (name.name.clone(), name));
        Self { names: watch::Sender::new(Arc::new(known.collect())), state }
    }

    /// All of them, and a notice of each change.
    pub fn watch(&self) -> watch::Receiver<Arc<BTreeMap<DnsName, ManualName>>> {
        self.names.subscribe()
    }

    /// All of them.
    pub fn all(&self) -> Arc<BTreeMap<DnsName, ManualName>> {
        self.names.borrow().clone()
    }

    /// Changes them, first on disk.
    pub fn change(&self, change: impl FnOnce(&mut BTreeMap<DnsName, ManualName>)) -> Result<(), String> {
        let mut names = BTreeMap::clone(&self.all());
        change(&mut names);
        self.state.save_names(names.values()).map_err(|e| format!("the name is not kept: {e}"))?;
        self.names.send_replace(Arc::new(names));
        Ok(())
    }
}
