//! Our rules in `DOCKER-USER`, the chain that Docker leaves to others and asks before its own. Where
//! Docker has set the policy of `FORWARD` to drop, what these accept goes through, and nothing else
//! can make it: an `accept` in a table of our own ends that table's say alone.
//!
//! They stand, whole and in order, behind every rule of the host's owner that is ever asked, so that
//! those have the first word, and before the first unconditional `RETURN` (Docker up to 27 closes the
//! chain with one), behind which nothing is asked.

use std::collections::BTreeMap;
use std::fmt;

use loden_proto::{Family, Subnet};

use crate::options::Options;

/// The chain.
pub const CHAIN: &str = "DOCKER-USER";

/// Which of the two rule sets of the kernel an iptables works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BackEnd {
    /// nftables, by `iptables-nft`.
    Nft,
    /// The older tables, by `iptables-legacy`.
    Legacy,
}

impl fmt::Display for BackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        })
    }
}

/// The rules of each `DOCKER-USER` that exists, as `iptables-save` prints them.
pub type UserChains = BTreeMap<(BackEnd, Family), Vec<String>>;

/// The chain's rules in the output of `iptables-save -t filter`; `None` without the chain.
pub fn read(save: &str) -> Option<Vec<String>> {
    let declared = format!(":{CHAIN} ");
    save.lines().any(|line| line.starts_with(&declared)).then(|| {
        let head = format!("-A {CHAIN} ");
        save.lines().filter(|line| line.starts_with(&head)).map(str::to_owned).collect()
    })
}

/// The rules that should stand in the chain of a family, in the form of `iptables-save` without
/// `-A DOCKER-USER`.
///
/// `dockers` is the range of Docker's own containers on our bridge, if they share it.
pub fn rules(network: Subnet, own: Subnet, options: &Options, dockers: Option<Subnet>) -> Vec<String> {
    let bridge = options.bridge();
    let mark = match options.fwmark {
        (value, u32::MAX) => format!("{value:#x}"),
        (value, mask) => format!("{value:#x}/{mask:#x}"),
    };
    [
        // From the overlay to containers here, on whatever bridge.
        (format!("-m mark --mark {mark}"), "ACCEPT"),
        // The plugin's containers, which Docker's rules do not know. Docker's own keep its protection of
        // ports that are not published.
        (format!("-i {bridge}"), "ACCEPT"),
        (format!("{}-o {bridge}", dockers.map_or(String::new(), |d| format!("! -d {d} "))), "ACCEPT"),
        // Outsiders that use this host as their way to a remote container, and the answers. Docker's
        // own containers stay behind Docker's own rules.
        (format!("-s {network} -m conntrack --ctstate RELATED,ESTABLISHED"), "ACCEPT"),
        (format!("-d {own}"), "RETURN"),
        (format!("-d {network}"), "ACCEPT"),
    ]
    .map(|(matches, target)| {
        // iptables prints an interface or address before the comment, and matches in their order.
        format!("{matches} -m comment --comment \"{}\" -j {target}", comment(options))
    })
    .into()
}

fn comment(options: &Options) -> String {
    format!("loden {}", options.network)
}

/// What brings the chain from its rules to ours among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Of which iptables.
    pub back_end: BackEnd,
    /// Of which family.
    pub family: Family,
    /// One transaction for `iptables-restore --noflush`.
    pub script: String,
    /// Whether ours are taken out.
    pub removes: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, place) = if self.removes { ("remove", "from") } else { ("set", "in") };
        write!(f, "{verb} our {} rules {place} {CHAIN} by {}", self.family, self.back_end)
    }
}

