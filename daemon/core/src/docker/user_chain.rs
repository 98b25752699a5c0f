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
    /// The chain's rules afterwards.
    pub after: Vec<String>,
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
    let kept: Vec<String> = open.iter().filter(|r| !is_mine(r)).cloned().collect();
    let mut script = String::from("*filter\n");
    for rule in own.into_iter().chain(stray) {
        script.push_str(&format!("-D{}\n", rule.trim_start_matches("-A")));
    }
    for (i, rule) in wanted.iter().enumerate() {
        let place = kept.len() + i + 1;
        script.push_str(&format!("-I {CHAIN} {place} {}\n", rule.trim_start_matches(&head)));
    }
    script.push_str("COMMIT\n");
    let mut after = kept;
    after.extend(wanted);
    after.extend(dead.iter().filter(|r| !is_mine(r)).cloned());
    Some(Change { back_end, family, script, after, removes })
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

    fn brought(present: &[String]) -> Change {
        change(PLACE, present, &wanted(), &options()).expect("a change")
    }

    #[test]
    fn the_chain_is_found_in_a_listing() {
        let save = include_str!("../firewall/fixtures/docker-20.save");
        assert_eq!(read(save), Some(lines(&[CLOSING])));
        assert_eq!(read("*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"), None);
    }

    #[test]
    fn ours_stand_behind_the_owners_and_before_the_closing_return() {
        let change = brought(&lines(&[USERS, CLOSING]));
        assert_eq!(change.after.first().map(String::as_str), Some(USERS));
        assert_eq!(change.after.last().map(String::as_str), Some(CLOSING));
        assert_eq!(change.after.len(), wanted().len() + 2);
        assert!(
            change.script.contains("-I DOCKER-USER 2 -m mark --mark 0x40000000/0x40000000 "),
            "{}",
            change.script
        );
        // Docker 28 keeps no closing rule.
        assert_eq!(brought(&[]).after.len(), wanted().len());
    }

    #[test]
    fn what_stands_right_is_left_alone_and_what_moved_is_moved_back() {
        let good = brought(&lines(&[USERS, CLOSING])).after;
        assert_eq!(change(PLACE, &good, &wanted(), &options()), None);
        let mut inserted = good.clone();
        inserted.insert(0, "-A DOCKER-USER -s 198.51.100.0/24 -j DROP".into());
        assert_eq!(change(PLACE, &inserted, &wanted(), &options()), None);
        let mut appended = brought(&[]).after;
        appended.push(USERS.into());
        let moved = brought(&appended);
        assert_eq!(moved.after.first().map(String::as_str), Some(USERS));
        assert_eq!(moved.script.matches("-D DOCKER-USER ").count(), wanted().len());
        let mut torn = good;
        torn.remove(2);
        assert_eq!(brought(&torn).after.len(), wanted().len() + 2);
    }

    #[test]
    fn what_stands_behind_a_return_counts_for_nothing() {
        let ours = brought(&[]).after;
        let with = |before: &[&str], after: &[&str], ours: &[String]| {
            [lines(before), ours.to_vec(), lines(after)].concat()
        };
        // The owner appends behind Docker's closing rule: harmless, and nothing of ours moves.
        assert_eq!(change(PLACE, &with(&[], &[CLOSING, USERS], &ours), &wanted(), &options()), None);
        // Ours behind it are brought before it.
        for misplaced in [with(&[CLOSING], &[], &ours), with(&[CLOSING, USERS], &[], &ours)] {
            let mended = brought(&misplaced);
            assert_eq!(mended.script.matches("-D DOCKER-USER ").count(), ours.len());
            assert_eq!(mended.after[..ours.len()], ours);
            assert_eq!(mended.after[ours.len()], CLOSING);
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
        let first = brought(&lines(&[CLOSING])).after;
        let second = change(PLACE, &first, &of_blue, &blue).expect("its own").after;
        assert_eq!(change(PLACE, &second, &wanted(), &options()), None);
        assert_eq!(change(PLACE, &second, &of_blue, &blue), None);
    }

    #[test]
    fn taking_ours_out_leaves_the_rest() {
        let good = brought(&lines(&[USERS, CLOSING])).after;
        let out = change(PLACE, &good, &[], &options()).expect("something to take out");
        assert_eq!(out.after, lines(&[USERS, CLOSING]));
        assert_eq!(change(PLACE, &out.after, &[], &options()), None);
    }
}
