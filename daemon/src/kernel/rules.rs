//! Everybody's rules, for `status`: read on demand, in a process of their own, never kept.

use loden_core::docker::user_chain::BackEnd;
use loden_core::firewall::{Findings, RuleSet, Surroundings};
use loden_proto::Family;

use super::{iptables, program};

/// What everybody's rules do to the overlay, by a child that ends with the future.
pub async fn judge(surroundings: &Surroundings) -> Result<Findings, String> {
    let question = serde_json::to_string(surroundings).map_err(|e| e.to_string())?;
    // Ourselves, also while the file is being replaced.
    let answer = program::run(&["/proc/self/exe"], &["judge-rules"], &question, "loden").await?;
    serde_json::from_str(&answer).map_err(|e| format!("no judgement ({e}): {answer}"))
}

/// All rules of this namespace. The error says which program failed; what could be read is judged
/// all the same.
pub async fn rule_set() -> (RuleSet, Vec<String>) {
    let mut failures = Vec::new();
    let read = match program::run(&["nft"], &["-j", "list", "ruleset"], "", "nftables").await {
        Ok(json) => RuleSet::from_nft(&json).map_err(|e| e.to_string()),
        Err(error) => Err(error),
    };
    let mut rules = read.unwrap_or_else(|error| {
        failures.push(error);
        RuleSet::default()
    });
    for family in Family::ALL {
        for back_end in [BackEnd::Nft, BackEnd::Legacy] {
            let there = match back_end {
                BackEnd::Nft => rules.has_iptables(family),
                BackEnd::Legacy => iptables::has_legacy_tables(family),
            };
            if !there {
                continue;
            }
            match iptables::save(back_end, family, &[]).await {
                Ok(text) => rules.add_iptables(&text, back_end, family),
                Err(error) => failures.push(error),
            }
        }
    }
    (rules, failures)
}
