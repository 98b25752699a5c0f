//! From a request's bytes to an answer's (RFC 1035, EDNS: RFC 6891). No input or output: what the zone
//! cannot answer is handed back to be forwarded.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsCode;
use hickory_proto::rr::rdata::{A, AAAA, NS, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record as WireRecord, RecordType};
use loden_proto::dns_name::DnsName;

use super::{Answer, Data, Kind, Record, View, Zone};

/// By what a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A datagram; the answer's size is limited.
    Udp,
    /// A connection; it is not.
    Tcp,
}

/// What to do with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Ask another server.
    Forward,
    /// Ask the zone again in a moment: it may be another host's name, and these are not known yet.
    Later,
    /// Nothing: it is no request.
    Silence,
}

/// The largest datagram that crosses any network unfragmented (DNS flag day 2020).
pub const MAX_DATAGRAM: u16 = 1232;
/// The length of a header in bytes (RFC 1035 §4.1.1), and in it the bit of an answer.
const HEADER: usize = 12;
const ANSWER_BIT: u8 = 0x80;
/// How often a secondary server would look, try again, and give up, in seconds. There is none: every host
/// has all names.
const REFRESH: i32 = 60;
const RETRY: i32 = 10;
const EXPIRE: i32 = 86_400;

/// An option by which anybody asks to be told what those outside are, as `loden doctor dns` does. Of the
/// codes for local use (RFC 6891 §9); its data means nothing.
pub const OUTSIDE_OPTION: u16 = 65_153;

/// Who asks, and how.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The client.
    pub client: IpAddr,
    /// Our address that was asked.
    pub at: IpAddr,
    /// By what.
    pub transport: Transport,
    /// Which member of a group comes first.
    pub turn: usize,
}

/// The reply to a request.
pub fn reply(zone: Option<&Zone>, request: &[u8], asked: Asked) -> Reply {
    let Asked { client, at, transport, turn } = asked;
    // An answer to an answer would come back for ever.
    if request.len() < HEADER || request[2] & ANSWER_BIT != 0 {
        return Reply::Silence;
    }
    let Ok(message) = Message::from_vec(request) else {
        return refusal(request, ResponseCode::FormErr);
    };
    if message.metadata.op_code != OpCode::Query {
        return finish(&message, ResponseCode::NotImp, View::Outside, transport);
    }
    let [query] = message.queries.as_slice() else {
        return finish(&message, ResponseCode::FormErr, View::Outside, transport);
    };
    if message.version() > 0 {
        return finish(&message, ResponseCode::BADVERS, View::Outside, transport);
    }
    let transfer = matches!(query.query_type, RecordType::AXFR | RecordType::IXFR);
    let Some(zone) = zone.filter(|_| query.query_class == DNSClass::IN && !transfer) else {
        return finish(&message, ResponseCode::Refused, View::Outside, transport);
    };
    let name = query.name.to_ascii().to_ascii_lowercase();
    let view = if asks_as_outsider(&message) { View::Outside } else { zone.view(client, at) };
    match zone.answer(view, name.trim_end_matches('.'), kind(query.query_type), turn) {
        // Who does not ask us to ask others (RD) is a server that looks for ours alone.
        Answer::Elsewhere if message.metadata.recursion_desired => Reply::Forward,
        Answer::Elsewhere | Answer::Refused => finish(&message, ResponseCode::Refused, view, transport),
        Answer::NotYet if view == View::Overlay => Reply::Later,
        // Those outside ask again.
        Answer::NotYet => finish(&message, ResponseCode::ServFail, view, transport),
        Answer::NoName(apex) => {
            let mut answer = response(&message, ResponseCode::NXDomain, view);
            answer.authorities.extend(soa(zone, &apex, zone.settings().dns.negative_ttl));
            emit(answer, &message, transport)
        }
        Answer::Found { answers, additional, apex } => {
            let mut answer = response(&message, ResponseCode::NoError, view);
            if answers.is_empty() {
                answer.authorities.extend(soa(zone, &apex, zone.settings().dns.negative_ttl));
            }
            answer.answers.extend(answers.iter().filter_map(|r| wire(zone, r, query, &apex)));
            answer.additionals.extend(additional.iter().filter_map(|r| wire(zone, r, query, &apex)));
            emit(answer, &message, transport)
        }
    }
}

/// The answer to a request that cannot be carried out, such as one that no server has answered.
pub fn failure(request: &[u8]) -> Reply {
    match Message::from_vec(request) {
        // Whose questions are forwarded is inside.
        Ok(message) => finish(&message, ResponseCode::ServFail, View::Overlay, Transport::Udp),
        Err(_) => Reply::Silence,
    }
}

fn asks_as_outsider(request: &Message) -> bool {
    let option = EdnsCode::Unknown(OUTSIDE_OPTION);
    request.edns.as_ref().is_some_and(|edns| edns.option(option).is_some())
}

