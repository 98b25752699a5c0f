//! The config in force: taken from etcd when it is right, kept when a later one is not.

use std::sync::Arc;

use loden_core::config_change::applicable;
use loden_proto::config::NetworkConfig;
use tokio::sync::watch;

use crate::store::View;

/// What is to be said of the config.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConfigNews {
    /// The config in force.
    pub in_force: Option<Arc<NetworkConfig>>,
    /// Why what stands in etcd is not in force.
    pub pending: Option<String>,
}

/// Follows the config in etcd. `remembered` is the last one of a former life, in force until etcd
/// answers.
pub async fn follow(
    remembered: Option<NetworkConfig>,
    mut views: watch::Receiver<View>,
    in_force: watch::Sender<Option<Arc<NetworkConfig>>>,
    news: watch::Sender<ConfigNews>,
) {
    let mut current: Option<Arc<NetworkConfig>> = remembered.map(Arc::new);
    // A remembered config gives way to any; one that etcd confirmed only to what can be applied live.
    let mut confirmed = false;
    let mut seen: Option<Option<String>> = None;
    in_force.send_replace(current.clone());
    loop {
        let text = {
            let view = views.borrow_and_update();
            view.synced.then(|| view.config.clone())
        };
        if let Some(text) = text.filter(|t| seen.as_ref() != Some(t)) {
            let pending = judge(text.as_deref(), &mut current, &mut confirmed);
            match &pending {
                Some(reason) => tracing::warn!("{reason}"),
                None => {
                    tracing::info!(config = text.as_deref().unwrap_or_default(), "network config in force")
                }
            }
            for note in current.iter().flat_map(|c| &c.notes).filter(|_| pending.is_none()) {
                tracing::info!("{note}");
            }
            seen = Some(text);
            in_force.send_if_modified(|known| {
                let changed = *known != current;
                known.clone_from(&current);
                changed
            });
            news.send_replace(ConfigNews { in_force: current.clone(), pending });
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Takes a new text in, or says why not.
fn judge(
    text: Option<&str>,
    current: &mut Option<Arc<NetworkConfig>>,
    confirmed: &mut bool,
) -> Option<String> {
    let kept = if current.is_some() { "; the former config stays in force" } else { "" };
    let Some(text) = text else {
        return Some(format!(
            "there is no network config in etcd{kept}; write one with: loden config init --ipv4-network 10.5.0.0/16"
        ));
    };
    match NetworkConfig::parse(text) {
        Err(error) => Some(format!(
            "the network config in etcd is not valid: {error}{kept}; correct it with: loden config set"
        )),
        Ok(new) => match current.as_ref().filter(|_| *confirmed).map(|old| applicable(old, &new)) {
            Some(Err(reason)) => Some(format!("the network config in etcd: {reason}")),
            _ => {
                *current = Some(Arc::new(new));
                *confirmed = true;
                None
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_config_leaves_the_former_in_force_and_is_named() {
        let (mut current, mut confirmed) = (None, false);
        let missing = judge(None, &mut current, &mut confirmed).expect("none");
        assert!(missing.contains("loden config init"), "{missing}");
        assert_eq!(judge(Some(r#"{"Network":"10.5.0.0/16"}"#), &mut current, &mut confirmed), None);
        let bad = judge(Some("{"), &mut current, &mut confirmed).expect("bad");
        assert!(bad.contains("stays in force") && current.is_some(), "{bad}");
        let other =
            judge(Some(r#"{"Network":"10.6.0.0/16"}"#), &mut current, &mut confirmed).expect("restart");
        assert!(other.contains("restart"), "{other}");
    }
}
