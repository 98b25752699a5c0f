//! The kernel's own word on what is in place: its notifications, with the time at which they
//! arrived. Used by the parts of the group.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use loden_netlink::route::AddressFamily;
use loden_netlink::route::route::{RouteAddress, RouteAttribute, RouteMessage};
use loden_netlink::{Events, OVERLAY_GROUPS, Reply, message_type, nftset};
use loden_tests::Ns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

/// flanneld needs some 20 s for 10,000 leases.
const LIMIT: Duration = Duration::from_secs(120);
/// Without any notification for so long, everything is in place.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// Room for the notifications of 10,000 peers, of about a kilobyte each, should this program not get
/// a CPU for a while.
const BUFFER: usize = 64 << 20;

/// One notification.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notice {
    /// When it was read.
    pub(crate) at: Instant,
    /// What changed.
    pub(crate) change: Change,
}

/// What a notification tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// A route to this network is there.
    Route(Ipv4Addr),
    /// It is gone.
    RouteGone(Ipv4Addr),
    /// An IPv6 address or route came or went. The kernel itself makes some when an interface comes up,
    /// and again when it has proven them unique, up to two seconds later.
    Ipv6,
    /// Another object, such as a neighbour, or a setting.
    Other,
}

/// Which way routes change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Come,
    Go,
}

/// When all that was waited for had happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    /// The last of the routes.
    pub(crate) last_route: Instant,
    /// The last change of anything but [`Change::Ipv6`].
    pub(crate) last_change: Instant,
}

/// Hears of changes in a namespace.
pub(crate) struct Notices {
    inbox: Receiver<std::io::Result<(Instant, Vec<Reply>)>>,
    read: RefCell<VecDeque<Notice>>,
    stop: Arc<AtomicBool>,
}

impl Notices {
    /// Begins to listen to every link, address, route, neighbour, FDB entry, nexthop object, setting of
    /// forwarding and nftables object.
    pub(crate) fn of(ns: &Ns) -> Result<Self> {
        Self::listen(ns, &OVERLAY_GROUPS, &[nftset::GROUP])
    }

    /// Begins to listen to IPv4 routes alone: what it takes the kernel to tell of the other objects would be
    /// counted as the work of who changes them.
    pub(crate) fn of_routes(ns: &Ns) -> Result<Self> {
        /// `RTNLGRP_IPV4_ROUTE`
        const IPV4_ROUTES: u32 = 7;
        Self::listen(ns, &[IPV4_ROUTES], &[])
    }

    fn listen(ns: &Ns, route: &[u32], netfilter: &[u32]) -> Result<Self> {
        let sockets = ns
            .within(|| -> std::io::Result<_> { Ok((Events::route(route)?, Events::netfilter(netfilter)?)) });
        let (route, netfilter) = sockets.context("listen to the kernel")?;
        for socket in [&route, &netfilter] {
            set_socket_recv_buffer_size_force(socket, BUFFER).context("a large buffer for notifications")?;
        }
        let (sender, inbox) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let tick = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                let mut ready = [PollFd::new(&route, PollFlags::IN), PollFd::new(&netfilter, PollFlags::IN)];
                let _ = poll(&mut ready, Some(&tick));
                for socket in [&route, &netfilter] {
                    let mut replies = Vec::new();
                    let keep = |message_type, payload: &[u8]| {
                        replies.push(Reply { message_type, payload: payload.to_vec() });
                    };
                    match socket.read(keep) {
                        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                        // Read later what they say: here only the time counts.
                        read => {
                            let at = Instant::now();
                            let _ = sender.send(read.map(|()| (at, replies)));
                        }
                    }
                }
            }
        });
        Ok(Self { inbox, read: RefCell::default(), stop })
    }

    /// The next one, `None` after so long without any.
    pub(crate) fn next(&self, within: Duration) -> Result<Option<Notice>> {
        let mut read = self.read.borrow_mut();
        while read.is_empty() {
            match self.inbox.recv_timeout(within) {
                Ok(replies) => {
                    let (at, replies) = replies.context("notifications were lost")?;
                    read.extend(replies.iter().map(|reply| Notice { at, change: change(reply) }));
                }
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => bail!("the listening thread ended"),
            }
        }
        Ok(read.pop_front())
    }

    /// Forgets what has arrived.
    pub(crate) fn forget(&self) {
        self.read.borrow_mut().clear();
        while self.inbox.try_recv().is_ok() {}
    }

    /// Waits for one change; returns when it was told.
    pub(crate) fn wait_for(&self, wanted: Change, within: Duration) -> Result<Instant> {
        let end = Instant::now() + within;
        while let Some(notice) = self.next(end.saturating_duration_since(Instant::now()))? {
            if notice.change == wanted {
                return Ok(notice.at);
            }
        }
        bail!("no {wanted:?} within {within:?}")
    }

    /// Waits until nothing more is told for so long; how many changes came before.
    pub(crate) fn wait_for_silence(&self, silence: Duration) -> Result<u32> {
        let end = Instant::now() + LIMIT;
        let mut changes = 0;
        while self.next(silence)?.is_some() {
            changes += 1;
            ensure!(Instant::now() < end, "the kernel still changes after {LIMIT:?}");
        }
        Ok(changes)
    }

    /// Waits until the routes to all of these have come, or gone, and then for silence. One that changes
    /// back is waited for again.
    pub(crate) fn wait_for_all(&self, routes: BTreeSet<Ipv4Addr>, direction: Direction) -> Result<Told> {
        let end = Instant::now() + LIMIT;
        let mut missing = routes.clone();
        let (mut last_route, mut last_change) = (None, Instant::now());
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = if direction == Direction::Come { "come" } else { "gone" };
                match missing.first() {
                    Some(to) => {
                        bail!("{} routes have not {what} within {LIMIT:?}, such as {to}", missing.len())
                    }
                    None => bail!("the kernel still changes after {LIMIT:?}"),
                }
            }
            let Some(notice) = self.next(if missing.is_empty() { SILENCE } else { left })? else {
                if missing.is_empty() {
                    break;
                }
                continue;
            };
            if notice.change != Change::Ipv6 {
                last_change = notice.at;
            }
            let (to, changed) = match notice.change {
                Change::Route(to) => (to, Direction::Come),
                Change::RouteGone(to) => (to, Direction::Go),
                Change::Ipv6 | Change::Other => continue,
            };
            if changed == direction {
                if missing.remove(&to) {
                    last_route = Some(notice.at);
                }
            } else if routes.contains(&to) {
                missing.insert(to);
            }
        }
        Ok(Told { last_route: last_route.context("no route was waited for")?, last_change })
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn change(reply: &Reply) -> Change {
    use message_type::{DELETE_ADDRESS, DELETE_ROUTE, NEW_ADDRESS, NEW_ROUTE};
    // The first byte of `struct rtmsg` and of `struct ifaddrmsg`.
    let ipv6 = reply.payload.first() == Some(&AddressFamily::Inet6.into());
    let of_route = |change: fn(Ipv4Addr) -> Change| match reply.decode() {
        _ if ipv6 => Change::Ipv6,
        Ok(route) => destination(&route).map_or(Change::Other, change),
        Err(_) => Change::Other,
    };
    match reply.message_type {
        NEW_ROUTE => of_route(Change::Route),
        DELETE_ROUTE => of_route(Change::RouteGone),
        NEW_ADDRESS | DELETE_ADDRESS if ipv6 => Change::Ipv6,
        _ => Change::Other,
    }
}

fn destination(message: &RouteMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}
