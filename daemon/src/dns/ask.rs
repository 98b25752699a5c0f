//! Asks a name server, as `loden doctor dns` does: one question, one answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query};
pub use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RData};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::PORT;
use loden_core::names::{MAX_DATAGRAM, OUTSIDE_OPTION, View};

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

/// The answer of a server to a question in this view, or why there is none.
pub async fn ask(server: IpAddr, name: &str, kind: RecordType, view: View) -> Result<Told, String> {
    let mut asked = Name::from_ascii(name).map_err(|e| format!("{name:?} is no name: {e}"))?;
    asked.set_fqdn(true);
    let mut request = Message::query();
    request.add_query(Query::query(asked, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_DATAGRAM).set_version(0);
    if view == View::Outside {
        edns.options_mut().insert(EdnsOption::Unknown(OUTSIDE_OPTION, Vec::new()));
    }
    request.edns = Some(edns);
    let bytes = request.to_vec().map_err(|e| e.to_string())?;
    let mut failure = String::new();
    for _ in 0..TRIES {
        match timeout(PATIENCE, exchange(server, &request, &bytes)).await {
            Ok(Ok(answer)) if answer.metadata.truncation => {
                let whole = timeout(PATIENCE, by_connection(server, &bytes)).await;
                return whole.map_or(Err("no answer by TCP".into()), |whole| {
                    whole.map(|answer| told(&answer, kind)).map_err(|e| format!("by TCP: {e}"))
                });
            }
            Ok(Ok(answer)) => return Ok(told(&answer, kind)),
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

/// For what is too long for a datagram (RFC 1035 §4.2.2).
async fn by_connection(server: IpAddr, bytes: &[u8]) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(SocketAddr::new(server, PORT)).await?;
    let length = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Message::from_vec(&answer).map_err(std::io::Error::other)
}

fn told(answer: &Message, kind: RecordType) -> Told {
    let of_kind = answer.answers.iter().filter(|record| record.record_type() == kind);
    let mut answers: Vec<String> = of_kind.map(|record| record.data.to_string()).collect();
    answers.sort();
    let serial = answer.answers.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(soa.serial),
        _ => None,
    });
    Told { code: format!("{:?}", answer.metadata.response_code), answers, serial }
}
