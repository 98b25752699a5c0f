//! The names of this host's endpoints: gathered from those who know them, brought to etcd under our lease,
//! and served with everybody else's.
//!
//! - `task`: keeps etcd and the zone as the endpoints are
//! - `docker`: what Docker says of its containers
//! - `local`: what this host says of its own endpoints
//! - `manual`: what operators say
//! - `export`: brings them to where CoreDNS reads
//! - `import`: follows what others have written there
//! - `answers`: what is told about names on the local socket

mod answers;
pub mod docker;
pub mod export;
pub mod import;
mod local;
mod manual;
mod task;

pub use answers::Answers;
pub use local::Local;
pub use manual::Manual;
pub use task::{Names, Standing};
