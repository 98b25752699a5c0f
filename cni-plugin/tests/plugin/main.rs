//! The real binary in real network namespaces: one plays the host, others play containers.
//! Needs root and iproute2; some tests need strace and util-linux.

mod addresses;
mod chain;
mod failures;
mod killed;
mod lab;
mod netavark;
mod port_filter;
mod protocol;
mod requests;
mod status;
mod wiring;