fn kind(wanted: RecordType) -> Kind {
    match wanted {
        RecordType::A => Kind::A,
        RecordType::AAAA => Kind::Aaaa,
        RecordType::PTR => Kind::Ptr,
        RecordType::SRV => Kind::Srv,
        RecordType::SOA => Kind::Soa,
        RecordType::NS => Kind::Ns,
        RecordType::ANY => Kind::Any,
        _ => Kind::Other,
    }
}

/// The head of an answer: ours, from what we know.
fn response(request: &Message, code: ResponseCode, view: View) -> Message {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    metadata.response_code = code;
    metadata.authoritative = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
    // Those outside are told of our own names alone.
    metadata.recursion_available = view == View::Overlay;
    let mut answer = Message::new(metadata.id, MessageType::Response, metadata.op_code);
    answer.metadata = metadata;
    answer.queries = request.queries.clone();
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM).set_version(0);
        answer.edns = Some(edns);
    }
    answer
}

fn finish(request: &Message, code: ResponseCode, view: View, transport: Transport) -> Reply {
    emit(response(request, code, view), request, transport)
}

/// Where not even the question can be read, the head alone.
fn refusal(request: &[u8], code: ResponseCode) -> Reply {
    let id = u16::from_be_bytes([request[0], request[1]]);
    match Message::error_msg(id, OpCode::Query, code).to_vec() {
        Ok(bytes) => Reply::Send(bytes),
        Err(_) => Reply::Silence,
    }
}

fn emit(answer: Message, request: &Message, transport: Transport) -> Reply {
    let most = match transport {
        Transport::Udp => request.max_payload().min(MAX_DATAGRAM),
        Transport::Tcp => u16::MAX,
    };
    let bytes = match answer.to_vec() {
        Ok(bytes) if bytes.len() <= usize::from(most) => Ok(bytes),
        _ => answer.truncate().to_vec(),
    };
    bytes.map_or(Reply::Silence, Reply::Send)
}

fn soa(zone: &Zone, apex: &DnsName, ttl: u32) -> Option<WireRecord> {
    let (server, contact) = (full(zone.name_server())?, full(&zone.settings().dns.zone)?);
    let contact = contact.prepend_label("hostmaster").ok()?;
    let minimum = zone.settings().dns.negative_ttl;
    let soa = SOA::new(server, contact, zone.serial(), REFRESH, RETRY, EXPIRE, minimum);
    Some(WireRecord::from_rdata(full(apex)?, ttl, RData::SOA(soa)))
}

/// A record as it goes over the wire. Its owner is written as the client wrote it: some check that.
fn wire(zone: &Zone, record: &Record, query: &Query, apex: &DnsName) -> Option<WireRecord> {
    let owner = match &record.owner {
        None => query.name.clone(),
        Some(name) => full(name)?,
    };
    let ttl = record.ttl.unwrap_or(zone.settings().dns.ttl);
    let data = match &record.data {
        Data::Address(IpAddr::V4(ip)) => RData::A(A(*ip)),
        Data::Address(IpAddr::V6(ip)) => RData::AAAA(AAAA(*ip)),
        Data::Ptr(name) => RData::PTR(PTR(full(name)?)),
        Data::Srv { priority, weight, port, target } => {
            RData::SRV(SRV::new(*priority, *weight, *port, full(target)?))
        }
        Data::Ns(name) => RData::NS(NS(full(name)?)),
        Data::Soa => return soa(zone, apex, ttl),
    };
    Some(WireRecord::from_rdata(owner, ttl, data))
}

