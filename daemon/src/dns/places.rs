//! How much of something that is scarce one client can have, and all of them together.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// Places that clients take and give back.
#[derive(Debug)]
pub(super) struct Places {
    most_of_client: usize,
    most: usize,
    taken: RefCell<HashMap<IpAddr, usize>>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Rc<Places>,
    client: IpAddr,
}

impl Places {
    /// So many of one client, and altogether.
    pub(super) fn new(most_of_client: usize, most: usize) -> Rc<Self> {
        Rc::new(Self { most_of_client, most, taken: RefCell::default() })
    }

    /// A place; `None` when the client, or all of them, have as many as there are.
    pub(super) fn take(self: &Rc<Self>, client: IpAddr) -> Option<Place> {
        let mut taken = self.taken.borrow_mut();
        let all: usize = taken.values().sum();
        let of_client = taken.get(&client).copied().unwrap_or_default();
        if all >= self.most || of_client >= self.most_of_client {
            return None;
        }
        taken.insert(client, of_client + 1);
        Some(Place { places: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.borrow_mut();
        match taken.get_mut(&self.client) {
            Some(count) if *count > 1 => *count -= 1,
            _ => _ = taken.remove(&self.client),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_his_places() {
        let places = Places::new(3, 5);
        let (a, b) = (IpAddr::from([10, 5, 7, 2]), IpAddr::from([10, 5, 7, 3]));
        let mut of_a: Vec<_> = (0..3).map(|_| places.take(a)).collect();
        assert!(of_a.iter().all(Option::is_some));
        assert!(places.take(a).is_none());
        let of_b: Vec<_> = (0..3).map(|_| places.take(b)).collect();
        assert_eq!(of_b.iter().flatten().count(), 2, "there are five");
        of_a.pop();
        assert!(places.take(a).is_some());
        drop((of_a, of_b));
        assert!(places.taken.borrow().is_empty());
    }
}
