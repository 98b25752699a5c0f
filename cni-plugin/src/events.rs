//! Waiting for what the kernel does by itself a moment later: a carrier that comes up, a pair
//! that goes with its namespace. By its notices, without sleep. Called by `container.rs` and
//! `gc.rs`.

use std::time::Instant;

use loden_netlink::{Error as NetlinkError, Events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::error::Error;

/// `RTNLGRP_LINK`
const LINK_GROUP: u32 = 1;

/// Looks until `done`, at first at once and then whenever a link has changed; `false` when it
/// was not until the deadline. `what` says in an error what is waited for.
pub(crate) fn await_links(
    what: &str,
    deadline: Instant,
    mut done: impl FnMut() -> Result<bool, Error>,
) -> Result<bool, Error> {
    if done()? {
        return Ok(true);
    }
    let socket = |e| Error::Kernel { action: format!("wait for {what}"), source: NetlinkError::Socket(e) };
    let events = Events::route(&[LINK_GROUP]).map_err(socket)?;
    // Looked at again after listening began, so that no change falls in between.
    while !done()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(socket(e.into())),
        }
        // What the event says does not matter, nor that some were lost: the next look tells.
        let _ = events.read(|_, _| {});
    }
    Ok(true)
}
