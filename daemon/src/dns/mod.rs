//! The DNS server, on a thread of its own, so that neither waits for the other: names resolve while ten
//! thousand routes are programmed. It answers from the zone in memory and never asks etcd; what it answers is the core's (`names::reply`).
//!
//! - `listen`, `turns`, `places`: sockets, and how much of them one client can have
//! - `forward`, `upstreams`: what is for other servers
//! - `ask`: the other side, a client

pub mod ask;
mod forward;
mod listen;
mod places;
mod turns;
mod upstreams;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::Context;
use loden_core::names::Zone;
use tokio::sync::watch;
use tokio::task::{JoinHandle, LocalSet};

use forward::Forwarder;
use places::Places;
use upstreams::Upstreams;

pub use upstreams::PORT;

/// The zone, while names are served.
pub type SharedZone = Arc<RwLock<Option<Zone>>>;

/// How the server stands, for `status`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listening {
    /// Addresses that it answers on.
    pub addresses: Vec<IpAddr>,
    /// Why it does not answer on others.
    pub problems: BTreeMap<IpAddr, String>,
}

/// The server and what it hears.
pub struct Server {
    /// What is answered from.
    pub zone: SharedZone,
    /// Whether all names are in it.
    pub complete: watch::Receiver<bool>,
    /// Who is asked for all other names; the host's own servers if there is none.
    pub upstreams: Vec<IpAddr>,
    /// Where to answer.
    pub wanted: watch::Receiver<Vec<IpAddr>>,
    /// Where it is told how things stand.
    pub listening: watch::Sender<Listening>,
}

/// How long until an address that somebody else holds is tried again, and until all are looked after that serve.
const TRY_AGAIN: Duration = Duration::from_secs(5);
const LOOK_AFTER: Duration = Duration::from_secs(60);

impl Server {
    /// Starts the thread. It ends with the process.
    pub fn start(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let body = move || LocalSet::new().block_on(&runtime, self.run());
        std::thread::Builder::new().name("dns".into()).spawn(body).context("cannot start the DNS thread")?;
        Ok(())
    }

    async fn run(mut self) {
        let shared = Rc::new(listen::Shared {
            zone: self.zone.clone(),
            complete: self.complete.clone(),
            waiting: Places::new(listen::MOST_WAITING_OF_CLIENT, listen::MOST_WAITING),
            forwarder: Forwarder::new(Upstreams::chosen(&self.upstreams)),
            own: self.wanted.clone(),
            inside: Places::new(listen::MOST_OF_CLIENT, listen::MOST_INSIDE),
            outside: Places::new(listen::MOST_OF_CLIENT, listen::MOST_OUTSIDE),
        });
        let mut open: BTreeMap<IpAddr, JoinHandle<()>> = BTreeMap::new();
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            open.retain(|address, task| {
                let keep = wanted.contains(address) && !task.is_finished();
                if !keep {
                    task.abort();
                }
                keep
            });
            let mut problems = BTreeMap::new();
            for address in wanted {
                if open.contains_key(&address) {
                    continue;
                }
                match listen::open(address) {
                    Ok(sockets) => {
                        tracing::info!(%address, "serving DNS");
                        open.insert(
                            address,
                            tokio::task::spawn_local(listen::serve(address, sockets, shared.clone())),
                        );
                    }
                    Err(error) => _ = problems.insert(address, error.to_string()),
                }
            }
            let wait = if problems.is_empty() { LOOK_AFTER } else { TRY_AGAIN };
            let now = Listening { addresses: open.keys().copied().collect(), problems };
            self.listening.send_if_modified(|told| {
                for (address, problem) in now.problems.iter().filter(|(a, p)| told.problems.get(a) != Some(p))
                {
                    tracing::warn!("no DNS on {address}: {problem}");
                }
                std::mem::replace(told, now.clone()) != now
            });
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