fn full(name: &DnsName) -> Option<Name> {
    let mut name = Name::from_ascii(name.as_str()).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use loden_proto::config::Dns;
    use loden_proto::lease::LeaseKey;
    use loden_proto::name_record::NameRecord;

    use super::*;
    use crate::names::{NameEntry, NameKey, NameTable, Settings};

    const CONTAINER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 5, 7, 9));

    fn asked(client: IpAddr, transport: Transport) -> Asked {
        Asked { client, at: IpAddr::from([192, 0, 2, 1]), transport, turn: 0 }
    }

    /// One container, dn1, and a group of a hundred.
    fn zone() -> Zone {
        let mut zone = Zone::new(Settings {
            dns: Dns::default(),
            networks: vec!["10.5.0.0/16".parse().expect("network")],
            own_subnets: vec!["10.5.7.0/24".parse().expect("network")],
            own_addresses: Default::default(),
            public_addresses: Vec::new(),
            local_networks: Vec::new(),
        });
        let mut names = NameTable::default();
        for number in 1..=100u8 {
            let record = NameRecord {
                names: vec![format!("dn{number}").parse().expect("name")],
                groups: vec!["all".parse().expect("name")],
                addresses: vec![IpAddr::from([10, 5, 7, 8 + number])],
                ports: Vec::new(),
                since: 1,
                source: Default::default(),
            };
            let lease = LeaseKey::parse("10.5.7.0-24").expect("key");
            let key = NameKey { lease, endpoint: Arc::from(format!("c{number}")) };
            names.put(key, NameEntry { record: Ok(record), etcd_lease: 1 });
        }
        zone.set_names(names);
        zone.set_complete();
        zone
    }

    fn question(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).expect(name), kind));
        message
    }

    fn answer_by(message: &Message, transport: Transport) -> Message {
        let request = message.to_vec().expect("a request");
        match reply(Some(&zone()), &request, asked(CONTAINER, transport)) {
            Reply::Send(bytes) => Message::from_vec(&bytes).expect("an answer"),
            other => panic!("{other:?}"),
        }
    }

    fn answer(message: &Message) -> Message {
        answer_by(message, Transport::Udp)
    }

    #[test]
    fn an_answer_repeats_the_question_as_it_was_written() {
        let answer = answer(&question("DN1.Loden.Internal.", RecordType::A));
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (4711, ResponseCode::NoError));
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        assert_eq!(answer.queries[0].name.to_ascii(), "DN1.Loden.Internal.");
        assert_eq!(answer.answers[0].name.to_ascii(), "DN1.Loden.Internal.");
        assert_eq!((answer.answers[0].ttl, answer.answers.len()), (5, 1));
    }

    #[test]
    fn a_negative_answer_says_how_long_it_may_be_remembered() {
        for (name, kind, code) in [
            ("nobody.loden.internal.", RecordType::A, ResponseCode::NXDomain),
            ("dn1.loden.internal.", RecordType::TXT, ResponseCode::NoError),
            ("200.7.5.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
        ] {
            let answer = answer(&question(name, kind));
            assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0), "{name}");
            let soa = answer.authorities.first().expect("a start of authority");
            assert_eq!((soa.record_type(), soa.ttl), (RecordType::SOA, 2), "{name}");
        }
    }

    #[test]
    fn a_large_answer_is_cut_for_datagrams_and_whole_for_connections() {
        let mut message = question("all.loden.internal.", RecordType::A);
        let cut = answer(&message);
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        assert!(cut.to_vec().expect("bytes").len() <= 512);
        let whole = answer_by(&message, Transport::Tcp);
        assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 100));
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns);
        // 100 addresses need some 1,650 bytes: more than crosses every network unfragmented.
        let cut = answer(&message);
        assert!(cut.metadata.truncation && cut.edns.is_some_and(|e| e.max_payload() == MAX_DATAGRAM));
    }

    #[test]
    fn what_is_no_plain_question_is_refused_by_its_kind() {
        let mut status = question("dn1.loden.internal.", RecordType::A);
        status.metadata.op_code = OpCode::Status;
        let mut chaos = question("version.bind.", RecordType::TXT);
        chaos.queries[0].query_class = DNSClass::CH;
        let mut two = question("dn1.loden.internal.", RecordType::A);
        two.add_query(Query::query(Name::root(), RecordType::A));
        let mut version = question("dn1.loden.internal.", RecordType::A);
        let mut edns = Edns::new();
        edns.set_version(1);
        version.set_edns(edns);
        let mut for_a_server = question("example.com.", RecordType::A);
        for_a_server.metadata.recursion_desired = false;
        for (message, code) in [
            (status, ResponseCode::NotImp),
            (chaos, ResponseCode::Refused),
            (two, ResponseCode::FormErr),
            (version, ResponseCode::BADVERS),
            (question("loden.internal.", RecordType::AXFR), ResponseCode::Refused),
            (question("dn1.loden.internal.", RecordType::ANY), ResponseCode::Refused),
            (for_a_server, ResponseCode::Refused),
        ] {
            // Two words share the number 16 (RFC 6895 §2.3).
            assert_eq!(u16::from(answer(&message).metadata.response_code), u16::from(code), "{message:?}");
        }
    }

    #[test]
    fn answers_and_rubbish_are_not_answered_for_ever() {
        let silent = |request: &[u8]| {
            reply(Some(&zone()), request, asked(CONTAINER, Transport::Udp)) == Reply::Silence
        };
        let mut answer = question("dn1.loden.internal.", RecordType::A);
        answer.metadata.message_type = MessageType::Response;
        assert!(silent(&answer.to_vec().expect("bytes")));
        assert!(silent(&[]) && silent(&[0; 11]));
        // A head that promises a question, and none.
        let Reply::Send(bytes) =
            reply(Some(&zone()), &[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], asked(CONTAINER, Transport::Udp))
        else {
            panic!("it has an id to answer to")
        };
        let message = Message::from_vec(&bytes).expect("an answer");
        assert_eq!((message.metadata.id, message.metadata.response_code), (0x0707, ResponseCode::FormErr));
    }

    #[test]
    fn what_is_not_ours_is_forwarded_for_members_alone() {
        let request = question("example.com.", RecordType::A).to_vec().expect("bytes");
        assert_eq!(reply(Some(&zone()), &request, asked(CONTAINER, Transport::Udp)), Reply::Forward);
        let stranger = "198.51.100.1".parse().expect("ip");
        let Reply::Send(bytes) = reply(Some(&zone()), &request, asked(stranger, Transport::Udp)) else {
            panic!("a stranger is told so")
        };
        let message = Message::from_vec(&bytes).expect("an answer");
        assert_eq!(message.metadata.response_code, ResponseCode::Refused);
        assert!(!message.metadata.recursion_available);
    }
}
