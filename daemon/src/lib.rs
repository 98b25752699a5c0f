//! The daemon and the command line of Loden: effects and wiring around the pure core.
//!
//! [`app`] wires the tasks; [`store`] talks to etcd, [`lease`] claims and keeps our subnet,
//! [`network_config`] follows the config, [`reconcile`] decides with the core and writes through
//! [`kernel`], [`endpoints`] keeps what containers need, [`status`] answers questions, [`subnet_file`] tells plugins, [`flanneld`] finds the other
//! daemon; [`cli`] is what an
//! operator types, [`target`] and [`attachments`] what `loden attach` works with.

pub mod app;
pub mod attachments;
pub mod cli;
pub mod clock;
pub mod dns;
pub mod docker_user;
pub mod endpoints;
pub mod files;
pub mod flanneld;
pub mod kernel;
pub mod lease;
pub mod lock;
mod memory;
pub mod names;
pub mod network_config;
pub mod reconcile;
pub mod state;
pub mod status;
pub mod store;
pub mod subnet_file;
pub mod target;
