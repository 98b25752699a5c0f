//! A request to the DNS server: whatever comes, the answer is one to it, and of a length that it allows.

#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use hickory_proto::op::{Message, MessageType};
use libfuzzer_sys::fuzz_target;
use loden_core::names::{
    Asked, MAX_DATAGRAM, NameEntry, NameKey, NameTable, Reply, Settings, Transport, Zone, failure, reply,
};
use loden_proto::lease::LeaseKey;
use loden_proto::name_record::NameRecord;

/// Fifty containers in a group, as much as a datagram cannot hold.
static ZONE: LazyLock<Zone> = LazyLock::new(|| {
    let mut names = NameTable::default();
    for number in 2..52u8 {
        let text = format!(
            r#"{{"Names":["c{number}","c{number}.sub"],"Groups":["all"],"Addresses":["10.5.7.{number}"],"Since":1,
                "Ports":[{{"Protocol":"tcp","Port":80,"HostPort":8080}}]}}"#
        );
        let lease = LeaseKey::parse("10.5.7.0-24").expect("a key");
        let record = NameRecord::parse(text.as_bytes());
        names
            .put(NameKey { lease, endpoint: number.to_string().into() }, NameEntry { record, etcd_lease: 1 });
    }
    let mut zone = Zone::new(Settings {
        dns: Default::default(),
        networks: vec!["10.5.0.0/16".parse().expect("a network"), "fd00::/48".parse().expect("a network")],
        own_subnets: vec!["10.5.7.0/24".parse().expect("network")],
        own_addresses: Default::default(),
        public_addresses: Vec::new(),
        local_networks: Vec::new(),
    });
    zone.set_names(names);
    zone.set_complete();
    zone
});

fuzz_target!(|input: (&[u8], bool, bool)| {
    let (request, inside, by_connection) = input;
    let client: IpAddr = if inside { [10, 5, 7, 2].into() } else { [198, 51, 100, 1].into() };
    let transport = if by_connection { Transport::Tcp } else { Transport::Udp };
    let asked = Asked { client, at: [192, 0, 2, 1].into(), transport, turn: 7 };
    for reply in [reply(Some(&ZONE), request, asked), failure(request)] {
        let Reply::Send(answer) = reply else { continue };
        assert!(by_connection || answer.len() <= usize::from(MAX_DATAGRAM));
        assert_eq!(answer[..2], request[..2], "another question's answer");
        let message = Message::from_vec(&answer).expect("an answer that can be read");
        assert_eq!(message.metadata.message_type, MessageType::Response);
    }
});
