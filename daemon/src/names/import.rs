//! What others have written in SkyDNS's layout, followed for the zone (`--dns-import`).

use std::sync::Arc;

use loden_core::names::{Imported, Place};
use loden_proto::config::NetworkConfig;
use tokio::sync::watch;

use crate::store::{Change, Connection, StoreError, follow};

/// The task and what it hears.
pub struct Importer {
    /// Below which key, such as `/skydns`.
    pub prefix: String,
    /// The network config: the zone and the networks.
    pub configs: watch::Receiver<Option<Arc<NetworkConfig>>>,
    /// How to talk to etcd at the moment.
    pub connections: watch::Receiver<Option<Connection>>,
    /// Where it is told what there is.
    pub imported: watch::Sender<Option<Arc<Imported>>>,
    /// Where it is told what is in the way.
    pub problem: watch::Sender<Option<String>>,
}

impl Importer {
    /// Runs for ever.
    pub async fn run(mut self) -> anyhow::Result<()> {
        loop {
            let place = self.place();
            let follow = async {
                match &place {
                    Some(place) => self.follow(place).await,
                    None => std::future::pending().await,
                }
            };
            let mut configs = self.configs.clone();
            tokio::select! {
                ended = follow => ended?,
                changed = another(&mut configs, &self, &place) => changed?,
            }
            self.configs = configs;
            // The zone is another; and what stands below it is told soon.
            self.imported.send_replace(None);
        }
    }

    /// Where to look, if names are served.
    fn place(&self) -> Option<Place> {
        let config = self.configs.borrow().clone()?;
        let networks = config.pools().map(|pool| pool.network).collect();
        Some(Place::new(&self.prefix, config.dns.as_ref()?.zone.clone(), networks))
    }

    async fn follow(&self, place: &Place) -> Result<(), watch::error::RecvError> {
        let mut all = Imported::default();
        follow(self.connections.clone(), &place.all(), |change| match change {
            Change::Anew => all = Imported::default(),
            Change::Key(key, Some(value)) => all.put(place, key, value),
            Change::Key(key, None) => all.delete(place, key),
            Change::Done => {
                self.tell(None);
                self.imported.send_if_modified(|told| {
                    let news = told.as_deref() != Some(&all);
                    if news {
                        *told = Some(Arc::new(all.clone()));
                    }
                    news
                });
            }
            Change::Failed(error) => self.tell(Some(error)),
        })
        .await
    }

    fn tell(&self, error: Option<&StoreError>) {
        // That etcd is away is told elsewhere.
        let error = error.filter(|error| matches!(error, StoreError::Refused(_)));
        let problem = error
            .map(|error| format!("names below {} are not imported (--dns-import): {error}", self.prefix));
        self.problem.send_if_modified(|told| {
            if let Some(problem) = problem.as_ref().filter(|problem| told.as_ref() != Some(problem)) {
                tracing::warn!("{problem}");
            }
            std::mem::replace(told, problem.clone()) != problem
        });
    }
}

/// Returns when the config says another place.
async fn another(
    configs: &mut watch::Receiver<Option<Arc<NetworkConfig>>>,
    importer: &Importer,
    place: &Option<Place>,
) -> Result<(), watch::error::RecvError> {
    while importer.place() == *place {
        configs.changed().await?;
    }
    Ok(())
}
