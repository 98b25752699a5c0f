//! Tests of `netavark_config.rs`.

use super::*;
use crate::options::Routes;

/// What Podman 5 passes to `create`.
fn network() -> Value {
    json!({
        "name": "ovl", "id": "2f25", "driver": "loden", "created": "0001-01-01T00:00:00Z",
        "ipv6_enabled": false, "internal": false, "dns_enabled": true,
    })
}

/// What netavark passes to `setup`, with everything that it always has.
fn exec() -> Value {
    json!({
        "container_id": "752947ff", "container_name": "web", "port_mappings": null, "network": network(),
        "network_options": {
            "aliases": ["752947ff91f9"], "interface_name": "eth0", "static_ips": null, "static_mac": null,
            "options": null,
        },
    })
}

fn with(mut value: Value, pointer: &str, member: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    value.pointer_mut(parent).expect(parent)[name] = member;
    value
}

fn create(network: &Value) -> Result<Value, Error> {
    created(network.to_string().as_bytes()).map(Value::Object)
}

fn setup(exec: &Value) -> Result<Request, Error> {
    request(Purpose::Setup, "/run/netns/x", exec.to_string().as_bytes())
}

#[test]
fn create_leaves_addresses_and_names_to_us_and_changes_nothing_else() {
    let asked = with(network(), "/options", json!({"mtu": "1300", "PortIsolation": "true"}));
    let mut expected = with(asked.clone(), "/ipam_options", json!({"driver": "none"}));
    expected["dns_enabled"] = json!(false);
    assert_eq!(create(&asked).expect("valid"), expected);
    assert_eq!(create(&expected).expect("valid"), expected, "and again");
}

#[test]
fn create_refuses_what_the_driver_does_not_have() {
    for (pointer, member, words) in [
        ("/subnets", json!([{"subnet": "10.0.0.0/16"}]), "leave out --subnet"),
        ("/routes", json!([{"destination": "10.0.0.0/8", "gateway": "10.5.7.1"}]), "--route"),
        ("/internal", json!(true), "isDefaultGateway=false"),
        ("/network_dns_servers", json!(["9.9.9.9"]), "leave out --dns"),
        ("/ipam_options", json!({"driver": "host-local"}), "ipam_options.driver = \"host-local\""),
        ("/options", json!({"vlan": "7"}), "unknown option vlan; the loden driver has mtu, hairpinMode"),
        ("/options", json!({"bridge": "br0"}), "--interface-name"),
        ("/options", json!({"mtu": "big"}), "mtu must be a number, but is \"big\""),
        ("/options", json!({"hairpinMode": "yes"}), "hairpinMode must be true or false, but is \"yes\""),
        ("/options", json!({"dataDir": "ipam"}), "dataDir must be an absolute path"),
        ("/options", json!({"mtu": 7}), "options must hold strings"),
        ("/network_interface", json!("a/b"), "network_interface \"a/b\""),
        ("/name", json!("../x"), "network name"),
    ] {
        let error = create(&with(network(), pointer, member)).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
    }
    for input in ["", "[]", "null"] {
        assert!(created(input.as_bytes()).is_err(), "{input}");
    }
}

#[test]
fn setup_asks_for_what_podman_asks_for() {
    let request = setup(&exec()).expect("valid");
    let Attachment { network, container_id, ifname, netns, .. } = &request.attachment;
    assert_eq!([network, container_id, ifname.as_str(), netns], ["ovl", "752947ff", "eth0", "/run/netns/x"]);
    assert_eq!((request.config.options, request.config.bridge), (Options::default(), None));
    assert_eq!(request.wishes.name.as_deref(), Some("web"));
    assert_eq!(request.config.data_dir, Path::new("/run/loden/ipam"));

    let mut asked = with(exec(), "/network/network_interface", json!("br7"));
    asked["network"]["options"] = json!({
        "mtu": "1300", "hairpinMode": "true", "subnetFile": "/x/subnet.env", "dataDir": "/x/ipam",
    });
    asked["network_options"]["options"] = json!({"MTU": "1200", "isDefaultGateway": "false"});
    asked["network_options"]["static_ips"] = json!(["10.5.7.9", "fd00::9"]);
    asked["network_options"]["static_mac"] = json!("02:00:00:00:00:09");
    asked["container_name"] = json!("");
    let Request { config, wishes, .. } = setup(&asked).expect("valid");
    assert_eq!((config.options.mtu, config.options.hairpin), (Some(1200), true));
    assert_eq!(config.options.routes, Routes::Overlay);
    assert_eq!(config.bridge.as_ref().map(IfName::as_str), Some("br7"));
    assert_eq!((config.subnet_file, config.data_dir), ("/x/subnet.env".into(), "/x/ipam".into()));
    assert_eq!(wishes.addresses.len(), 2);
    assert_eq!(wishes.mac.map(|m| m.to_string()).as_deref(), Some("02:00:00:00:00:09"));
    assert_eq!(wishes.name.as_deref(), Some("752947ff91f9"));
}

#[test]
fn setup_refuses_and_teardown_does_not() {
    let port =
        json!([{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1}]);
    for (pointer, member, words) in [
        ("/port_mappings", port, "-p 8080:80"),
        ("/network_options/static_ips", json!(["x"]), "static_ips has \"x\""),
        ("/network_options/static_mac", json!("01:00:5e:00:00:01"), "static_mac is \"01:00:5e:00:00:01\""),
        ("/network_options/options", json!({"dataDir": "/x"}), "unknown option dataDir"),
        ("/network/options", json!({"vlan": "7"}), "unknown option vlan"),
        ("/network/subnets", json!([{"subnet": "10.0.0.0/16"}]), "--subnet"),
    ] {
        let asked = with(exec(), pointer, member);
        let error = setup(&asked).expect_err(words).to_string();
        assert!(error.contains(words), "{error}");
        let gone = request(Purpose::Teardown, "/gone", asked.to_string().as_bytes()).expect("a teardown");
        assert_eq!(gone.attachment.container_id, "752947ff");
    }
    for (pointer, member) in [
        ("/container_id", json!("a/b")),
        ("/network_options/interface_name", json!("")),
        ("/network/name", json!("..")),
    ] {
        let asked = with(exec(), pointer, member).to_string();
        for purpose in [Purpose::Setup, Purpose::Teardown] {
            request(purpose, "/x", asked.as_bytes()).expect_err(pointer);
        }
    }
}

#[test]
fn ports_can_be_left_to_another_network() {
    let port = json!([{"container_port": 80, "host_port": 8080}]);
    let asked = with(exec(), "/port_mappings", port);
    for place in ["/network/options", "/network_options/options"] {
        setup(&with(asked.clone(), place, json!({"ignorePortMappings": "true"}))).expect(place);
        setup(&with(asked.clone(), place, json!({"ignorePortMappings": "false"}))).expect_err(place);
    }
}
