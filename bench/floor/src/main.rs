//! The kernel's floor: a process that does with a container's interface what cannot be left out,
//! by the plugin's own messages, and nothing else: no configuration, no choice of an
//! address, no file, no look at what is there already. Started by `loden-bench`.
//!
//! ```text
//! add NAMESPACE HOST-END NAME BRIDGE-INDEX ADDRESS   a pair on the bridge, the address of a /24,
//!                                                    a default route by the subnet's first
//! del HOST-END
//! nothing
//! ```

use std::fs::File;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::ExitCode;

use loden_cni::links;
use loden_cni::naming::mac_of;
use loden_netlink::{Request, Socket};
use loden_proto::{Mac, Subnet};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const LOOPBACK: u32 = 1;
const MTU: u32 = 1450;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["add", namespace, host_end, name, bridge, address] => {
            add(namespace, host_end, name, bridge, address)
        }
        ["del", host_end] => del(host_end),
        ["nothing"] => Ok(()),
        _ => Err(io::Error::other("expected add, del or nothing")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // As a plugin does.
            let _ = writeln!(io::stdout(), "loden-bench-floor: {arguments:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn add(namespace: &str, host_end: &str, name: &str, bridge: &str, address: &str) -> io::Result<()> {
    let bridge: u32 = bridge.parse().map_err(io::Error::other)?;
    let address: IpAddr = address.parse().map_err(io::Error::other)?;
    let subnet = Subnet::containing(address, 24).map_err(io::Error::other)?;
    let everywhere = Subnet::containing(address, 0).map_err(io::Error::other)?;
    let (namespace, own) = (File::open(namespace)?, File::open("/proc/thread-self/ns/net")?);
    let enter = |to: &File| move_into_link_name_space(to.as_fd(), Some(LinkNameSpaceType::Network));
    enter(&namespace)?;
    let mut inside = Socket::route()?;
    enter(&own)?;
    let mut host = Socket::route()?;

    let mac = mac_of(address);
    let Mac([_, b, c, d, e, f]) = mac;
    let of_host = Mac::local([0x0e, b, c, d, e, f]);
    send(
        &mut host,
        &[links::new_pair((host_end, of_host), (name, mac), namespace.as_raw_fd(), bridge, MTU)],
    )?;
    let link = links::by_name(&mut inside, name).map_err(io::Error::other)?;
    let index = link.ok_or(io::ErrorKind::NotFound)?.index;
    let requests = [
        links::set_up(LOOPBACK),
        links::set_up(index),
        links::add_address(index, address, subnet),
        links::add_route(index, everywhere, subnet.gateway(), None),
    ];
    send(&mut inside, &requests)
}

fn del(host_end: &str) -> io::Result<()> {
    match links::delete(&mut Socket::route()?, host_end).map_err(io::Error::other)? {
        true => Ok(()),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

fn send(socket: &mut Socket, requests: &[Request]) -> io::Result<()> {
    let verdicts = socket.batch(requests).map_err(io::Error::other)?;
    verdicts.into_iter().try_for_each(|verdict| verdict.map_err(io::Error::other))
}
