//! The names that were given by hand, kept in lasting state.

use std::collections::BTreeMap;
use std::sync::Arc;

use loden_proto::dns_name::DnsName;
use loden_proto::name_record::ManualName;
use serde_json::Value;
use tokio::sync::watch;

use crate::state::StateDir;

/// What operators have given.
#[derive(Debug, Clone, Default)]
pub struct ManualTable {
    /// The names.
    pub names: BTreeMap<DnsName, ManualName>,
    /// What cannot be read of the file; it stays in there, for whoever can mend it.
    unreadable: Vec<Value>,
    /// Why, and what to do.
    pub problems: Vec<String>,
}

/// Names by hand; copies are the same names. Changed on one thread alone.
#[derive(Debug, Clone)]
pub struct Manual {
    state: StateDir,
    given: watch::Sender<Arc<ManualTable>>,
}

impl Manual {
    /// Those of lasting state.
    pub fn open(state: StateDir) -> Self {
        let mut given = ManualTable::default();
        match state.names() {
            Ok(entries) => {
                for entry in entries {
                    match serde_json::from_value::<ManualName>(entry.clone()) {
                        Ok(name) => _ = given.names.insert(name.name.clone(), name),
                        Err(error) => {
                            given.problems.push(format!(
                                "a name that was given by hand cannot be read: {error}: {entry}; mend or remove it in {} and restart the daemon",
                                state.names_path().display()
                            ));
                            given.unreadable.push(entry);
                        }
                    }
                }
            }
            Err(problem) => given.problems.push(problem),
        }
        Self { given: watch::Sender::new(Arc::new(given)), state }
    }

    /// All of them, and a notice of each change.
    pub fn watch(&self) -> watch::Receiver<Arc<ManualTable>> {
        self.given.subscribe()
    }

    /// All of them.
    pub fn all(&self) -> Arc<ManualTable> {
        self.given.borrow().clone()
    }

    /// Changes them, first on disk.
    pub fn change(&self, change: impl FnOnce(&mut BTreeMap<DnsName, ManualName>)) -> Result<(), String> {
        let mut given = ManualTable::clone(&self.all());
        change(&mut given.names);
        let entries = given.names.values().map(|name| serde_json::json!(name));
        let entries: Vec<Value> = given.unreadable.iter().cloned().chain(entries).collect();
        self.state.save_names(&entries).map_err(|e| format!("the name is not kept: {e}"))?;
        self.given.send_replace(Arc::new(given));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_costs_nothing_else_and_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let state = StateDir::open(folder.path()).expect("state");
        let path = folder.path().join("names.json");
        let kdc = r#"{"name":"kdc","addresses":["192.0.2.7"]}"#;
        std::fs::write(&path, format!(r#"[{{"name":"a b","addresses":[]}},{kdc}]"#)).expect("write");
        let manual = Manual::open(state.clone());
        assert_eq!(manual.all().names.len(), 1);
        assert!(manual.all().problems[0].contains("a b"), "{:?}", manual.all().problems);
        manual.change(|names| names.clear()).expect("kept");
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.contains("a b") && !text.contains("kdc"), "{text}");

        std::fs::write(&path, "half a fi").expect("write");
        let manual = Manual::open(state);
        assert!(manual.all().problems[0].contains("names.json.damaged"), "{:?}", manual.all().problems);
        manual.change(|_| {}).expect("kept");
        let damaged = folder.path().join("names.json.damaged");
        assert_eq!(std::fs::read_to_string(damaged).expect("read"), "half a fi");
    }
}
