//! What others have written in SkyDNS's layout below our zone and for addresses of our networks
//! (`--dns-import`). In: keys and values, as they come. Out: records by name and by address, for the zone.
//!
//! Whoever may write there may write anything: what cannot be read harms only itself, and of all there is an end.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use loden_proto::Subnet;
use loden_proto::dns_name::DnsName;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::reverse::prefix_of;
use super::skydns::path;

/// More records than this are passed over.
const MOST_RECORDS: usize = 10_000;
/// Larger values are not read; a record takes some fifty bytes.
const VALUE_LIMIT: usize = 4096;
/// Of so many records at most it is told why they are passed over.
const MOST_TOLD: usize = 20;
/// An answer has the records of so many keys at most.
const MOST_ANSWERED: usize = 100;
/// As in the network config: more than a day is a mistake.
const LONGEST_TTL: u32 = 86_400;

/// Which keys are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    prefix: String,
    /// Key of the zone, with a slash at its end.
    zone_key: String,
    zone: DnsName,
    networks: Vec<Subnet>,
}

/// What a key stands for.
enum Subject<'a> {
    /// A name in the zone, by the rest of its key.
    Name(&'a str),
    /// The way back from an address.
    Address(IpAddr),
}

/// What SkyDNS calls a service: one value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub host: ServiceHost,
    /// Without one it is none in SRV records.
    pub port: Option<u16>,
    pub priority: u16,
    pub weight: u16,
    /// As the zone's if it says none.
    pub ttl: Option<u32>,
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServiceHost {
    Address(IpAddr),
    Name(DnsName),
}

/// All of them. Copies share structure.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imported {
    /// By what follows the zone's key: `legacy/x1`.
    names: OrdMap<Box<str>, Arc<Service>>,
    addresses: OrdMap<IpAddr, (DnsName, Option<u32>)>,
    /// Why a key is passed over.
    rejected: OrdMap<Box<str>, String>,
    /// Whether there are more of those.
    more: bool,
}

impl Place {
    /// The keys below a prefix such as `/skydns` that are for a zone and for networks.
    pub fn new(prefix: &str, zone: DnsName, networks: Vec<Subnet>) -> Self {
        Self { zone_key: path(prefix, zone.labels()) + "/", prefix: prefix.to_owned(), zone, networks }
    }

    /// What all its keys begin with, and many that are not for us.
    pub fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    fn subject<'a>(&self, key: &'a str) -> Option<Subject<'a>> {
        if let Some(rest) = key.strip_prefix(&self.zone_key) {
            return Some(Subject::Name(rest));
        }
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix("/arpa/")?;
        let labels: Vec<&str> = rest.rsplit('/').collect();
        let address = prefix_of(&format!("{}.arpa", labels.join(".")))?;
        let whole = address.length() == address.family().bits();
        let ours = whole && self.networks.iter().any(|network| network.contains_subnet(&address));
        ours.then(|| Subject::Address(address.address()))
    }
}

impl Imported {
    /// Takes in what stands under a key.
    pub fn put(&mut self, place: &Place, key: &str, value: &[u8]) {
        let Some(subject) = place.subject(key) else { return };
        self.forget(key, &subject);
        if let Err(reason) = self.take(place, &subject, value) {
            if self.rejected.len() < MOST_TOLD {
                // It may quote what stands there.
                self.rejected.insert(key.into(), reason.chars().take(300).collect());
            } else {
                self.more = true;
            }
        }
    }

    /// Takes in a deletion.
    pub fn delete(&mut self, place: &Place, key: &str) {
        if let Some(subject) = place.subject(key) {
            self.forget(key, &subject);
        }
    }

