//! Requests that wait, client by client in turns: who asks ten thousand times a second waits for himself, and
//! the next client's single request for one of his at most.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Requests of one client that wait. Beyond, the oldest is dropped: whoever sent it has long asked again.
const MOST_OF_CLIENT: usize = 128;
/// Clients that wait; the addresses of a /24 and many hosts.
const MOST_CLIENTS: usize = 4096;
/// Requests that wait altogether. Of who asks from addresses of others, many clients' worth.
const MOST: usize = 16_384;

/// The requests that wait.
#[derive(Debug)]
pub(super) struct Turns<T> {
    waiting: HashMap<IpAddr, VecDeque<T>>,
    /// Clients with a request that waits, in order of their turns.
    order: VecDeque<IpAddr>,
    /// All that wait.
    count: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), order: VecDeque::new(), count: 0 }
    }
}

impl<T> Turns<T> {
    /// Whether nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// A client's request begins to wait.
    pub(super) fn push(&mut self, client: IpAddr, request: T) {
        if let Some(requests) = self.waiting.get_mut(&client) {
            if requests.len() >= MOST_OF_CLIENT || self.count >= MOST {
                requests.pop_front();
                self.count -= 1;
            }
            requests.push_back(request);
            self.count += 1;
        } else if self.order.len() < MOST_CLIENTS && self.count < MOST {
            self.waiting.insert(client, VecDeque::from([request]));
            self.order.push_back(client);
            self.count += 1;
        }
    }

    /// The request whose turn it is.
    pub(super) fn pop(&mut self) -> Option<T> {
        let client = self.order.pop_front()?;
        let requests = self.waiting.get_mut(&client)?;
        let request = requests.pop_front();
        self.count -= usize::from(request.is_some());
        if requests.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.order.push_back(client);
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> IpAddr {
        [10, 5, 7, last].into()
    }

    #[test]
    fn a_single_request_waits_for_one_of_each_other_client_at_most() {
        let mut turns = Turns::default();
        for number in 0..50 {
            turns.push(client(1), (1, number));
        }
        turns.push(client(2), (2, 0));
        turns.push(client(3), (3, 0));
        let order: Vec<_> = std::iter::from_fn(|| turns.pop()).take(5).collect();
        assert_eq!(order, [(1, 0), (2, 0), (3, 0), (1, 1), (1, 2)]);
        assert_eq!(std::iter::from_fn(|| turns.pop()).count(), 47);
        assert!(turns.is_empty());
    }

    #[test]
    fn a_flood_from_everywhere_takes_no_more_than_its_room() {
        let mut turns = Turns::default();
        for number in 0..400_000u32 {
            turns.push(IpAddr::from([10, 5, (number >> 8) as u8, number as u8]), number);
        }
        assert!(turns.count <= MOST, "{}", turns.count);
        assert_eq!(std::iter::from_fn(|| turns.pop()).count(), MOST);
        assert!(turns.is_empty() && turns.count == 0);
    }

    #[test]
    fn of_too_many_requests_the_newest_are_kept() {
        let mut turns = Turns::default();
        for number in 0..1000 {
            turns.push(client(1), number);
        }
        assert_eq!(turns.pop(), Some(1000 - MOST_OF_CLIENT));
    }
}
