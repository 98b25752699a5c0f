//! `loden judge-rules`: what `status` asks of a process of its own. Rule sets can be long: what
//! reading them takes goes with the process, and it can be ended.

use std::io::Read as _;

use anyhow::Context;
use loden_core::firewall::{self, Surroundings};

use super::output::print;
use crate::kernel;

/// Reads [`Surroundings`] from standard input, prints [`firewall::Findings`], both as JSON.
pub(super) async fn run() -> anyhow::Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let surroundings: Surroundings = serde_json::from_str(&text).context("not the daemon's question")?;
    let (rules, failures) = kernel::rule_set().await;
    let mut found = firewall::findings(&rules, &surroundings);
    let unseen = failures.iter().map(|f| format!("not all rules of this host were looked at: {f}"));
    found.notes.extend(unseen);
    found.notes.extend(kernel::unseen_legacy());
    print(&serde_json::to_string(&found)?)
}
