//! Notices of changes. A notice carries no action: the reconciler compares it with what it
//! believes, and looks again where the two disagree.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use loden_core::observed::{Address, Link, Nexthop, Route};
use loden_netlink::{Events, OVERLAY_GROUPS, message_type, nexthop, nftset};
use loden_proto::Mac;
use std::net::IpAddr;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::decode::Neighbour;
use super::{Kernel, decode};

/// One change in the kernel.
#[derive(Debug, Clone, PartialEq)]
pub enum Notice {
    /// An interface is there with these attributes.
    Link(Link),
    /// An interface is gone.
    LinkGone(u32),
    /// An address is on an interface.
    Address(u32, Address),
    /// An address left an interface.
    AddressGone(u32, Address),
    /// A route of the main table is there.
    Route(Route),
    /// A route of the main table is gone.
    RouteGone(Route),
    /// A default route came or went.
    DefaultRoute,
    /// A permanent neighbour is there.
    Neighbour(u32, IpAddr, Mac),
    /// A neighbour is gone, or not permanent any more.
    NeighbourGone(u32, IpAddr),
    /// A permanent FDB entry is there.
    Fdb(u32, Mac, IpAddr),
    /// An FDB entry is gone.
    FdbGone(u32, Mac, IpAddr),
    /// A nexthop object is there.
    Nexthop(u32, Nexthop),
    /// A nexthop object is gone.
    NexthopGone(u32),
    /// Forwarding or the like was set for some interface.
    Setting,
    /// Somebody else changed our table.
    Rules,
    /// Somebody else changed a table in which Docker's chain for others can be.
    DockerRules,
    /// Somebody else changed the port filter's table.
    PortFilter,
    /// Somebody else changed the elements of its sets alone.
    PortElements,
    /// Notices were lost: everything must be looked at again.
    Overrun,
}

/// At most so many datagrams are read between two turns of the other tasks.
const BURST: usize = 256;

/// The sockets that hear of changes.
#[derive(Debug)]
pub struct Watch {
    route: AsyncFd<Arc<Events>>,
    netfilter: AsyncFd<Arc<Events>>,
    /// Told when something may have changed that was not heard.
    missed: Arc<Notify>,
    /// As the kernel that it ignores knows it.
    subscription: OnceLock<Arc<Subscription>>,
    /// Name of our table.
    table: String,
    /// What the generation that is under way has changed so far.
    touched: Mutex<Touched>,
}

/// Which tables that concern us a generation changes.
#[derive(Debug, Default)]
struct Touched {
    ours: bool,
    filter: bool,
    port_filter: bool,
    port_elements: bool,
}

impl Watch {
    /// Joins the groups. Open it before the first look, so that nothing falls between.
    pub fn open(table: &str) -> io::Result<Self> {
        let route = Events::route(&OVERLAY_GROUPS).or_else(|_| Events::route(&OVERLAY_GROUPS[..8]))?;
        Ok(Self {
            route: registered(route)?,
            netfilter: registered(Events::netfilter(&[nftset::GROUP])?)?,
            missed: Arc::default(),
            subscription: OnceLock::new(),
            table: table.to_owned(),
            touched: Mutex::default(),
        })
    }

    /// Leaves the echo of this kernel's own writes out: 10,000 peers' are more than a socket holds. From now on
    /// the kernel pauses the watch where it makes many changes.
    pub fn ignore(&self, kernel: &mut Kernel) -> io::Result<()> {
        self.netfilter.get_ref().ignore(kernel.netfilter.port()?, true)?;
        let subscription = Subscription {
            route: Arc::clone(self.route.get_ref()),
            netfilter: Arc::clone(self.netfilter.get_ref()),
            missed: Arc::clone(&self.missed),
            writer: kernel.route.port()?,
        };
        subscription.hear_fdb_deletions(true)?;
        let subscription = self.subscription.get_or_init(|| Arc::new(subscription));
        kernel.subscription = Some(Arc::clone(subscription));
        Ok(())
    }

    /// The next notices, at least one. Safe to cancel.
    pub async fn next(&self) -> io::Result<Vec<Notice>> {
        loop {
            let (socket, rules) = tokio::select! {
                ready = self.route.readable() => (ready?, false),
                ready = self.netfilter.readable() => (ready?, true),
                () = self.missed.notified() => {
                    if let Some(subscription) = self.subscription.get() {
                        subscription.restore()?;
                    }
                    *self.touched() = Touched::default();
                    return Ok(vec![Notice::Overrun]);
                }
            };
            let mut ready = socket;
            let take = |notices: &mut Vec<Notice>, message_type, payload: &[u8]| match rules {
                true => self.rule_notices(message_type, payload, notices),
                false => notices.extend(notice(message_type, payload)),
            };
            let notices = match ready.try_io(|socket| read_burst(socket.get_ref(), take)) {
                Ok(Ok(notices)) => notices,
                Ok(Err(e)) if e.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    return Ok(vec![Notice::Overrun]);
                }
                Ok(Err(e)) => return Err(e),
                Err(_would_block) => continue,
            };
            if !notices.is_empty() {
                return Ok(notices);
            }
        }
    }
}

