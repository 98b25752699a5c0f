//! Everybody's rules, for `status`: read on demand, never kept.

use loden_core::docker::user_chain::BackEnd;
use loden_core::firewall::RuleSet;
use loden_proto::Family;

use super::{iptables, program};

/// All rules of this namespace. The error says which program failed; what could be read is judged
/// all the same.
pub async fn rule_set() -> (RuleSet, Vec<String>) {
    let mut failures = Vec::new();
    let read = match program::run(&["nft"], &["-j", "list", "ruleset"], "", "nftables").await {
        // Some hosts have tens of thousands of rules; the data plane does not wait for them.
        Ok(json) => tokio::task::spawn_blocking(move || RuleSet::from_nft(&json).map_err(|e| e.to_string()))
            .await
            .unwrap_or_else(|e| Err(e.to_string())),
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
