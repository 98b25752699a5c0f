//! The port filter's elements come with the container. What they do to frames, and that they go, is shown
//! with the daemon, in the lab's scenarios.

use std::collections::BTreeSet;

use serde_json::json;

use crate::lab::{Call, Lab};

fn dual_stack() -> Lab {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    lab
}

fn with(call: Call, key: &str, value: bool) -> Call {
    call.config(|config| config[key] = json!(value))
}

#[test]
fn a_port_is_guarded_from_its_first_moment() {
    let lab = dual_stack();
    let netns = lab.namespace("c");
    let result = lab.add(&netns);
    let port = result["interfaces"][1]["name"].as_str().expect("the host's end");
    let mac = result["interfaces"][2]["mac"].as_str().expect("a MAC");
    let guarded = lab.guarded();
    let has = |set: &str, words: &[&str]| {
        guarded.iter().any(|(s, element)| *s == set && words.iter().all(|w| element.contains(w)))
    };
    assert!(has("ports", &[port]), "{guarded:?}");
    for (set, address) in [
        ("sources4", "10.5.7.2"),
        ("sources4", "0.0.0.0"),
        ("sources6", "fd00:0:0:7::2"),
        ("sources6", "fe80::858:aff:fe05:702"),
        ("sources6", "\"::\""),
    ] {
        assert!(has(set, &[port, mac, address]), "{set} lacks {address}: {guarded:?}");
    }
    assert_eq!(guarded.len(), 1 + 2 + 3 + 2, "{guarded:?}");
    lab.del(&netns);

    let out = lab.call("ADD", &netns).under(&["strace", "-qq", "-e", "trace=sendto"]).run();
    out.success();
    let at = |what: &str| out.stderr.find(what).unwrap_or_else(|| panic!("no {what} in {}", out.stderr));
    assert!(at("NFT_MSG_NEWSETELEM") < at("RTM_NEWLINK"), "{}", out.stderr);
}

#[test]
fn a_port_that_is_not_to_be_guarded_is_not() {
    let lab = dual_stack();
    let netns = lab.namespace("c");
    with(lab.call("ADD", &netns), "portFilter", false).run().success();
    assert_eq!(lab.guarded(), BTreeSet::new());
    lab.del(&netns);
}

#[test]
fn a_lost_table_stops_only_those_who_insist() {
    let lab = dual_stack();
    let (one, two) = (lab.namespace("one"), lab.namespace("two"));
    lab.add(&one);
    lab.remove_port_filter();
    lab.add(&two);
    lab.del(&two);
    for key in ["portFilter", "macspoofchk"] {
        let refused = with(lab.call("ADD", &two), key, true).run();
        refused.failure(11, &["nftables table bridge testnet", "loden status"]);
        assert!(lab.links(&two).is_empty() && lab.allocated().len() == 2, "nothing is left of it");
    }
    lab.del(&one);
}
