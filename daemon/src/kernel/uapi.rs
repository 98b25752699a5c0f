//! Numbers of the kernel's interface, for messages about routes and neighbours: those that are read and
//! written attribute by attribute, since there are as many as peers.

use loden_proto::Family;

// include/uapi/linux/rtnetlink.h
pub(super) const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
pub(super) const RTA_PRIORITY: u16 = 6;
pub(super) const RTA_MULTIPATH: u16 = 9;
pub(super) const RTA_TABLE: u16 = 15;
pub(super) const RTA_NH_ID: u16 = 30;
pub(super) const RTN_UNICAST: u8 = 1;
/// `RT_TABLE_MAIN`
pub(super) const MAIN: u32 = 254;
/// A cache entry, not a route of the table.
pub(super) const RTM_F_CLONED: u32 = 0x200;
pub(super) const RTNH_F_ONLINK: u32 = 4;

// include/uapi/linux/neighbour.h
pub(super) const NDA_DST: u16 = 1;
pub(super) const NDA_LLADDR: u16 = 2;
/// Another port, VNI or device than the VXLAN device's own (drivers/net/vxlan/vxlan_core.c: vxlan_fdb_info).
pub(super) const NDA_PORT: u16 = 6;
pub(super) const NDA_VNI: u16 = 7;
pub(super) const NDA_IFINDEX: u16 = 8;
pub(super) const NUD_PERMANENT: u16 = 0x80;
/// An FDB entry of the device itself, not of the bridge above it.
pub(super) const NTF_SELF: u8 = 0x2;

pub(super) const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;

/// The number of an address family.
pub(super) fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}
