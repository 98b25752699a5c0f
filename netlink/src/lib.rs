//! Synchronous netlink, shared by the daemon and the CNI plugin.
//!
//! netlink-packet-route encodes rtnetlink messages and can decode them; this crate adds what a
//! careful caller needs around them: batches that tell the kernel's verdict on every message
//! ([`Socket::batch`]), dumps that are repeated when the kernel says they were interrupted
//! ([`Socket::gather`]), the kernel's own error text, nexthop objects ([`nexthop`]), nftables set
//! elements ([`nftset`]) and tables ([`nfttable`]), and features of NICs ([`ethtool`]). Who wants a few
//! attributes of a long answer reads those alone ([`attributes`]).
//!
//! A socket belongs to the network namespace of the thread that opened it, for ever; the
//! plugin opens one in each namespace and passes them down. The kernel answers rtnetlink
//! requests before `send` returns, so nothing here needs a runtime.

mod attributes;
mod error;
pub mod ethtool;
pub mod nexthop;
pub mod nftset;
pub mod nfttable;
mod socket;

pub use attributes::{address, attributes, text, word};
pub use error::{Error, KernelError};
pub use netlink_packet_core as packet;
pub use netlink_packet_route as route;
pub use socket::{Events, OVERLAY_GROUPS, Reply, Request, Socket, flags, message_type};
