//! Asks a name server, as `loden doctor dns` does: one question, one answer, over UDP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query};
pub use hickory_proto::rr::RecordType;
use hickory_proto::rr::{Name, RData};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::PORT;
use loden_core::names::MAX_DATAGRAM;

/// How long one try may take, and how many there are: a datagram can be lost.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIES: usize = 2;

/// What a server told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// `NoError`, `NXDomain`, `Refused`, …
    pub code: String,
    /// The data of the records of the kind that was asked for, in order.
    pub answers: Vec<String>,
    /// The serial number, where the start of authority was told.
    pub serial: Option<u32>,
}

/// The answer of a server, or why there is none.
pub async fn ask(server: IpAddr, name: &str, kind: RecordType) -> Result<Told, String> {
    let mut asked = Name::from_ascii(name).map_err(|e| format!("{name:?} is no name: {e}"))?;
    asked.set_fqdn(true);
    let mut request = Message::query();
    request.add_query(Query::query(asked, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_DATAGRAM).set_version(0);
    request.edns = Some(edns);
    let bytes = request.to_vec().map_err(|e| e.to_string())?;
    let mut failure = String::new();
    for _ in 0..TRIES {
        match timeout(PATIENCE, exchange(server, &request, &bytes)).await {
            Ok(Ok(answer)) => return told(&answer, kind),
            Ok(Err(error)) => failure = error.to_string(),
            Err(_) => failure = "no answer".into(),
        }
    }
    Err(failure)
}

async fn exchange(server: IpAddr, request: &Message, bytes: &[u8]) -> std::io::Result<Message> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    // Connected, it takes answers from there alone.
    socket.connect(SocketAddr::new(server, PORT)).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if answer.metadata.id == request.metadata.id && answer.queries == request.queries => {
                return Ok(answer);
            }
            _ => {}
        }
    }
}

fn told(answer: &Message, kind: RecordType) -> Result<Told, String> {
    if answer.metadata.truncation {
        return Err("the answer is too long for a datagram".into());
    }
    let of_kind = answer.answers.iter().filter(|record| record.record_type() == kind);
    let mut answers: Vec<String> = of_kind.map(|record| record.data.to_string()).collect();
    answers.sort();
    let serial = answer.answers.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.serial),
        _ => None,
    });
    Ok(Told { code: format!("{:?}", answer.metadata.response_code), answers, serial })
}