/// The change that a chain needs; `None` if our rules stand where they should. Without `wanted`
/// rules ours are taken out.
pub fn change(
    (back_end, family): (BackEnd, Family),
    present: &[String],
    wanted: &[String],
    options: &Options,
) -> Option<Change> {
    let head = format!("-A {CHAIN} ");
    let mine = format!("--comment \"{}\"", comment(options));
    let is_mine = |rule: &&String| rule.contains(&mine);
    // Networks on one host do not fight over who stands last.
    let is_loden = |rule: &String| rule.contains("--comment \"loden ");
    let closing = format!("{head}-j RETURN");
    // Nothing behind it is ever asked.
    let end = present.iter().position(|rule| *rule == closing).unwrap_or(present.len());
    let (open, dead) = present.split_at(end);
    let own: Vec<&String> = open.iter().filter(is_mine).collect();
    let last_of_others = open.iter().rposition(|r| !is_loden(r));
    let behind =
        open.iter().position(|r| is_mine(&r)).is_none_or(|first| last_of_others.is_none_or(|o| o < first));
    let removes = wanted.is_empty();
    let wanted: Vec<String> = wanted.iter().map(|rule| format!("{head}{rule}")).collect();
    let stray: Vec<&String> = dead.iter().filter(is_mine).collect();
    if behind && stray.is_empty() && own.iter().copied().eq(&wanted) {
        return None;
    }
    let kept = open.iter().filter(|r| !is_mine(r)).count();
    let mut script = String::from("*filter\n");
    for rule in own.into_iter().chain(stray) {
        script.push_str(&format!("-D{}\n", rule.trim_start_matches("-A")));
    }
    for (i, rule) in wanted.iter().enumerate() {
        let place = kept + i + 1;
        script.push_str(&format!("-I {CHAIN} {place} {}\n", rule.trim_start_matches(&head)));
    }
    script.push_str("COMMIT\n");
    Some(Change { back_end, family, script, removes })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: (BackEnd, Family) = (BackEnd::Nft, Family::V4);
    const CLOSING: &str = "-A DOCKER-USER -j RETURN";
    const USERS: &str = "-A DOCKER-USER -s 192.0.2.0/24 -j DROP";

    fn options() -> Options {
        Options::named("loden")
    }

    fn wanted() -> Vec<String> {
        let subnet = |text: &str| text.parse().expect(text);
        rules(subnet("10.5.0.0/16"), subnet("10.5.7.0/24"), &options(), None)
    }

    fn lines(rules: &[&str]) -> Vec<String> {
        rules.iter().map(|r| (*r).to_owned()).collect()
    }

    fn needed(present: &[String]) -> Change {
        change(PLACE, present, &wanted(), &options()).expect("a change")
    }

    /// The chain after a script, as iptables-restore carries it out: -D takes the first such rule,
    /// -I puts one at a place counted from 1.
    fn carried_out(present: &[String], script: &str) -> Vec<String> {
        let mut chain = present.to_vec();
        for line in script.lines().filter(|l| l.starts_with('-')) {
            let (command, rest) = line.split_once(" DOCKER-USER ").expect("a command for the chain");
            if command == "-D" {
                let rule = format!("-A DOCKER-USER {rest}");
                let place = chain.iter().position(|r| *r == rule).expect("a rule that is there");
                chain.remove(place);
            } else {
                let (place, rule) = rest.split_once(' ').expect("a place and a rule");
                let place: usize = place.parse().expect("a number");
                chain.insert(place - 1, format!("-A DOCKER-USER {rule}"));
            }
        }
        chain
    }

    /// The chain after the change that it needs.
    fn brought(present: &[String]) -> Vec<String> {
        carried_out(present, &needed(present).script)
    }

    #[test]
    fn the_chain_is_found_in_a_listing() {
        let save = include_str!("../firewall/fixtures/docker-20.save");
        assert_eq!(read(save), Some(lines(&[CLOSING])));
        assert_eq!(read("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"), None);
    }

    #[test]
    fn ours_stand_behind_the_owners_and_before_the_closing_return() {
        let present = lines(&[USERS, CLOSING]);
        let chain = brought(&present);
        assert_eq!(chain.first().map(String::as_str), Some(USERS));
        assert_eq!(chain.last().map(String::as_str), Some(CLOSING));
        assert_eq!(chain.len(), wanted().len() + 2);
        let script = needed(&present).script;
        assert!(script.contains("-I DOCKER-USER 2 -m mark --mark 0x40000000/0x40000000 "), "{script}");
        // Docker 28 keeps no closing rule.
        assert_eq!(brought(&[]).len(), wanted().len());
    }

    #[test]
    fn what_stands_right_is_left_alone_and_what_moved_is_moved_back() {
        let good = brought(&lines(&[USERS, CLOSING]));
        assert_eq!(change(PLACE, &good, &wanted(), &options()), None);
        let mut inserted = good.clone();
        inserted.insert(0, "-A DOCKER-USER -s 198.51.100.0/24 -j DROP".into());
        assert_eq!(change(PLACE, &inserted, &wanted(), &options()), None);
        let mut appended = brought(&[]);
        appended.push(USERS.into());
        let moved = brought(&appended);
        assert_eq!(moved.first().map(String::as_str), Some(USERS));
        assert_eq!(moved.len(), wanted().len() + 1);
        assert_eq!(needed(&appended).script.matches("-D DOCKER-USER ").count(), wanted().len());
        let mut torn = good;
        torn.remove(2);
        assert_eq!(brought(&torn).len(), wanted().len() + 2);
    }

    #[test]
    fn what_stands_behind_a_return_counts_for_nothing() {
        let ours = brought(&[]);
        let with = |before: &[&str], after: &[&str], ours: &[String]| {
            [lines(before), ours.to_vec(), lines(after)].concat()
        };
        // The owner appends behind Docker's closing rule: harmless, and nothing of ours moves.
        assert_eq!(change(PLACE, &with(&[], &[CLOSING, USERS], &ours), &wanted(), &options()), None);
        // Ours behind it are brought before it.
        for misplaced in [with(&[CLOSING], &[], &ours), with(&[CLOSING, USERS], &[], &ours)] {
            let mended = brought(&misplaced);
            assert_eq!(needed(&misplaced).script.matches("-D DOCKER-USER ").count(), ours.len());
            assert_eq!(mended[..ours.len()], ours);
            assert_eq!(mended[ours.len()], CLOSING);
            assert_eq!(mended.len(), misplaced.len());
        }
    }

    #[test]
    fn dockers_half_of_a_shared_bridge_keeps_dockers_protection() {
        let subnet = |text: &str| text.parse().expect(text);
        let half = Some(subnet("10.5.7.128/25"));
        let shared = rules(subnet("10.5.0.0/16"), subnet("10.5.7.0/24"), &options(), half);
        assert!(shared[2].starts_with("! -d 10.5.7.128/25 -o loden0 -m comment"), "{}", shared[2]);
    }

    #[test]
    fn two_networks_do_not_fight() {
        let blue = Options::named("blue");
        let subnet = |text: &str| text.parse().expect(text);
        let of_blue = rules(subnet("10.6.0.0/16"), subnet("10.6.7.0/24"), &blue, None);
        let first = brought(&lines(&[CLOSING]));
        let change_of_blue = change(PLACE, &first, &of_blue, &blue).expect("its own");
        let second = carried_out(&first, &change_of_blue.script);
        assert_eq!(change(PLACE, &second, &wanted(), &options()), None);
        assert_eq!(change(PLACE, &second, &of_blue, &blue), None);
    }

    #[test]
    fn taking_ours_out_leaves_the_rest() {
        let good = brought(&lines(&[USERS, CLOSING]));
        let change_out = change(PLACE, &good, &[], &options()).expect("something to take out");
        let out = carried_out(&good, &change_out.script);
        assert_eq!(out, lines(&[USERS, CLOSING]));
        assert_eq!(change(PLACE, &out, &[], &options()), None);
    }
}
