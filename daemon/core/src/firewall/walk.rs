//! A packet's way through the rules of one hook.
//!
//! | the rule's tests | it accepts | it drops | it returns or goes elsewhere |
//! |---|---|---|---|
//! | all hold | the packet passes | the packet is dropped | followed |
//! | one does not | next rule | next rule | next rule |
//! | one may or may not | the packet passes | next rule | followed, but what drops from there on counts for nothing |
//!
//! Not in the model: what a rule makes of the packet (another mark or destination), sets by name, and
//! what lies below IP.

use std::net::IpAddr;

use loden_proto::Family;

use super::{Base, Chain, Condition, Hook, RuleSet, Table, Test, Verdict};

/// A packet, as far as rules look at it. It is the first of its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) in_interface: &'a str,
    /// Empty where the way out is not known yet.
    pub(super) out_interface: &'a str,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: &'static str,
    /// `None` stands for any: a rule for some ports may or may not hold.
    pub(super) port: Option<u16>,
    pub(super) mark: u32,
    /// Its bits that nobody else may have set on the way.
    pub(super) mark_known: u32,
    /// Its state in connection tracking.
    pub(super) state: &'static str,
}

/// Where a packet ended.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) table: String,
    /// The chain with the rule, or with the policy.
    pub(super) chain: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    Yes,
    No,
    Maybe,
}

/// How a walk through a chain ended.
#[derive(Debug, Clone, PartialEq)]
enum End {
    /// Accepted, or perhaps so.
    Accepted,
    /// Dropped or given another source by a rule of this chain, for certain.
    Ended(Verdict, String),
    /// The chain has nothing more to say.
    Through,
}

/// Chains deeper than this are a loop (the kernel allows 16 jumps, NFT_JUMP_STACK_SIZE).
const DEEPEST: usize = 16;

/// All base chains of the hook that drop the packet for certain; those of one table left out.
pub(super) fn drops(rules: &RuleSet, hook: Hook, packet: &Packet<'_>, except: &str) -> Vec<Place> {
    let mut places = Vec::new();
    for (table, name, chain, base) in bases(rules, hook, packet, except) {
        if base.nat {
            continue;
        }
        match through(table, chain, name, packet, false, 0) {
            End::Ended(Verdict::Drop, chain) => places.push(Place { table: table.name.clone(), chain }),
            End::Through if base.drops_by_policy => {
                places.push(Place { table: table.name.clone(), chain: name.to_owned() });
            }
            _ => {}
        }
    }
    places
}

/// The chains that give the packet another source for certain.
pub(super) fn translations(rules: &RuleSet, packet: &Packet<'_>, except: &str) -> Vec<Place> {
    let mut places = Vec::new();
    for (table, name, chain, base) in bases(rules, Hook::Postrouting, packet, except) {
        if base.nat
            && let End::Ended(Verdict::NewSource, chain) = through(table, chain, name, packet, false, 0)
        {
            places.push(Place { table: table.name.clone(), chain });
        }
    }
    places
}

fn bases<'a>(
    rules: &'a RuleSet,
    hook: Hook,
    packet: &'a Packet<'_>,
    except: &'a str,
) -> impl Iterator<Item = (&'a Table, &'a str, &'a Chain, Base)> {
    let family = Family::of(packet.destination);
    let tables = rules.tables.iter().filter(move |t| t.name != except && t.families.contains(&family));
    tables.flat_map(move |table| {
        table.chains.iter().filter_map(move |(name, chain)| {
            let base = chain.base.filter(|b| b.hook == hook)?;
            Some((table, name.as_str(), chain, base))
        })
    })
}

/// `unsure`: a test on the way here may or may not hold, so that only what lets the packet pass
/// counts.
fn through(table: &Table, chain: &Chain, name: &str, packet: &Packet<'_>, unsure: bool, depth: usize) -> End {
    if depth > DEEPEST {
        return End::Accepted;
    }
    // Once a rule may have left the chain, what stands behind it is unsure as well.
    let mut unsure = unsure;
    for rule in &chain.rules {
        let truth = rule.conditions.iter().map(|c| holds(c, packet)).fold(Truth::Yes, both);
        if truth == Truth::No {
            continue;
        }
        let unsure_here = unsure || truth == Truth::Maybe;
        match &rule.verdict {
            Verdict::Accept | Verdict::Unknown => return End::Accepted,
            Verdict::Drop | Verdict::NewSource if unsure_here => {}
            ended @ (Verdict::Drop | Verdict::NewSource) => {
                return End::Ended(ended.clone(), name.to_owned());
            }
            Verdict::Return if unsure_here => unsure = true,
            Verdict::Return => return End::Through,
            Verdict::Jump(target) | Verdict::Goto(target) => {
                let Some(next) = table.chains.get(target) else { continue };
                let goes = matches!(rule.verdict, Verdict::Goto(_));
                match through(table, next, target, packet, unsure_here, depth + 1) {
                    End::Through if goes && unsure_here => unsure = true,
                    End::Through if goes => return End::Through,
                    End::Through => {}
                    end => return end,
                }
            }
        }
    }
    End::Through
}

fn both(a: Truth, b: Truth) -> Truth {
    match (a, b) {
        (Truth::No, _) | (_, Truth::No) => Truth::No,
        (Truth::Yes, Truth::Yes) => Truth::Yes,
        _ => Truth::Maybe,
    }
}

fn holds(condition: &Condition, packet: &Packet<'_>) -> Truth {
    let inside = |ranges: &[(IpAddr, IpAddr)], address: IpAddr| {
        ranges.iter().any(|(from, to)| (*from..=*to).contains(&address))
    };
    // A test of an address holds for packets of its family alone, negated or not.
    let of_family = |ranges: &[(IpAddr, IpAddr)], address: IpAddr| {
        ranges.iter().any(|(from, _)| Family::of(*from) == Family::of(address))
    };
    let found = match &condition.test {
        Test::Unknown(Some(protocol)) if protocol != packet.protocol => return Truth::No,
        Test::Unknown(_) => return Truth::Maybe,
        Test::OutInterface(_) if packet.out_interface.is_empty() => return Truth::Maybe,
        Test::Source(ranges) if !of_family(ranges, packet.source) => return Truth::No,
        Test::Destination(ranges) if !of_family(ranges, packet.destination) => return Truth::No,
        Test::Mark(mask, _) if mask & !packet.mark_known != 0 => return Truth::Maybe,
        Test::InInterface(names) => names.iter().any(|n| named(n, packet.in_interface)),
        Test::OutInterface(names) => names.iter().any(|n| named(n, packet.out_interface)),
        Test::Source(ranges) => inside(ranges, packet.source),
        Test::Destination(ranges) => inside(ranges, packet.destination),
        Test::Protocol(names) => names.iter().any(|n| n == packet.protocol),
        Test::DestinationPort(Some(protocol), _) if protocol != packet.protocol => condition.negated,
        Test::DestinationPort(_, ranges) => match packet.port {
            Some(port) => ranges.iter().any(|(from, to)| (*from..=*to).contains(&port)),
            None => return Truth::Maybe,
        },
        Test::Mark(mask, values) => values.contains(&(packet.mark & mask)),
        Test::State(states) => states.iter().any(|s| s == packet.state),
        Test::Family(family) => *family == Family::of(packet.destination),
        Test::Redirected => false,
    };
    if found != condition.negated { Truth::Yes } else { Truth::No }
}

fn named(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => pattern == name,
    }
}
