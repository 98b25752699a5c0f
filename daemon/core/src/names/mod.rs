//! Names of containers and hosts: what stands in etcd for them ([`NameTable`]), what the DNS says of it ([`Zone`]), and
//! how it says so, from bytes to bytes ([`reply`]).

pub mod docker;
mod given;
mod hold;
mod hosts;
mod imported;
mod manual;
mod message;
mod publish;
mod reverse;
mod skydns;
mod table;
mod zone;

pub use given::Given;
pub use hold::Hold;
pub use imported::{Imported, Place};
pub use manual::judge_manual;
pub use message::{Asked, MAX_DATAGRAM, OUTSIDE_OPTION, Reply, Transport, failure, reply};
pub use publish::{Write, publication};
pub use reverse::reverse_name;
pub use skydns::{exported, skydns_prefix};
pub use table::{NameEntry, NameKey, NameTable};
pub use zone::{Answer, Data, Kind, Record, Settings, View, Zone};
