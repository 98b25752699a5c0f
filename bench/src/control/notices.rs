//! The kernel's own word on what is in place: its notifications, with the time at which they
//! arrived. Used by the parts of the group.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use loden_netlink::route::RouteNetlinkMessage as Message;
use loden_netlink::route::route::{RouteAddress, RouteAttribute, RouteMessage};
use loden_netlink::{Events, Reply, nexthop, nftset};
use loden_proto::Subnet;
use loden_tests::Ns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

// enum rtnetlink_groups (include/uapi/linux/rtnetlink.h)
const NEIGHBOURS: u32 = 3;
const IPV4_ROUTES: u32 = 7;

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
    /// A neighbour, FDB entry, nexthop object or something of nftables.
    Other,
}

/// Hears of every route, neighbour, FDB entry, nexthop object and nftables object of a namespace.
pub(crate) struct Notices {
    inbox: Receiver<std::io::Result<(Instant, Vec<Reply>)>>,
    read: RefCell<VecDeque<Notice>>,
    stop: Arc<AtomicBool>,
}

impl Notices {
    /// Begins to listen.
    pub(crate) fn of(ns: &Ns) -> Result<Self> {
        let sockets = ns.within(|| -> std::io::Result<_> {
            Ok((
                Events::route(&[NEIGHBOURS, IPV4_ROUTES, nexthop::GROUP])?,
                Events::netfilter(&[nftset::GROUP])?,
            ))
        });
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
                    match socket.read() {
                        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                        // Read later what they say: here only the time counts.
                        read => {
                            let at = Instant::now();
                            let _ = sender.send(read.map(|replies| (at, replies)));
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

    /// Waits until routes to all of these have been told of, then until nothing more comes for
    /// `silence`; returns the times of the last route and of the last notice of any kind.
    pub(crate) fn wait_for_all(
        &self,
        mut missing: BTreeSet<Ipv4Addr>,
        gone: bool,
        within: Duration,
        silence: Duration,
    ) -> Result<(Instant, Instant)> {
        let end = Instant::now() + within;
        let mut last_route = None;
        let mut last = Instant::now();
        loop {
            let wait =
                if missing.is_empty() { silence } else { end.saturating_duration_since(Instant::now()) };
            let Some(notice) = self.next(wait)? else { break };
            last = notice.at;
            match notice.change {
                Change::Route(to) if !gone && missing.remove(&to) => last_route = Some(notice.at),
                Change::RouteGone(to) if gone && missing.remove(&to) => last_route = Some(notice.at),
                _ => {}
            }
        }
        if let Some(example) = missing.first() {
            bail!("{} routes have not come or gone within {within:?}, such as {example}", missing.len());
        }
        Ok((last_route.context("no route was waited for")?, last))
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn change(reply: &Reply) -> Change {
    let change = match reply.route() {
        Ok(Message::NewRoute(message)) => destination(&message).map(Change::Route),
        Ok(Message::DelRoute(message)) => destination(&message).map(Change::RouteGone),
        _ => None,
    };
    change.unwrap_or(Change::Other)
}

fn destination(message: &RouteMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

/// A subnet's address, as notifications tell it.
pub(crate) fn address(subnet: Subnet) -> Ipv4Addr {
    match subnet.address() {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}
