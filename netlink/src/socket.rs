//! The socket: requests in, acknowledgements or dumps out.

use std::borrow::Borrow;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netlink_packet_core::{Emitable, Parseable};
use netlink_sys::{Socket as RawSocket, SocketAddr};
use socket2::{SockFilter, SockRef};

use crate::attributes::{attribute, attributes};
use crate::{Error, KernelError};

/// Flags of a netlink request (`include/uapi/linux/netlink.h`).
pub mod flags {
    /// `NLM_F_REQUEST`
    pub const REQUEST: u16 = 0x1;
    /// `NLM_F_ACK`
    pub const ACK: u16 = 0x4;
    /// `NLM_F_DUMP`
    pub const DUMP: u16 = 0x300;
    /// `NLM_F_REPLACE`
    pub const REPLACE: u16 = 0x100;
    /// `NLM_F_EXCL`
    pub const EXCL: u16 = 0x200;
    /// `NLM_F_CREATE`
    pub const CREATE: u16 = 0x400;
}

/// Types of rtnetlink messages (`include/uapi/linux/rtnetlink.h`).
pub mod message_type {
    /// `RTM_NEWLINK`
    pub const NEW_LINK: u16 = 16;
    /// `RTM_DELLINK`
    pub const DELETE_LINK: u16 = 17;
    /// `RTM_GETLINK`
    pub const GET_LINK: u16 = 18;
    /// `RTM_SETLINK`
    pub const SET_LINK: u16 = 19;
    /// `RTM_NEWADDR`
    pub const NEW_ADDRESS: u16 = 20;
    /// `RTM_DELADDR`
    pub const DELETE_ADDRESS: u16 = 21;
    /// `RTM_GETADDR`
    pub const GET_ADDRESS: u16 = 22;
    /// `RTM_NEWROUTE`
    pub const NEW_ROUTE: u16 = 24;
    /// `RTM_DELROUTE`
    pub const DELETE_ROUTE: u16 = 25;
    /// `RTM_GETROUTE`
    pub const GET_ROUTE: u16 = 26;
    /// `RTM_NEWNEIGH`, of FDB entries too
    pub const NEW_NEIGHBOUR: u16 = 28;
    /// `RTM_DELNEIGH`
    pub const DELETE_NEIGHBOUR: u16 = 29;
    /// `RTM_GETNEIGH`
    pub const GET_NEIGHBOUR: u16 = 30;
    /// `RTM_NEWNETCONF`
    pub const NEW_NETCONF: u16 = 80;
    /// `RTM_NEWLINKPROP`
    pub const NEW_LINK_PROPERTY: u16 = 108;
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_LEN: usize = 16;
/// `NLM_F_DUMP_INTR`: objects changed while the kernel walked them.
const DUMP_INTR: u16 = 0x10;
/// `NLM_F_CAPPED`: the request is not echoed in the error, only its header.
const CAPPED: u16 = 0x100;
/// `NLM_F_ACK_TLVS`: attributes follow in the error.
const ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`
const ATTR_MSG: u16 = 1;

/// Messages per `send`. Above some 256 the acknowledgements no longer fit the default
/// receive buffer of 212,992 bytes and are lost (seen on 6.18 with 512).
const BATCH: usize = 128;
/// Bytes per `send`, below the default send buffer.
const BATCH_BYTES: usize = 64 * 1024;
/// The kernel fills at most 32 KiB per dump message unless a larger buffer is offered.
const RECEIVE_BUFFER: usize = 64 * 1024;
const DUMP_TRIES: usize = 8;
/// rtnetlink answers at once; this only ends a wait that would never end.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One request: type, flags (without `REQUEST` and `ACK`) and the encoded payload.
#[derive(Debug, Clone)]
pub struct Request {
    /// `nlmsg_type`
    pub message_type: u16,
    /// `nlmsg_flags` beyond `REQUEST` and `ACK`.
    pub flags: u16,
    /// What follows the netlink header.
    pub payload: Vec<u8>,
}

impl Request {
    /// A message by its type, flags and header (`struct rtmsg`, …), to which attributes are added by
    /// [`Request::with`].
    pub fn new(message_type: u16, flags: u16, header: &[u8]) -> Self {
        // What a message about a peer takes, so that it does not grow.
        let mut payload = Vec::with_capacity(64);
        payload.extend_from_slice(header);
        Self { message_type, flags, payload }
    }

    /// With an attribute more.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        attribute(&mut self.payload, kind, value);
        self
    }

    /// With an address as an attribute more.
    pub fn with_address(self, kind: u16, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(ip) => self.with(kind, &ip.octets()),
            IpAddr::V6(ip) => self.with(kind, &ip.octets()),
        }
    }

    /// A message with its type ([`message_type`]) and flags ([`flags::CREATE`], …; 0 for a delete or a
    /// set). Not a `RouteNetlinkMessage`, which knows its type but brings the code for every type there
    /// is, half a mebibyte, into a program that is to be small.
    pub fn of(message_type: u16, message: &impl Emitable, flags: u16) -> Self {
        let mut payload = vec![0; message.buffer_len()];
        message.emit(&mut payload);
        Self { message_type, flags, payload }
    }

    /// Bytes that it takes, encoded.
    fn room(&self) -> usize {
        (HEADER_LEN + self.payload.len()).next_multiple_of(4)
    }

    fn encode(&self, flags: u16, sequence: u32, out: &mut Vec<u8>) {
        let length = (HEADER_LEN + self.payload.len()) as u32;
        out.reserve(self.room());
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.message_type.to_ne_bytes());
        out.extend_from_slice(&(self.flags | flags::REQUEST | flags).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&self.payload);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// Sets `NLM_F_ACK` in a message that is encoded.
fn ask_for_answer(message: &mut [u8]) {
    const FLAGS: std::ops::Range<usize> = 6..8;
    let flags = u16::from_ne_bytes([message[FLAGS.start], message[FLAGS.start + 1]]) | flags::ACK;
    message[FLAGS].copy_from_slice(&flags.to_ne_bytes());
}

/// One message of the kernel's, still encoded.
#[derive(Debug, Clone)]
pub struct Reply {
    /// `nlmsg_type`
    pub message_type: u16,
    /// What follows the netlink header.
    pub payload: Vec<u8>,
}

impl Reply {
    /// The error of one that is shorter than its header, or has a number or an address of a wrong length.
    pub fn torn(&self) -> Error {
        let reason = "it is shorter than its header, or an attribute is not of its size".into();
        Error::Decode { message_type: self.message_type, reason }
    }

    /// Decodes it as the message that its type says, as [`Request::of`] encodes.
    pub fn decode<T: Parseable<[u8]>>(&self) -> Result<T, Error> {
        T::parse(&self.payload)
            .map_err(|e| Error::Decode { message_type: self.message_type, reason: e.to_string() })
    }
}

/// A blocking netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    raw: RawSocket,
    sequence: u32,
    /// What was received last. Kept, since to some allocators one of its size is a system call
    /// and a page fault per page, each time.
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens an rtnetlink socket (`NETLINK_ROUTE`) with strict dump filters, capped
    /// acknowledgements and extended error texts.
    pub fn route() -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_ROUTE)
    }

    /// Opens a netfilter socket (`NETLINK_NETFILTER`).
    pub fn netfilter() -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_NETFILTER)
    }

    /// Opens a generic netlink socket (`NETLINK_GENERIC`).
    pub fn generic() -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_GENERIC)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = RawSocket::new(protocol)?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        // All three are comforts of newer kernels (4.3, 4.12, 4.20); without them the
        // answers are longer, wordless or unfiltered, and are handled all the same.
        let _ = raw.set_cap_ack(true);
        let _ = raw.set_ext_ack(true);
        let _ = raw.set_netlink_get_strict_chk(true);
        rustix::net::sockopt::set_socket_timeout(
            raw.as_fd(),
            rustix::net::sockopt::Timeout::Recv,
            Some(ANSWER_TIMEOUT),
        )?;
        Ok(Self { raw, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Its port id, by which the kernel tells who asked for a change ([`Events::ignore`]).
    pub fn port(&self) -> io::Result<u32> {
        let mut address = SocketAddr::new(0, 0);
        self.raw.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// Sends one request and waits for its acknowledgement.
    pub fn request(&mut self, request: &Request) -> Result<(), Error> {
        match self.batch([request])?.pop() {
            Some(Err(e)) => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Sends requests, at most 128 per system call, and returns the kernel's verdict on each, in order.
    /// One refusal does not stop the others. Errors mean that the socket itself failed.
    pub fn batch<R: Borrow<Request>>(
        &mut self,
        requests: impl IntoIterator<Item = R>,
    ) -> Result<Vec<Result<(), KernelError>>, Error> {
        let (mut verdicts, mut bytes) = (Vec::new(), Vec::new());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            bytes.clear();
            let (mut count, mut last) = (0, 0);
            let fits = |bytes: usize, count| bytes <= BATCH_BYTES && count < BATCH;
            while let Some(request) =
                requests.next_if(|r| count == 0 || fits(bytes.len() + r.borrow().room(), count))
            {
                (count, last) = (count + 1, bytes.len());
                self.sequence = self.sequence.wrapping_add(1);
                request.borrow().encode(0, self.sequence, &mut bytes);
            }
            // A refusal is told in any case and in order, so the last request speaks for all before it.
            ask_for_answer(&mut bytes[last..]);
            self.send_acknowledged(&bytes, count, &mut verdicts)?;
        }
        Ok(verdicts)
    }

    /// Sends so many requests, the last of which is answered in any case.
    fn send_acknowledged(
        &mut self,
        bytes: &[u8],
        count: usize,
        verdicts: &mut Vec<Result<(), KernelError>>,
    ) -> Result<(), Error> {
        let (last, told) = (count - 1, verdicts.len());
        let first = self.sequence.wrapping_sub(last as u32);
        self.raw.send(bytes, 0)?;
        verdicts.resize(told + count, Ok(()));
        loop {
            self.receive()?;
            for message in Messages::new(&self.buffer) {
                let slot = message.sequence.wrapping_sub(first) as usize;
                if message.message_type == NLMSG_ERROR && slot <= last {
                    verdicts[told + slot] = message.verdict();
                    if slot == last {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Sends requests as one nftables transaction, the first and the last of which are its begin and its end
    /// (`NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`): all of them take effect or none. The error is that of the
    /// first refused request.
    pub fn transaction(&mut self, requests: &[Request]) -> Result<(), Error> {
        let mut buffer = Vec::new();
        let first = self.sequence.wrapping_add(1);
        // A refusal is told in any case, so the last before the end marker speaks for all.
        let last = requests.len().saturating_sub(2);
        for (i, request) in requests.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            request.encode(if i == last { flags::ACK } else { 0 }, self.sequence, &mut buffer);
        }
        self.raw.send(&buffer, 0)?;
        loop {
            self.receive()?;
            for message in Messages::new(&self.buffer) {
                // Further refusals of an earlier transaction may still be there.
                let answered = message.sequence.wrapping_sub(first) as usize;
                if message.message_type == NLMSG_ERROR && answered < requests.len() {
                    message.verdict()?;
                    if answered == last {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Asks for a dump and returns its messages, as [`Socket::gather`] does.
    pub fn dump(&mut self, request: &Request) -> Result<Vec<Reply>, Error> {
        let whole = |message_type, payload: &[u8]| Some(Reply { message_type, payload: payload.to_vec() });
        self.gather(request, whole)
    }

    /// Asks for a dump and returns what `take` makes of each message's type and payload: ten thousand
    /// objects need not be kept as messages. Repeated when the kernel flags that objects changed
    /// meanwhile (`NLM_F_DUMP_INTR`): such a dump may lack objects that exist.
    pub fn gather<T>(
        &mut self,
        request: &Request,
        mut take: impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_TRIES {
            if let Some(all) = self.gather_once(request, &mut take)? {
                return Ok(all);
            }
        }
        Err(Error::Interrupted(DUMP_TRIES))
    }

    fn gather_once<T>(
        &mut self,
        request: &Request,
        take: &mut impl FnMut(u16, &[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        request.encode(flags::DUMP, self.sequence, &mut buffer);
        self.raw.send(&buffer, 0)?;
        let mut all = Vec::new();
        let mut interrupted = false;
        loop {
            self.receive()?;
            for message in Messages::new(&self.buffer) {
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & DUMP_INTR != 0;
                match message.message_type {
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match message.verdict() {
                            // A table that does not exist yet holds nothing ("FIB table does not exist").
                            Err(e) if e.is_absent() => Ok(Some(Vec::new())),
                            Err(e) => Err(e.into()),
                            Ok(()) => Ok((!interrupted).then_some(all)),
                        };
                    }
                    kind => all.extend(take(kind, message.payload)),
                }
            }
        }
    }

    /// Asks for one object and returns it; `Ok(None)` when it does not exist.
    pub fn get(&mut self, request: &Request) -> Result<Option<Reply>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut buffer = Vec::new();
        // Without an acknowledgement: the object or a refusal comes in any case, and it is all that comes.
        request.encode(0, self.sequence, &mut buffer);
        self.raw.send(&buffer, 0)?;
        loop {
            self.receive()?;
            let Some(message) = Messages::new(&self.buffer).find(|m| m.sequence == self.sequence) else {
                continue;
            };
            if message.message_type != NLMSG_ERROR {
                return Ok(Some(message.reply()));
            }
            return match message.verdict() {
                Err(e) if !e.is_absent() => Err(e.into()),
                _ => Ok(None),
            };
        }
    }

    fn receive(&mut self) -> Result<(), Error> {
        loop {
            self.buffer.clear();
            match self.raw.recv(&mut self.buffer, 0) {
                Ok(_) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The rtnetlink groups (`enum rtnetlink_groups`, include/uapi/linux/rtnetlink.h) that tell of what an overlay
/// is made of. Kernels before 5.3 lack the last.
pub const OVERLAY_GROUPS: [u32; 9] = [
    1,  // RTNLGRP_LINK
    3,  // RTNLGRP_NEIGH, FDB entries too
    5,  // RTNLGRP_IPV4_IFADDR
    7,  // RTNLGRP_IPV4_ROUTE
    9,  // RTNLGRP_IPV6_IFADDR
    11, // RTNLGRP_IPV6_ROUTE
    24, // RTNLGRP_IPV4_NETCONF
    25, // RTNLGRP_IPV6_NETCONF
    crate::nexthop::GROUP,
];

/// A socket that hears of changes (`RTNLGRP_…`, `NFNLGRP_…`), for use with an event loop:
/// non-blocking, and itself never written to.
#[derive(Debug)]
pub struct Events {
    raw: RawSocket,
    /// Kept, since an allocator may ask the kernel for that much each time.
    buffer: Mutex<Vec<u8>>,
}

impl Events {
    /// Joins the rtnetlink multicast groups (`enum rtnetlink_groups`).
    pub fn route(groups: &[u32]) -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_ROUTE, groups)
    }

    /// Joins the netfilter multicast groups (`enum nfnetlink_groups`).
    pub fn netfilter(groups: &[u32]) -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_NETFILTER, groups)
    }

    fn open(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        /// Room for some 10,000 notices: of our own burst of writes only those of FDB entries come back
        /// ([`Events::ignore`]), and are no overrun.
        const EVENT_BUFFER: usize = 8 << 20;
        let mut raw = RawSocket::new(protocol)?;
        raw.bind_auto()?;
        raw.set_non_blocking(true)?;
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(raw.as_fd(), EVENT_BUFFER).is_err() {
            rustix::net::sockopt::set_socket_recv_buffer_size(raw.as_fd(), EVENT_BUFFER)?;
        }
        let events = Self { raw, buffer: Mutex::new(Vec::with_capacity(RECEIVE_BUFFER)) };
        groups.iter().try_for_each(|group| events.join(*group))?;
        Ok(events)
    }

    /// Joins a multicast group.
    pub fn join(&self, group: u32) -> io::Result<()> {
        self.raw.add_membership(group)
    }

    /// Leaves a multicast group. What has arrived can still be read.
    pub fn leave(&self, group: u32) -> io::Result<()> {
        self.raw.drop_membership(group)
    }

    /// Has the kernel leave out notices of changes that the socket with this port id made, where it
    /// says so: of routes, neighbours, nexthop objects and whatever is nftables', not of FDB entries. Of
    /// several messages in one packet, which are those of one transaction, the first counts.
    ///
    /// Of a neighbour that somebody deletes the kernel tells twice: by whom it has failed, then by nobody that
    /// the failed one is gone (net/core/neighbour.c: `neigh_delete`). The second is left out, whoever did it.
    /// One that goes with its device, its address or its MAC has not failed, and is told of once.
    ///
    /// Unless one `hears_fdb_deletions`, those are left out as well, whoever made them.
    pub fn ignore(&self, port: u32, hears_fdb_deletions: bool) -> io::Result<()> {
        // Offsets in `struct nlmsghdr` and, behind it, `struct ndmsg`. A filter loads in network byte order.
        const TYPE: u32 = 4;
        const PID: u32 = 12;
        const FAMILY: u32 = 16;
        const STATE: u32 = 24;
        let load = |size: u32, at| SockFilter::new((libc::BPF_LD | libc::BPF_ABS | size) as u16, 0, 0, at);
        // Skips so many instructions where it is so, and so many where not.
        let equal = |value, skip, or_else| {
            SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, skip, or_else, value)
        };
        let give = |bytes| SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, bytes);
        let loaded = |value: u16| u32::from(u16::from_be_bytes(value.to_ne_bytes()));
        SockRef::from(&self.raw).attach_filter(&[
            load(libc::BPF_W, PID),
            equal(u32::from_be_bytes(port.to_ne_bytes()), 7, 0), // to "drop"
            equal(0, 0, 7),                                      // or else to "keep", as all below
            load(libc::BPF_H, TYPE),
            equal(loaded(message_type::DELETE_NEIGHBOUR), 0, 5),
            load(libc::BPF_B, FAMILY),
            equal(libc::AF_BRIDGE as u32, if hears_fdb_deletions { 3 } else { 2 }, 0),
            load(libc::BPF_H, STATE),
            equal(loaded(libc::NUD_FAILED), 0, 1),
            give(0),        // drop
            give(u32::MAX), // keep
        ])
    }

    /// Hands on the type and the payload of each of the next notices, in order. `WouldBlock` when there
    /// are none; `ENOBUFS` when some were lost, after which only a fresh look at everything helps.
    pub fn read(&self, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.clear();
        self.raw.recv(&mut *buffer, 0)?;
        Messages::new(&buffer).for_each(|message| take(message.message_type, message.payload));
        Ok(())
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.raw.as_raw_fd()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

struct Message<'a> {
    message_type: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Message<'_> {
    fn reply(&self) -> Reply {
        Reply { message_type: self.message_type, payload: self.payload.to_vec() }
    }

    /// `struct nlmsgerr`: a negative errno, the request's header, then, with `ACK_TLVS`, attributes.
    fn verdict(&self) -> Result<(), KernelError> {
        let code = self.payload.first_chunk::<4>().map_or(0, |b| i32::from_ne_bytes(*b));
        if code == 0 {
            return Ok(());
        }
        let text = (self.message_type == NLMSG_ERROR && self.flags & ACK_TLVS != 0)
            .then(|| self.payload.get(4..))
            .flatten()
            .and_then(|echo| {
                let length = echo.first_chunk::<4>().map(|b| u32::from_ne_bytes(*b) as usize)?;
                echo.get(if self.flags & CAPPED != 0 { HEADER_LEN } else { length.next_multiple_of(4) }..)
            })
            .and_then(error_text);
        Err(KernelError { errno: -code, text })
    }
}

fn error_text(bytes: &[u8]) -> Option<String> {
    let (_, text) = attributes(bytes).find(|(kind, _)| *kind == ATTR_MSG)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

/// Walks the messages of one datagram.
struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.rest.first_chunk::<HEADER_LEN>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let payload = self.rest.get(HEADER_LEN..length)?;
        let message = Message {
            message_type: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload,
        };
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_padded_to_four_bytes_and_says_its_true_length() {
        let mut out = Vec::new();
        Request { message_type: 16, flags: flags::CREATE, payload: vec![7; 5] }.encode(
            flags::ACK,
            9,
            &mut out,
        );
        assert_eq!(out.len(), 24);
        assert_eq!(out[..4], 21u32.to_ne_bytes());
        assert_eq!(out[6..8], (flags::CREATE | flags::REQUEST | flags::ACK).to_ne_bytes());
    }

    #[test]
    fn the_kernels_own_words_are_read_from_an_error() {
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&[0; HEADER_LEN]);
        payload.extend_from_slice(&12u16.to_ne_bytes());
        payload.extend_from_slice(&ATTR_MSG.to_ne_bytes());
        payload.extend_from_slice(b"bad vni\0");
        let message =
            Message { message_type: NLMSG_ERROR, flags: CAPPED | ACK_TLVS, sequence: 1, payload: &payload };
        let error = message.verdict().expect_err("code is -22");
        assert_eq!((error.errno, error.text.as_deref()), (22, Some("bad vni")));
    }

    #[test]
    fn a_truncated_datagram_ends_the_walk() {
        let mut bytes = 64u32.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[0; 20]);
        assert_eq!(Messages::new(&bytes).count(), 0);
    }

    #[test]
    fn loopback_is_found_and_an_unknown_link_is_none() {
        use netlink_packet_route::link::{LinkAttribute, LinkMessage};
        let mut socket = Socket::route().expect("a netlink socket needs no right");
        let by_name = |name: &str| {
            let mut message = LinkMessage::default();
            message.attributes.push(LinkAttribute::IfName(name.into()));
            Request::of(message_type::GET_LINK, &message, 0)
        };
        assert!(socket.get(&by_name("lo")).expect("get").is_some());
        assert!(socket.get(&by_name("no-such-link")).expect("get").is_none());
        let all = Request::of(message_type::GET_LINK, &LinkMessage::default(), 0);
        assert!(!socket.dump(&all).expect("dump").is_empty());
    }
}
