//! The lab: network namespaces as hosts on an underlay bridge, with real etcd, real daemons and
//! containers wired by the real plugin. A scenario (`tests/*.rs`) is a story:
//!
//! ```no_run
//! use loden_tests::{Lab, matrix};
//!
//! let lab = Lab::new("two_hosts");
//! lab.etcd().config(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
//! let (a, b) = (lab.host("a"), lab.host("b"));
//! let (_a, _b) = (a.daemon(&[]).ready(), b.daemon(&[]).ready());
//! matrix(&[&a.container("a1"), &b.container("b1")]);
//! lab.check_invariants();
//! ```
//!
//! Everything hangs on file descriptors and children of the test process: namespaces live as
//! long as the descriptors, children get SIGKILL when the process dies, mounts are private to a
//! host's mount namespace, container runtimes and their containers to a PID namespace. So an interrupted run
//! leaves nothing but a folder and empty cgroups, which the next `Lab::new` sweeps.
//! `LODEN_LAB_PAUSE=1` keeps a failed scenario standing, to look around.

mod cnitool;
mod container;
mod containerd;
mod coredns;
mod cri;
mod daemon;
mod dig;
mod docker;
mod etcd;
pub mod fleet;
mod foreign;
pub mod frames;
mod host;
mod invariants;
pub mod kernel;
mod lab;
mod managers;
mod netns;
mod podman;
pub mod probe;
mod process;
mod runtimes;
pub mod story;
mod systemd;
mod tls;
mod wait;
mod world;

pub use cnitool::Cnitool;
pub use container::{Container, matrix};
pub use containerd::Containerd;
pub use cri::{Cri, Pod};
pub use daemon::Daemon;
pub use dig::{Dug, dig};
pub use docker::{Docker, Engine};
pub use etcd::{Etcd, PREFIX};
pub use host::Host;
pub use lab::{Lab, Segment};
pub use managers::Firewalld;
pub use netns::Ns;
pub use podman::Podman;
pub use process::{Output, Process};
pub use runtimes::{Needed, Runtimes};
pub use systemd::Systemd;
pub use tls::Security;
pub use wait::{Outcome, always, eventually};