    /// What is passed over, and why.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let each = self.rejected.iter().map(|(key, reason)| {
            // A key can be as long as a value.
            let key: String = key.chars().take(300).collect();
            format!("what stands in etcd under {key:?} is passed over: {reason}")
        });
        each.chain(self.more.then(|| "more in etcd is passed over besides (--dns-import)".to_owned()))
    }

    fn forget(&mut self, key: &str, subject: &Subject<'_>) {
        match subject {
            Subject::Name(rest) => _ = self.names.remove(*rest),
            Subject::Address(address) => _ = self.addresses.remove(address),
        }
        self.rejected.remove(key);
    }

    fn take(&mut self, place: &Place, subject: &Subject<'_>, value: &[u8]) -> Result<(), String> {
        let Some(service) = Service::parse(value)? else { return Ok(()) };
        if self.names.len() + self.addresses.len() >= MOST_RECORDS {
            return Err(format!("there are {MOST_RECORDS} others"));
        }
        match (subject, service.host.clone()) {
            (Subject::Name(rest), host) => {
                name_of(rest).and_then(|name| name.below(&place.zone).ok()).ok_or(
                    "the parts of its key are no labels of a name (lower-case letters, digits, hyphens, underscores)",
                )?;
                let followed = match &host {
                    ServiceHost::Name(name) => name.relative_to(&place.zone).is_some(),
                    ServiceHost::Address(_) => true,
                };
                if !followed && service.port.is_none() {
                    return Err(format!(
                        "it leads to a name outside of {}, which is not followed",
                        place.zone
                    ));
                }
                self.names.insert((*rest).into(), Arc::new(service));
            }
            (Subject::Address(address), ServiceHost::Name(name)) => {
                self.addresses.insert(*address, (name, service.ttl));
            }
            (Subject::Address(_), ServiceHost::Address(_)) => {
                return Err("an address leads back to a name, not to an address".into());
            }
        }
        Ok(())
    }

    /// What stands below a name (relative to the zone), or else under it: its key's rest and the service.
    pub(super) fn of(&self, name: &DnsName) -> Vec<(&str, &Service)> {
        let own = path("", name.labels())[1..].to_owned();
        let below = format!("{own}/");
        let from: Box<str> = below.as_str().into();
        let all = self.names.range(from..).take_while(|(rest, _)| rest.starts_with(&below));
        let mut found: Vec<(&str, &Service)> =
            all.take(MOST_ANSWERED).map(|(rest, service)| (&**rest, service.as_ref())).collect();
        if found.is_empty() {
            let single = self.names.get_key_value(own.as_str());
            found.extend(single.map(|(rest, service)| (&**rest, service.as_ref())));
        }
        found
    }

    /// The name of an address and its TTL.
    pub(super) fn name_of(&self, address: IpAddr) -> Option<(DnsName, Option<u32>)> {
        self.addresses.get(&address).cloned()
    }
}

/// The name (relative to the zone) whose key's rest this is.
pub(super) fn name_of(rest: &str) -> Option<DnsName> {
    let text = rest.rsplit('/').collect::<Vec<_>>().join(".");
    // CoreDNS looks for keys in lower case, and for a label each.
    text.parse::<DnsName>().ok().filter(|name| name.as_str() == text && !rest.contains('.'))
}

