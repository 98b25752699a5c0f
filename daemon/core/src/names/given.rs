//! From what a runtime calls a container to names in the zone.

use loden_proto::dns_name::DnsName;

use super::zone::HOSTS;

/// Names of one container, relative to the zone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Given {
    /// Its own. The first is what its address resolves to.
    pub names: Vec<DnsName>,
    /// Those that it may share.
    pub groups: Vec<DnsName>,
    /// What can be no name, and why.
    pub problems: Vec<String>,
}

impl Given {
    /// Names for these texts: `dn1`, `dn1.hdfs`, with or without the zone, or `namespace/dn1` as of Kubernetes.
    pub fn new<'a>(
        own: impl IntoIterator<Item = &'a str>,
        shared: impl IntoIterator<Item = &'a str>,
        zone: &DnsName,
    ) -> Self {
        let mut given = Self::default();
        for text in own {
            match name(text, zone) {
                Ok(name) if given.names.contains(&name) => {}
                Ok(name) => given.names.push(name),
                Err(problem) => given.problems.push(problem),
            }
        }
        for text in shared {
            match name(text, zone) {
                Ok(name) if given.names.contains(&name) || given.groups.contains(&name) => {}
                Ok(name) => given.groups.push(name),
                Err(problem) => given.problems.push(problem),
            }
        }
        given
    }
}

fn name(text: &str, zone: &DnsName) -> Result<DnsName, String> {
    let inner_first: Vec<&str> = text.rsplit('/').collect();
    let name: DnsName = inner_first.join(".").parse().map_err(|e| format!("{e}"))?;
    let name = name.relative_to(zone).unwrap_or(name);
    if name.labels().next_back() == Some(HOSTS) {
        return Err(format!("{text:?} can be nobody's name: below {HOSTS}.{zone} are the hosts"));
    }
    name.below(zone).map_err(|e| format!("{e}"))?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runtimes_are_names_in_the_zone() {
        let zone = "loden.internal".parse().expect("zone");
        let own = ["shop/Web", "web.shop.loden.internal", "my_app", "a b", "x.host"];
        let given = Given::new(own, ["web.shop", "all", "all"], &zone);
        let texts = |names: &[DnsName]| names.iter().map(DnsName::to_string).collect::<Vec<_>>();
        assert_eq!(texts(&given.names), ["web.shop", "my_app"]);
        assert_eq!(texts(&given.groups), ["all"]);
        assert_eq!(given.problems.len(), 2, "{:?}", given.problems);
        assert!(
            given.problems[1].contains("below host.loden.internal are the hosts"),
            "{:?}",
            given.problems
        );
    }
}
