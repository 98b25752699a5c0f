//! Names of containers and hosts: what stands in etcd for them ([`NameTable`]), and what the DNS says of it
//! ([`Zone`]).

pub mod docker;
mod given;
mod publish;
mod table;
mod zone;

pub use given::Given;
pub use publish::{Write, publication};
pub use table::{NameEntry, NameKey, NameTable};
pub use zone::{Answer, Data, Kind, Record, Settings, View, Zone};