impl Service {
    /// Reads a value. `None`: it is ours, or has no host, such as text alone.
    fn parse(value: &[u8]) -> Result<Option<Self>, String> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Value<'a> {
            #[serde(borrow)]
            host: Cow<'a, str>,
            port: u16,
            priority: u16,
            weight: u16,
            ttl: u32,
            loden: Option<IgnoredAny>,
        }
        if value.len() > VALUE_LIMIT {
            return Err(format!("it is {} bytes long, but at most {VALUE_LIMIT} are read", value.len()));
        }
        let value: Value<'_> = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        if value.loden.is_some() || value.host.is_empty() {
            return Ok(None);
        }
        let host = match value.host.parse() {
            Ok(address) => ServiceHost::Address(address),
            Err(_) => ServiceHost::Name(value.host.parse().map_err(|error| format!("its host: {error}"))?),
        };
        let given = |number: u16, default: u16| if number == 0 { default } else { number };
        Ok(Some(Self {
            host,
            port: Some(value.port).filter(|port| *port > 0),
            // SkyDNS's defaults.
            priority: given(value.priority, 10),
            weight: given(value.weight, 100),
            ttl: Some(value.ttl.min(LONGEST_TTL)).filter(|ttl| *ttl > 0),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place() -> Place {
        let networks = ["10.5.0.0/16", "fd00:10:5::/48"].map(|n| n.parse().expect("network"));
        Place::new("/skydns", DnsName::default_zone(), networks.to_vec())
    }

    fn found(imported: &Imported, name: &str) -> Vec<String> {
        let all = imported.of(&name.parse().expect(name));
        all.into_iter().map(|(rest, service)| format!("{rest} {:?}", service.host)).collect()
    }

    #[test]
    fn a_name_has_what_is_below_it_or_else_its_own() {
        let (place, mut imported) = (place(), Imported::default());
        for (key, host) in [
            ("/skydns/internal/loden/legacy", "10.99.0.9"),
            ("/skydns/internal/loden/legacy/x1", "10.99.0.1"),
            ("/skydns/internal/loden/legacy/x2", "10.99.0.2"),
            ("/skydns/internal/loden/legacy2/x1", "10.99.0.3"),
            ("/skydns/internal/lodenx/legacy/x1", "10.99.0.4"),
            ("/skydns/org/example/www", "10.99.0.5"),
            ("/skydns/internal/loden", "10.99.0.6"),
        ] {
            imported.put(&place, key, format!(r#"{{"host":"{host}"}}"#).as_bytes());
        }
        let both = ["legacy/x1 Address(10.99.0.1)", "legacy/x2 Address(10.99.0.2)"];
        assert_eq!(found(&imported, "legacy"), both);
        assert_eq!(found(&imported, "x2.legacy"), both[1..]);
        assert_eq!(found(&imported, "x3.legacy"), [""; 0]);
        imported.delete(&place, "/skydns/internal/loden/legacy/x1");
        imported.put(&place, "/skydns/internal/loden/legacy/x2", br#"{"host":"10.99.0.1","loden":true}"#);
        assert_eq!(found(&imported, "legacy"), ["legacy Address(10.99.0.9)"], "what is ours is not imported");
        assert_eq!(imported.problems().count(), 0);
        assert_eq!(imported.names.len(), 2);
    }

    #[test]
    fn addresses_of_our_networks_lead_back() {
        let (place, mut imported) = (place(), Imported::default());
        let v6 = "f/d/0/0/0/0/1/0/0/0/0/5/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/9";
        for rest in [
            "in-addr/10/5/9/2",
            "in-addr/10/6/9/2",
            "in-addr/10/5/9",
            "in-addr/10/5/09/3",
            &format!("ip6/{v6}"),
        ] {
            let value = br#"{"host":"Legacy.Loden.Internal.","ttl":99999999}"#;
            imported.put(&place, &format!("/skydns/arpa/{rest}"), value);
        }
        let legacy = Some(("legacy.loden.internal".parse().expect("a name"), Some(LONGEST_TTL)));
        assert_eq!(imported.name_of([10, 5, 9, 2].into()), legacy);
        assert_eq!(imported.name_of("fd00:10:5::9".parse().expect("ip")), legacy);
        assert_eq!(imported.addresses.len(), 2);
        imported.delete(&place, "/skydns/arpa/in-addr/10/5/9/2");
        assert_eq!(imported.name_of([10, 5, 9, 2].into()), None);
    }

    #[test]
    fn what_cannot_be_served_is_told_and_harms_nothing_else() {
        let (place, mut imported) = (place(), Imported::default());
        let long = format!(r#"{{"host":"10.99.0.1","text":"{}"}}"#, "x".repeat(VALUE_LIMIT));
        let wrong = [
            ("internal/loden/a/x1", "rubbish", "expected value"),
            ("internal/loden/b/x1", r#"{"host":"a b"}"#, "no DNS name"),
            ("internal/loden/c/x1", r#"{"host":"10.99.0.1","port":65536}"#, "65536"),
            ("internal/loden/d/x1", long.as_str(), "4096"),
            ("internal/loden/E/x1", r#"{"host":"10.99.0.1"}"#, "lower-case"),
            ("internal/loden/f//x1", r#"{"host":"10.99.0.1"}"#, "labels"),
            ("internal/loden/g.h/x1", r#"{"host":"10.99.0.1"}"#, "labels"),
            ("internal/loden/i/", r#"{"host":"10.99.0.1"}"#, "labels"),
            ("internal/loden/j/x1", r#"{"host":"www.example.com"}"#, "not followed"),
            ("arpa/in-addr/10/5/9/2", r#"{"host":"10.5.9.2"}"#, "not to an address"),
        ];
        for (rest, value, _) in wrong {
            imported.put(&place, &format!("/skydns/{rest}"), value.as_bytes());
        }
        let right = r#"{"host":"www.example.com","port":80,"priority":1,"weight":2,"ttl":7,"targetstrip":1}"#;
        imported.put(&place, "/skydns/internal/loden/k/x1", right.as_bytes());
        for none in ["{}", r#"{"text":"hello"}"#] {
            imported.put(&place, "/skydns/internal/loden/l/x1", none.as_bytes());
        }
        let problems: Vec<String> = imported.problems().collect();
        assert_eq!(problems.len(), wrong.len(), "{problems:#?}");
        for (rest, _, reason) in wrong {
            let told = problems.iter().find(|p| p.contains(&format!("\"/skydns/{rest}\""))).expect(rest);
            assert!(told.contains(reason), "{told}");
        }
        let service = Service {
            host: ServiceHost::Name("www.example.com".parse().expect("a name")),
            port: Some(80),
            priority: 1,
            weight: 2,
            ttl: Some(7),
        };
        assert_eq!(imported.of(&"k".parse().expect("a name")), [("k/x1", &service)]);
        assert_eq!(imported.names.len(), 1);
        // Mended.
        imported.put(&place, "/skydns/internal/loden/a/x1", br#"{"host":"10.99.0.1"}"#);
        assert_eq!((imported.problems().count(), imported.names.len()), (wrong.len() - 1, 2));
    }

    #[test]
    fn of_everything_there_is_an_end() {
        let (place, mut imported) = (place(), Imported::default());
        for number in 0..MOST_RECORDS + 30 {
            imported.put(
                &place,
                &format!("/skydns/internal/loden/many/x{number}"),
                br#"{"host":"10.99.0.1"}"#,
            );
        }
        assert_eq!(imported.names.len(), MOST_RECORDS);
        assert_eq!(imported.problems().count(), MOST_TOLD + 1);
        assert_eq!(found(&imported, "many").len(), MOST_ANSWERED);
    }

    proptest! {
        #[test]
        fn whatever_stands_there_can_be_taken_back(
            writes in prop::collection::vec((
                prop::sample::select(vec!["a", "a/b", "a/b/c", "A", "a//b", ""]),
                prop::sample::select(vec![
                    r#"{"host":"10.99.0.1"}"#, r#"{"host":"a.loden.internal"}"#, "{", r#"{"host":""}"#,
                ]),
            ), 0..20),
        ) {
            let (place, mut imported) = (place(), Imported::default());
            for (rest, value) in &writes {
                imported.put(&place, &format!("/skydns/internal/loden/{rest}"), value.as_bytes());
            }
            for (rest, _) in &writes {
                imported.delete(&place, &format!("/skydns/internal/loden/{rest}"));
            }
            prop_assert_eq!(imported, Imported::default());
        }
    }
}