impl Watch {
    fn touched(&self) -> MutexGuard<'_, Touched> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A generation's changes come one by one, then the generation with the process that made it.
    fn rule_notices(&self, message_type: u16, payload: &[u8], notices: &mut Vec<Notice>) {
        let mut touched = self.touched();
        if let Some((family, table)) = nftset::table_of(message_type, payload) {
            touched.ours |= family == nftset::FAMILY_INET && table == self.table;
            touched.filter |= family != nftset::FAMILY_INET && table == "filter";
            let ports = family == nftset::FAMILY_BRIDGE && table == self.table;
            touched.port_elements |= ports && nftset::is_element(message_type);
            touched.port_filter |= ports && !nftset::is_element(message_type);
            return;
        }
        let Some((_, process)) = nftset::generation_of(message_type, payload) else { return };
        let Touched { ours, filter, port_filter, port_elements } = std::mem::take(&mut *touched);
        if process == std::process::id() {
            return;
        }
        let all = [
            (ours, Notice::Rules),
            (filter, Notice::DockerRules),
            (port_filter, Notice::PortFilter),
            (port_elements && !port_filter, Notice::PortElements),
        ];
        notices.extend(all.into_iter().filter(|(touched, _)| *touched).map(|(_, notice)| notice));
    }
}

/// A watch as its kernel knows it, which pauses it where it makes many changes: that the kernel tells of each,
/// queues it, and it is read, takes as long as the change.
#[derive(Debug)]
pub(super) struct Subscription {
    route: Arc<Events>,
    netfilter: Arc<Events>,
    missed: Arc<Notify>,
    /// Port id of the socket that changes links, routes and neighbours.
    writer: u32,
}

impl Subscription {
    /// The watch does not hear of the rule set until [`Subscription::join_rules`]. While nobody listens to it in
    /// any namespace, no notice of it is made (`nfnetlink_has_listeners`).
    pub(super) fn leave_rules(&self) -> io::Result<()> {
        self.netfilter.leave(nftset::GROUP)
    }

    /// Takes back [`Subscription::leave_rules`]. Whoever does so finds out whether others changed it meanwhile.
    pub(super) fn join_rules(&self) -> io::Result<()> {
        self.netfilter.join(nftset::GROUP)
    }

    /// Whether the watch hears of deletions of FDB entries. Whoever has it not hear looks at the FDB afterwards.
    pub(super) fn hear_fdb_deletions(&self, heard: bool) -> io::Result<()> {
        self.route.ignore(self.writer, heard)
    }

    /// Something may have changed unheard, or the watch may still be paused: it listens to everything again, and
    /// tells that notices were lost.
    pub(super) fn missed(&self) {
        self.missed.notify_one();
    }

    fn restore(&self) -> io::Result<()> {
        self.join_rules()?;
        self.hear_fdb_deletions(true)
    }
}

/// What `take` makes of what is there, up to [`BURST`] datagrams: the kernel puts each notice into one of its
/// own.
fn read_burst(socket: &Events, take: impl Fn(&mut Vec<Notice>, u16, &[u8])) -> io::Result<Vec<Notice>> {
    let mut notices = Vec::new();
    for count in 0..BURST {
        match socket.read(|message_type, payload| take(&mut notices, message_type, payload)) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && count > 0 => break,
            // What was read before is older than what was lost.
            Err(e) => return Err(e),
        }
    }
    Ok(notices)
}

fn neighbour_gone(gone: &Neighbour) -> Option<Notice> {
    match (gone.fdb, gone.mac, gone.address?) {
        (true, mac, address) => Some(Notice::FdbGone(gone.device, mac?, address)),
        (false, _, address) => Some(Notice::NeighbourGone(gone.device, address)),
    }
}

fn neighbour(there: &Neighbour) -> Option<Notice> {
    match there.lasting() {
        Some((device, mac, address)) if there.fdb => Some(Notice::Fdb(device, mac, address)),
        Some((device, mac, address)) => Some(Notice::Neighbour(device, address, mac)),
        None => neighbour_gone(there),
    }
}

fn registered(socket: Events) -> io::Result<AsyncFd<Arc<Events>>> {
    // SAFETY: the socket owns its descriptor, shows the same one for its whole life, and closes it
    // only when it is dropped, which is after AsyncFd has taken it out of epoll.
    Ok(unsafe { AsyncFd::register(Arc::new(socket)) }?)
}

fn notice(message_type: u16, payload: &[u8]) -> Option<Notice> {
    let route = || decode::route(payload).map(|main| main.route());
    match message_type {
        message_type::NEW_LINK => decode::link(payload).map(Notice::Link),
        message_type::DELETE_LINK => decode::link(payload).map(|link| Notice::LinkGone(link.index)),
        message_type::NEW_ADDRESS => decode::interface_address(payload).map(|(i, a)| Notice::Address(i, a)),
        message_type::DELETE_ADDRESS => {
            decode::interface_address(payload).map(|(i, a)| Notice::AddressGone(i, a))
        }
        message_type::NEW_ROUTE => route().map(|r| r.map_or(Notice::DefaultRoute, Notice::Route)),
        message_type::DELETE_ROUTE => route().map(|r| r.map_or(Notice::DefaultRoute, Notice::RouteGone)),
        message_type::NEW_NEIGHBOUR => decode::neighbour(payload).and_then(|n| neighbour(&n)),
        message_type::DELETE_NEIGHBOUR => decode::neighbour(payload).and_then(|n| neighbour_gone(&n)),
        // For IPv6's `force_forwarding` it says no more than that something changed.
        message_type::NEW_NETCONF => Some(Notice::Setting),
        nexthop::NEW => decode::nexthop(payload).map(|(id, hop)| Notice::Nexthop(id, hop)),
        nexthop::DELETE => decode::nexthop(payload).map(|(id, _)| Notice::NexthopGone(id)),
        _ => None,
    }
}
