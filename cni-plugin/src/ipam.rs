//! Which address is next: a pure choice among the addresses of one subnet. What is in use
//! and what cools down comes from `allocations.rs`, which also writes the choice down.
//!
//! Round robin from the last address given; an address that was freed a short time ago is
//! passed over, so that a stale ARP entry or a half-closed connection of its former holder
//! does not reach the next one. When all free addresses are cooling, the one that was freed
//! longest ago is given.
//!
//! A name gets the address that it had before, if that is free: also when it is cooling down, since whatever
//! still comes for its former holder is meant for it. So others are kept off such addresses for as long as
//! there is any other.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use loden_proto::{Family, Subnet};

use crate::error::Error;

/// How long a freed address rests.
pub const COOL_DOWN: Duration = Duration::from_secs(60);

/// The addresses of a subnet that containers can have: all but the network address, the
/// gateway (the first host address) and, in IPv4, the broadcast address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    subnet: Subnet,
    /// How many addresses containers can have.
    usable: u128,
}

impl Pool {
    /// Offset of the first usable address.
    const FIRST: u128 = 2;

    /// The pool of a subnet.
    pub fn new(subnet: Subnet) -> Self {
        let reserved = match subnet.family() {
            Family::V4 => 3,
            Family::V6 => 2,
        };
        Self { subnet, usable: subnet.size().saturating_sub(reserved) }
    }

    /// The part of it below a range that somebody else hands out.
    pub fn below(self, range: Subnet) -> Self {
        let end = match self.subnet.contains_subnet(&range) {
            true => self.subnet.offset_of(range.address()).saturating_sub(Self::FIRST),
            false => self.usable,
        };
        Self { usable: self.usable.min(end), ..self }
    }

    /// The subnet whose addresses these are.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// How many addresses containers can have.
    pub fn usable(&self) -> u128 {
        self.usable
    }

    /// Whether a container can have this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.subnet.contains(address) && self.position(address).is_some()
    }

    /// Why a container cannot have this address; `None` when it can.
    fn refusal(&self, address: IpAddr) -> Option<&'static str> {
        if !self.subnet.contains(address) {
            return Some("outside of it");
        }
        if self.contains(address) {
            return None;
        }
        Some(match self.subnet.offset_of(address) {
            0 => "its network address",
            1 => "its gateway, which the bridge has",
            _ if self.subnet.family() == Family::V4 && self.subnet.last() == address => {
                "its broadcast address"
            }
            _ => "in the range that Docker hands out",
        })
    }

    /// Place of an address among the usable ones.
    fn position(&self, address: IpAddr) -> Option<u128> {
        if !self.subnet.contains(address) {
            return None;
        }
        self.subnet.offset_of(address).checked_sub(Self::FIRST).filter(|p| *p < self.usable())
    }

    fn at(&self, position: u128) -> IpAddr {
        self.subnet.nth(position + Self::FIRST)
    }
}

/// Whether one container can have these addresses, one of each pool at most.
pub fn allow(pools: &[Pool], wanted: &[IpAddr]) -> Result<(), Error> {
    for (i, address) in wanted.iter().enumerate() {
        let family = Family::of(*address);
        let pool = pools.iter().find(|p| p.subnet.family() == family);
        let refusal = pool.map_or(Some("of a family without one"), |p| p.refusal(*address));
        let subnet = match pool {
            Some(pool) => pool.subnet.to_string(),
            None => pools.iter().map(|p| p.subnet.to_string()).collect::<Vec<_>>().join(" and "),
        };
        if let Some(why) = refusal {
            return Err(Error::Config(format!(
                "the requested address {address} cannot be given in this host's subnet {subnet}: it is {why}; \
                 ask for another, or for none"
            )));
        }
        if let Some(other) = wanted[..i].iter().find(|a| Family::of(**a) == family) {
            return Err(Error::Config(format!(
                "the addresses {other} and {address} are requested, but a container has one {family} address; \
                 ask for one"
            )));
        }
    }
    Ok(())
}

/// What is known of a subnet's addresses. Addresses outside the subnet do no harm.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// In use; never given.
    pub taken: BTreeSet<IpAddr>,
    /// Freed a while ago; when, [`choose`] asks only of those that it comes by.
    pub freed: BTreeSet<IpAddr>,
    /// The last address given.
    pub last: Option<IpAddr>,
    /// What the one who asks had before.
    pub own: Option<IpAddr>,
    /// What others had before.
    pub hinted: BTreeSet<IpAddr>,
}

