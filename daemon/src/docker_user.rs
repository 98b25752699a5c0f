//! Keeps our rules in `DOCKER-USER`. A task of its own: it runs iptables, which may hang or find its
//! lock held, and no peer's route waits for that.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use loden_core::backoff::Pace;
use loden_core::docker::user_chain;
use loden_core::options::Options;
use loden_netlink::Socket;
use loden_proto::Family;
use tokio::sync::{Notify, watch};

use crate::{clock, kernel};

/// Our rules of each family, and the options that their comment follows from; `None` before there is
/// an overlay.
pub type Wanted = Option<(Options, BTreeMap<Family, Vec<String>>)>;

/// What became of it, for `status`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Standing {
    /// How often rules that had stood were put back.
    pub repairs: u64,
    /// Why they do not stand, if so.
    pub failure: Option<String>,
}

/// How often the older iptables is looked at, where its tables exist: it gives no notice.
const LEGACY_POLL: Duration = Duration::from_secs(3);

/// The task and what it hears.
pub struct DockerUser {
    /// What should stand.
    pub wanted: watch::Receiver<Wanted>,
    /// Told when somebody changed the rule set.
    pub rules_changed: Arc<Notify>,
    /// Where it is told how that goes.
    pub standing: watch::Sender<Standing>,
}

impl DockerUser {
    /// Runs for ever.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut socket = Socket::netfilter()?;
        let mut pace = Pace::new(clock::now());
        let mut stood = false;
        loop {
            let trouble = self.bring(&mut socket, &mut stood).await;
            if trouble {
                tokio::time::sleep(Duration::from_millis(pace.trouble(clock::now(), clock::chance()))).await;
                if self.standing.borrow().failure.is_some() {
                    continue;
                }
            }
            self.wait().await?;
        }
    }

    async fn wait(&mut self) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                changed = self.wanted.changed() => return Ok(changed?),
                () = self.rules_changed.notified() => return Ok(()),
                () = tokio::time::sleep(LEGACY_POLL) => if kernel::has_legacy_filter() {
                    return Ok(());
                }
            }
        }
    }

    /// One look, and what it asks for. Whether there was anything to do.
    async fn bring(&mut self, socket: &mut Socket, stood: &mut bool) -> bool {
        let Some((options, wanted)) = self.wanted.borrow_and_update().clone() else { return false };
        let mut trouble = false;
        let mut failure = None;
        let families: Vec<Family> = wanted.keys().copied().collect();
        let chains = match kernel::user_chains(socket, &families).await {
            Ok(chains) => chains,
            Err(error) => {
                self.tell(0, Some(error));
                return true;
            }
        };
        let mut repairs = 0;
        for (place, present) in &chains {
            let rules = wanted.get(&place.1).map(Vec::as_slice).unwrap_or_default();
            let Some(change) = user_chain::change(*place, present, rules, &options) else { continue };
            trouble = true;
            match kernel::change_user_chain(&change).await {
                Ok(()) => {
                    tracing::info!("{change}");
                    repairs += u64::from(*stood);
                }
                Err(error) => failure = Some(format!("{change}: {error}")),
            }
        }
        *stood = !chains.is_empty();
        self.tell(repairs, failure);
        trouble
    }

    fn tell(&self, repairs: u64, failure: Option<String>) {
        self.standing.send_if_modified(|standing| {
            let before = standing.clone();
            if let Some(reason) = &failure
                && standing.failure.as_ref() != Some(reason)
            {
                tracing::error!("{reason}");
            }
            standing.repairs += repairs;
            standing.failure = failure;
            *standing != before
        });
    }
}
