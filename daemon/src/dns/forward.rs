//! What is not ours to answer goes to the host's own servers, as it came, and their answer back. Equal
//! questions at one time, however their letters are written, are asked once: so a server that asks us in its
//! turn waits for itself, and a question does not run in circles.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use loden_core::names::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::places::Places;
use super::upstreams::Upstreams;
use crate::clock;

/// How long one server has to answer, and how many are asked. Docker's and glibc's resolvers wait for 4 and
/// 5 s.
const PATIENCE: Duration = Duration::from_secs(2);
const SERVERS: usize = 2;
/// Questions under way, of one client and altogether. Who asks for more is told so at once.
const MOST_OF_CLIENT: usize = 100;
const MOST: usize = 1000;

/// Forwards questions.
pub(super) struct Forwarder {
    upstreams: RefCell<Upstreams>,
    under_way: RefCell<HashMap<Question, watch::Receiver<Option<Answer>>>>,
    /// Of questions under way.
    places: Rc<Places>,
    /// Who answered last, when another before him did not.
    good: Cell<Option<SocketAddr>>,
}

/// Without the id.
type Question = (Transport, Box<[u8]>);
/// Without the id; empty when nobody answered.
type Answer = Rc<[u8]>;

/// The two bytes that tell an answer's question (RFC 1035 §4.1.1), different for each client.
const ID: usize = 2;

impl Forwarder {
    /// Forwards to the host's servers.
    pub(super) fn new(upstreams: Upstreams) -> Self {
        Self {
            upstreams: RefCell::new(upstreams),
            under_way: Default::default(),
            places: Places::new(MOST_OF_CLIENT, MOST),
            good: Cell::new(None),
        }
    }

    /// The answer of another server; `None` if there is none in time, or too many are asked for. `avoid`
    /// are our own addresses.
    pub(super) async fn ask(
        &self,
        request: &[u8],
        client: IpAddr,
        transport: Transport,
        avoid: &[IpAddr],
    ) -> Option<Vec<u8>> {
        let (id, question) = request.split_at_checked(ID)?;
        let _place = self.places.take(client)?;
        let key = (transport, in_small_letters(question));
        let known = self.under_way.borrow().get(&key).cloned();
        let answer = match known {
            Some(mut other) => other.wait_for(Option::is_some).await.ok()?.clone()?,
            None => {
                let (sender, receiver) = watch::channel(None);
                self.under_way.borrow_mut().insert(key.clone(), receiver);
                let _done = OnDrop(|| _ = self.under_way.borrow_mut().remove(&key));
                let answer = self.ask_servers(question, transport, avoid).await;
                let answer: Answer = answer.unwrap_or_default().into();
                sender.send_replace(Some(answer.clone()));
                answer
            }
        };
        let mut answer = [id, &answer].concat();
        // As this client wrote the name: some check that.
        if let Some(end) = name_end(question)
            && let Some(name) = answer.get_mut(ID + HEAD..ID + end)
        {
            name.copy_from_slice(&question[HEAD..end]);
        }
        (answer.len() > ID).then_some(answer)
    }

    async fn ask_servers(&self, question: &[u8], transport: Transport, avoid: &[IpAddr]) -> Option<Vec<u8>> {
        let mut servers: Vec<SocketAddr> = self.upstreams.borrow_mut().servers().to_vec();
        // Who names us in its resolv.conf gets no answer twice.
        servers.retain(|server| !avoid.contains(&server.ip()));
        // A server that is down costs each question its patience, so it is not asked first for ever.
        servers.sort_by_key(|server| self.good.get() != Some(*server));
        let mut declined = None;
        for (place, server) in servers.into_iter().take(SERVERS).enumerate() {
            let asked = async {
                match transport {
                    Transport::Udp => ask_by_datagram(question, server).await,
                    Transport::Tcp => ask_by_connection(question, server).await,
                }
            };
            match timeout(PATIENCE, asked).await {
                // The next one may do better.
                Ok(Ok(answer)) if declines(&answer) => _ = declined.get_or_insert(answer),
                Ok(Ok(answer)) => {
                    if place > 0 {
                        self.good.set(Some(server));
                    }
                    return Some(answer);
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "a server cannot be asked"),
                Err(_) => tracing::debug!(%server, "a server does not answer"),
            }
        }
        declined
    }
}

/// Runs its function at the end, also when the task is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Under an id and from a port that nobody can foresee: else anybody could answer (RFC 5452).
async fn ask_by_datagram(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = (clock::chance() as u16).to_be_bytes();
    socket.send(&[&id, question].concat()).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = &buffer[..length];
        if answer.starts_with(&id) && answers(&answer[ID..], question) {
            return Ok(answer[ID..].to_vec());
        }
    }
}

async fn ask_by_connection(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = (clock::chance() as u16).to_be_bytes();
    let length = ((ID + question.len()) as u16).to_be_bytes();
    stream.write_all(&[&length, &id, question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    match answer.starts_with(&id) && answers(&answer[ID..], question) {
        true => Ok(answer.split_off(ID)),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// The rest of the head, without the id.
const HEAD: usize = 10;

/// Where the name in a question, without its id, ends.
fn name_end(question: &[u8]) -> Option<usize> {
    let mut at = HEAD;
    // Labels, each after its length, until one of none (RFC 1035 §3.1).
    while let Some(length @ 1..) = question.get(at).copied() {
        at += 1 + usize::from(length);
    }
    (at < question.len()).then_some(at + 1)
}

fn in_small_letters(question: &[u8]) -> Box<[u8]> {
    let mut key = Box::<[u8]>::from(question);
    if let Some(end) = name_end(question) {
        // The lengths among them are below those of letters.
        key[HEAD..end].make_ascii_lowercase();
    }
    key
}

/// Whether these bytes, both without their ids, are an answer to the question: the same name, kind and
/// class in them.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    // Kind and class have two bytes each.
    let Some(end) = name_end(question).map(|end| end + 4).filter(|end| *end <= question.len()) else {
        return false;
    };
    answer.len() >= end
        && answer[HEAD..end].eq_ignore_ascii_case(&question[HEAD..end])
        && answer[0] & 0x80 != 0
}

/// Whether a server says that it cannot or will not tell: SERVFAIL, REFUSED (RFC 1035 §4.1.1).
fn declines(answer: &[u8]) -> bool {
    answer.get(1).is_some_and(|byte| matches!(byte & 0x0f, 2 | 5))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Head without id, and one question.
    fn question(name: &str, answer: bool) -> Vec<u8> {
        let mut bytes = vec![if answer { 0x80 } else { 0x01 }, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            bytes.push(label.len() as u8);
            bytes.extend(label.bytes());
        }
        bytes.extend([0, 0, 1, 0, 1]);
        bytes
    }

    #[test]
    fn only_an_answer_to_the_question_is_one() {
        let asked = question("example.com", false);
        assert!(answers(&question("example.com", true), &asked));
        assert!(answers(&question("EXAMPLE.com", true), &asked));
        assert!(!answers(&question("example.org", true), &asked));
        assert!(!answers(&question("example.com", false), &asked));
        assert!(!answers(&[0x80, 0], &asked));
        let (small, large) = (question("example.com", false), question("eXample.COM", false));
        assert_eq!(in_small_letters(&large), in_small_letters(&small));
        assert_ne!(in_small_letters(&small), in_small_letters(&question("example.org", false)));
        let mut refused = question("example.com", true);
        refused[1] |= 5;
        assert!(declines(&refused) && !declines(&question("example.com", true)));
        for end in 0..asked.len() {
            assert!(!answers(&question("example.com", true), &asked[..end]), "{end}");
        }
    }
}