/// The address to give next; `None` when all are taken. `freed_at` tells when an address of
/// [`Usage::freed`] was freed, where that is known.
pub fn choose(
    pool: Pool,
    usage: &Usage,
    freed_at: impl Fn(IpAddr) -> Option<SystemTime>,
    now: SystemTime,
) -> Option<IpAddr> {
    let usable = pool.usable();
    if usable == 0 {
        return None;
    }
    if let Some(own) = usage.own.filter(|own| pool.contains(*own) && !usage.taken.contains(own)) {
        return Some(own);
    }
    let start = usage.last.and_then(|last| pool.position(last)).map_or(0, |p| (p + 1) % usable);
    let rested = |a: &IpAddr| !usage.freed.contains(a) || freed_at(*a).is_none_or(|at| has_rested(at, now));
    // At most this many addresses can be passed over, also in a subnet of 2^64.
    let steps = (usage.taken.len() + usage.freed.len() + usage.hinted.len() + 1) as u128;
    let in_turn = (0..steps.min(usable)).map(|i| pool.at((start + i) % usable));
    let unhinted = |a: &IpAddr| !usage.hinted.contains(a);
    // Longest free first; of what has no mark nobody knows a time, so it is longest free.
    let longest_free = |of: &BTreeSet<IpAddr>, wanted: &dyn Fn(&IpAddr) -> bool| {
        let free = of.iter().filter(|a| !usage.taken.contains(*a) && wanted(a));
        let ranked = free.filter_map(|a| {
            let place = (pool.position(*a)? + usable - start) % usable;
            Some((usage.freed.contains(a).then(|| freed_at(*a)).flatten(), place, *a))
        });
        ranked.min().map(|(_, _, address)| address)
    };
    in_turn
        .filter(|a| !usage.taken.contains(a) && unhinted(a))
        .find(rested)
        .or_else(|| longest_free(&usage.freed, &unhinted))
        .or_else(|| longest_free(&usage.hinted, &|_| true))
}

