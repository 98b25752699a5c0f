//! The names of this host's endpoints: gathered from those who know them, brought to etcd under our lease,
//! and served with everybody else's.
//!
//! - `task`: keeps etcd and the zone as the endpoints are
//! - `docker`: what Docker says of its containers
//! - `docker_api`: how it is asked
//! - `local`: what this host says of its own endpoints
//! - `manual`: what operators say
//! - `remembered`: what others say, over a restart
//! - `export`: brings them to where CoreDNS reads
//! - `import`: follows what others have written there
//! - `answers`: what is told about names on the local socket

mod answers;
pub mod docker;
mod docker_api;
pub mod export;
pub mod import;
mod local;
mod manual;
mod remembered;
mod task;

pub use answers::Answers;
pub use local::Local;
pub use manual::Manual;
pub use task::{GIVE_UP, Names, Standing};
