//! Standard input: the configuration of every command, and `prevResult` there and back.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loden_cni::request::{self, Command, Config, Request, Version};
use loden_cni::result::{AddResult, Address, Interface, Route};
use loden_cni::{Error, check};
use loden_fuzz::{PARSE_CODES, assert_error, assert_request, environment};
use loden_proto::Mac;
use serde_json::{Value, json};

fuzz_target!(|stdin: &[u8]| {
    let version = request::version_for_errors(stdin);
    assert!(Version::find(version).is_some());
    let parse = |command, name| Request::parse(command, &environment(name), stdin);
    let add = parse(Command::Add, "ADD");
    let del = parse(Command::Del, "DEL");
    let check = parse(Command::Check, "CHECK");
    for result in [&add, &del, &check] {
        match result {
            Ok(request) => {
                assert_request(request);
                assert_version(version, &request.config, stdin);
            }
            Err(error) => assert_error(error, &PARSE_CODES),
        }
    }
    let gc = request::parse_gc(stdin);
    let status = request::parse_status(stdin);
    match &gc {
        Ok((config, known)) => {
            assert!(config.version >= Version::V1_1_0);
            assert!(known.iter().all(|(id, ifname)| !id.is_empty() && !ifname.is_empty()));
        }
        Err(error) => assert_error(error, &PARSE_CODES),
    }
    match &status {
        Ok(config) => assert!(config.version >= Version::V1_1_0),
        Err(error) => assert_error(error, &PARSE_CODES),
    }
    // What got through an ADD must not keep its DEL or CHECK from working.
    if let Ok(add) = &add {
        assert!(del.is_ok());
        assert_eq!(check.is_ok(), add.config.version >= Version::V0_4_0);
        assert_eq!(status.is_ok(), add.config.version >= Version::V1_1_0);
        result_of(add);
    }
    if let Ok(request) = &check {
        // Goes as far as the namespace, which is not there.
        assert_error(&check::check(request).expect_err("no namespace"), &[6, 7, 8, 110]);
    }
});

/// The value without its fractions: reading one may round it anew.
fn shape(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => json!(0.5),
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::Object(members) => members.iter().map(|(k, v)| (k.clone(), shape(v))).collect(),
        other => other.clone(),
    }
}

/// An error says the version that the request was read by.
fn assert_version(version: &str, config: &Config, stdin: &[u8]) {
    let stated = serde_json::from_slice::<Value>(stdin).ok();
    let stated = stated.as_ref().and_then(Value::as_object).is_some_and(|object| {
        object.iter().any(|(key, value)| {
            key.eq_ignore_ascii_case("cniVersion") && value.as_str().is_some_and(|v| !v.is_empty())
        })
    });
    if stated {
        assert_eq!(version, config.version.as_str());
    }
}

/// The result of such an ADD, behind whatever `prevResult` says, is one that CHECK takes.
fn result_of(add: &Request) {
    let (version, previous) = (add.config.version, add.config.prev_result.as_ref());
    let interface = |name: &str| Interface {
        name: name.into(),
        mac: Mac([0x0a, 0x58, 10, 5, 7, 2]),
        mtu: 1450,
        sandbox: None,
    };
    let sandbox = Some(add.attachment.netns.clone());
    let subnet = "10.5.7.0/24".parse().expect("subnet");
    let result = AddResult {
        interfaces: [interface("loden0"), interface("veth1"), Interface { sandbox, ..interface("eth0") }],
        addresses: vec![Address { address: "10.5.7.2".parse().expect("address"), subnet }],
        routes: vec![Route {
            to: "0.0.0.0/0".parse().expect("subnet"),
            gateway: "10.5.7.1".parse().expect("address"),
        }],
        dns: add.config.dns.clone(),
    };
    let json = result.to_json(version, previous);
    let read: Value = serde_json::from_str(&json.to_string()).expect("JSON");
    assert_eq!(shape(&read), shape(&json));
    assert_eq!(json["cniVersion"], version.as_str());
    if version >= Version::V0_3_0 {
        let ours = json["ips"].as_array().and_then(|ips| ips.last()).expect("our address");
        let index = ours["interface"].as_u64().expect("an index") as usize;
        assert_eq!(json["interfaces"][index]["sandbox"], json!(add.attachment.netns));
        assert_eq!(json["interfaces"].as_array().map(Vec::len), Some(index + 1));
    }
    if version < Version::V0_4_0 {
        return;
    }
    let alone = result.to_json(version, None);
    let stdin = json!({ "cniVersion": version.as_str(), "name": "n", "prevResult": alone }).to_string();
    let request = Request::parse(Command::Check, &environment("CHECK"), stdin.as_bytes()).expect("valid");
    let error = check::check(&request).expect_err("no namespace");
    assert!(matches!(error, Error::Namespace { .. }), "{error}");
}