/// Whether the cool-down is over. A time in the future (the clock was set back) counts as now.
pub fn has_rested(freed: SystemTime, now: SystemTime) -> bool {
    now.duration_since(freed).is_ok_and(|age| age >= COOL_DOWN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn pool(text: &str) -> Pool {
        Pool::new(text.parse().expect(text))
    }

    /// Chooses with all marks at hand.
    fn next(
        pool: Pool,
        usage: &Usage,
        freed: &BTreeMap<IpAddr, SystemTime>,
        now: SystemTime,
    ) -> Option<IpAddr> {
        let usage = Usage { freed: freed.keys().copied().collect(), ..usage.clone() };
        choose(pool, &usage, |a| freed.get(&a).copied(), now)
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn network_gateway_and_broadcast_are_never_given() {
        assert_eq!(pool("10.5.7.0/24").usable(), 253);
        assert_eq!(pool("10.5.7.0/30").usable(), 1);
        assert_eq!(pool("fd00::/126").usable(), 2);
        let pool = pool("10.5.7.0/29");
        let given: Vec<String> =
            (0..8).map(|i| format!("10.5.7.{i}")).filter(|a| pool.contains(ip(a))).collect();
        assert_eq!(given, ["10.5.7.2", "10.5.7.3", "10.5.7.4", "10.5.7.5", "10.5.7.6"]);
        assert!(!pool.contains(ip("10.5.7.10")) && !pool.contains(ip("fd00::2")));
    }

    #[test]
    fn a_requested_address_must_be_one_that_containers_have() {
        let docker: Subnet = "10.5.7.128/25".parse().expect("subnet");
        let pools = [pool("10.5.7.0/24").below(docker), pool("fd00::/64")];
        let allowed = |wanted: &[&str]| {
            let wanted: Vec<IpAddr> = wanted.iter().map(|a| ip(a)).collect();
            allow(&pools, &wanted).map_err(|e| (e.code(), e.to_string()))
        };
        for good in [&[][..], &["10.5.7.2"], &["10.5.7.127", "fd00::2"], &["fd00::ffff:ffff:ffff:ffff"]] {
            assert_eq!(allowed(good), Ok(()), "{good:?}");
        }
        for (bad, words) in [
            (&["10.5.8.2"][..], "outside of it"),
            (&["10.5.7.0"], "its network address"),
            (&["10.5.7.1"], "its gateway"),
            (&["10.5.7.255"], "its broadcast address"),
            (&["10.5.7.128"], "Docker"),
            (&["fd00::1"], "its gateway"),
            (&["fd00:1::2"], "fd00::/64: it is outside of it"),
            (&["10.5.7.2", "10.5.7.3"], "one IPv4 address"),
        ] {
            let (code, text) = allowed(bad).expect_err("bad");
            assert!(code == 7 && text.contains(words), "{bad:?}: {text}");
        }
        let text = allow(&pools[..1], &[ip("fd00::2")]).expect_err("no IPv6").to_string();
        assert!(text.contains("10.5.7.0/24: it is of a family without one"), "{text}");
    }

    #[test]
    fn the_next_one_follows_the_last_and_wraps() {
        let mut usage = Usage::default();
        let freed = BTreeMap::new();
        assert_eq!(next(pool("10.5.7.0/29"), &usage, &freed, at(0)), Some(ip("10.5.7.2")));
        usage.last = Some(ip("10.5.7.3"));
        assert_eq!(next(pool("10.5.7.0/29"), &usage, &freed, at(0)), Some(ip("10.5.7.4")));
        usage.last = Some(ip("10.5.7.6"));
        assert_eq!(next(pool("10.5.7.0/29"), &usage, &freed, at(0)), Some(ip("10.5.7.2")));
        usage.last = Some(ip("192.0.2.1"));
        assert_eq!(next(pool("10.5.7.0/29"), &usage, &freed, at(0)), Some(ip("10.5.7.2")));
    }

    #[test]
    fn of_cooling_addresses_the_longest_freed_is_given() {
        let mut usage = Usage::default();
        usage.taken.extend([ip("10.5.7.2"), ip("10.5.7.3")]);
        let mut freed =
            BTreeMap::from([(ip("10.5.7.4"), at(5)), (ip("10.5.7.5"), at(3)), (ip("10.5.7.6"), at(9))]);
        // A mark left beside a taken address means nothing.
        freed.insert(ip("10.5.7.2"), at(0));
        assert_eq!(next(pool("10.5.7.0/29"), &usage, &freed, at(10)), Some(ip("10.5.7.5")));
        assert_eq!(next(pool("10.5.7.0/29"), &usage, &freed, at(66)), Some(ip("10.5.7.4")));
        // The clock was set back: all are in the future, none has rested.
        assert_eq!(next(pool("10.5.7.0/29"), &usage, &freed, at(0)), Some(ip("10.5.7.5")));
    }

    #[test]
    fn a_large_subnet_is_not_walked() {
        let mut usage = Usage::default();
        usage.taken.extend((2..5000u128).map(|i| "fd00::/64".parse::<Subnet>().expect("subnet").nth(i)));
        assert_eq!(next(pool("fd00::/64"), &usage, &BTreeMap::new(), at(0)), Some(ip("fd00::1388")));
    }

    #[test]
    fn a_name_gets_its_own_address_and_others_are_kept_off_it() {
        let small = pool("10.5.7.0/29");
        let mut usage = Usage { own: Some(ip("10.5.7.4")), ..Usage::default() };
        let mut freed = BTreeMap::from([(ip("10.5.7.4"), at(0))]);
        assert_eq!(next(small, &usage, &freed, at(1)), Some(ip("10.5.7.4")), "cooling, but its own");
        usage.taken.insert(ip("10.5.7.4"));
        assert_eq!(next(small, &usage, &freed, at(1)), Some(ip("10.5.7.2")), "taken");
        usage.own = Some(ip("10.5.8.4"));
        assert_eq!(next(small, &usage, &freed, at(1)), Some(ip("10.5.7.2")), "of another subnet");
        usage.hinted = ["10.5.7.2", "10.5.7.3", "10.5.7.6", "10.5.8.2"].map(ip).into();
        assert_eq!(next(small, &usage, &freed, at(1)), Some(ip("10.5.7.5")), "others' hints are passed over");
        freed.insert(ip("10.5.7.5"), at(0));
        assert_eq!(next(small, &usage, &freed, at(1)), Some(ip("10.5.7.5")), "cooling, but nobody's");
        usage.taken.insert(ip("10.5.7.5"));
        freed.insert(ip("10.5.7.2"), at(0));
        assert_eq!(next(small, &usage, &freed, at(1)), Some(ip("10.5.7.3")), "better another's than none");
        usage.taken.extend(["10.5.7.3", "10.5.7.6"].map(ip));
        assert_eq!(next(small, &usage, &freed, at(1)), Some(ip("10.5.7.2")), "even one that cools");
        usage.taken.insert(ip("10.5.7.2"));
        assert_eq!(next(small, &usage, &freed, at(1)), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// To somebody with one of these names, or with none.
        Give(Option<u8>),
        Free(prop::sample::Index),
        Wait(u64),
        /// The cursor file is lost.
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Give(None)),
            5 => (0..6u8).prop_map(|name| Step::Give(Some(name))),
            4 => any::<prop::sample::Index>().prop_map(Step::Free),
            1 => (1..90u64).prop_map(Step::Wait),
            1 => Just(Step::Forget),
        ]
    }

    /// The plain statement of the rule: a list of all usable addresses, each free since some
    /// time or taken, and each with the name that had it last, searched from front to back.
    struct Model {
        addresses: Vec<(IpAddr, Option<SystemTime>)>,
        taken: Vec<bool>,
        hints: Vec<Option<u8>>,
        next: usize,
    }

    impl Model {
        fn give(&mut self, name: Option<u8>, now: SystemTime) -> Option<IpAddr> {
            let n = self.addresses.len();
            let order: Vec<usize> = (0..n).map(|i| (self.next + i) % n).collect();
            let free = || order.iter().copied().filter(|i| !self.taken[*i]);
            let own = |i: &usize| name.is_some() && self.hints[*i] == name;
            let others = |i: &usize| self.hints[*i].is_some() && !own(i);
            let warm = |i: &usize| self.addresses[*i].1.is_none_or(|t| now >= t + COOL_DOWN);
            let longest =
                |of: Vec<usize>| of.into_iter().min_by_key(|i| self.addresses[*i].1.filter(|_| !warm(i)));
            let found = free().find(own);
            let found = found.or_else(|| free().find(|i| !others(i) && warm(i)));
            let found = found.or_else(|| longest(free().filter(|i| !others(i)).collect()));
            let found = found.or_else(|| longest(free().collect()))?;
            self.taken[found] = true;
            self.remember(found, name);
            self.next = (found + 1) % n;
            Some(self.addresses[found].0)
        }

        /// A name has one address, an address one name.
        fn remember(&mut self, given: usize, name: Option<u8>) {
            if name.is_some() {
                self.hints.iter_mut().filter(|hint| **hint == name).for_each(|hint| *hint = None);
                self.hints[given] = name;
            }
        }
    }

    proptest! {
        #[test]
        fn any_history_gives_what_the_model_gives(
            subnet in prop::sample::select(vec!["10.5.7.0/30", "10.5.7.0/29", "10.5.7.128/28", "fd00::/126", "fd00::/124"]),
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let subnet: Subnet = subnet.parse().expect("subnet");
            let pool = Pool::new(subnet);
            let usable = usize::try_from(pool.usable()).expect("small");
            let mut model = Model {
                addresses: (0..usable).map(|i| (subnet.nth(i as u128 + 2), None)).collect(),
                taken: vec![false; usable],
                hints: vec![None; usable],
                next: 0,
            };
            let mut usage = Usage::default();
            let mut freed = BTreeMap::new();
            let mut hints: BTreeMap<u8, IpAddr> = BTreeMap::new();
            let mut now = at(0);
            for step in steps {
                match step {
                    Step::Give(name) => {
                        usage.own = name.and_then(|name| hints.get(&name).copied());
                        let others = hints.iter().filter(|(other, _)| Some(**other) != name);
                        usage.hinted = others.map(|(_, address)| *address).collect();
                        let given = next(pool, &usage, &freed, now);
                        prop_assert_eq!(given, model.give(name, now));
                        if let Some(address) = given {
                            if let Some(name) = name {
                                hints.retain(|_, other| *other != address);
                                hints.insert(name, address);
                            }
                            prop_assert!(pool.contains(address));
                            prop_assert!(usage.taken.insert(address), "{} was given twice", address);
                            freed.remove(&address);
                            usage.last = Some(address);
                        }
                    }
                    Step::Free(index) => {
                        let taken: Vec<IpAddr> = usage.taken.iter().copied().collect();
                        if taken.is_empty() { continue }
                        let address = *index.get(&taken);
                        usage.taken.remove(&address);
                        freed.insert(address, now);
                        let i = model.addresses.iter().position(|(a, _)| *a == address).expect("known");
                        model.taken[i] = false;
                        model.addresses[i].1 = Some(now);
                        // Two addresses are never freed in the same instant here.
                        now += Duration::from_millis(1);
                    }
                    Step::Wait(seconds) => now += Duration::from_secs(seconds),
                    Step::Forget => {
                        usage.last = None;
                        model.next = 0;
                    }
                }
                // Marks whose time is over are removed by the store; it must make no difference.
                freed.retain(|_, at| !has_rested(*at, now));
            }
        }
    }
}
