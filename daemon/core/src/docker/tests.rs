use super::*;

const MARK: (u32, u32) = (1 << 30, 1 << 30);

fn env(text: &str) -> SubnetEnv {
    SubnetEnv::parse(&format!("{text}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\nLODEN_BRIDGE=loden0\n"))
        .expect(text)
}

fn four() -> SubnetEnv {
    env("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24")
}

fn both() -> SubnetEnv {
    env(
        "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64",
    )
}

fn options(env: &SubnetEnv, version: &str) -> DaemonOptions {
    DaemonOptions::new(env, version.parse().expect(version), MARK, false)
}

#[test]
fn versions_are_read_as_docker_writes_them() {
    let read = |text: &str| version_of(text).map(|v| v.to_string());
    assert_eq!(read("Docker version 20.10.24+dfsg1, build 5d6db84\n"), Ok("20.10.24".into()));
    assert_eq!(read("Docker version 29.0.0-rc.1, build 1234567"), Ok("29.0.0".into()));
    assert_eq!((read("v28.2"), read("29")), (Ok("28.2.0".into()), Ok("29.0.0".into())));
    for wrong in ["", "dev", "Docker version dev, build unknown", "28..1", "1.2.3.4", "99999999999"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn flannels_names_come_first_and_the_version_decides_on_the_rest() {
    let old = options(&four(), "20.10.24").environment_file();
    assert_eq!(
        old.text,
        "DOCKER_OPT_BIP=\"--bip=10.5.7.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\nDOCKER_OPTS=\" --bip=10.5.7.1/24 --ip-masq=false --mtu=1450\"\n"
    );
    let added = |version: &str| {
        let told = options(&four(), version).environment_file();
        let combined = told.text.lines().find(|l| l.starts_with("DOCKER_OPTS")).expect("the line");
        let raw = told.text.lines().any(|l| l == "DOCKER_INSECURE_NO_IPTABLES_RAW=1");
        (combined.split_once("--mtu=1450").expect("mtu").1.to_owned(), raw, told.unsaid.len())
    };
    let direct = " --allow-direct-routing=true";
    let mark = " --bridge-accept-fwmark=0x40000000/0x40000000";
    for (version, expected) in [
        ("27.5.1", ("\"".into(), false, 0)),
        ("28.0.1", ("\"".into(), false, 1)),
        ("28.0.2", ("\"".into(), true, 0)),
        ("28.1.1", ("\"".into(), true, 0)),
        ("28.2.0", (format!("{direct}\""), false, 0)),
        ("28.5.2", (format!("{direct}\""), false, 0)),
        ("29.0.0", (format!("{direct}{mark}\""), false, 0)),
        ("30.1", (format!("{direct}{mark}\""), false, 0)),
    ] {
        assert_eq!(added(version), expected, "Docker {version}");
    }
}

#[test]
fn json_has_the_same_members_and_says_what_it_cannot() {
    let told = options(&both(), "29").json();
    let value: Value = serde_json::from_str(&told.text).expect("JSON");
    assert_eq!(
        value,
        json!({
            "bip": "10.5.7.1/24", "ip-masq": false, "mtu": 1450, "ipv6": true,
            "fixed-cidr-v6": "fd00:0:0:7::/64", "allow-direct-routing": true,
            "bridge-accept-fwmark": "0x40000000/0x40000000",
        })
    );
    assert!(told.unsaid.is_empty());
    let told = options(&four(), "28.1").json();
    assert!(told.unsaid[0].contains("Environment=DOCKER_INSECURE_NO_IPTABLES_RAW=1"), "{told:?}");
}

#[test]
fn names_are_looked_up_where_they_are_served() {
    let text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nLODEN_DNS_ZONE=loden.internal\nLODEN_SOCKET=/run/loden/loden.sock";
    let served = env(&format!("{text}\nLODEN_DNS=169.254.53.53,10.5.7.1"));
    let file = options(&served, "20.10").environment_file().text;
    let dns = "--dns=169.254.53.53 --dns=10.5.7.1";
    let (search, option) = ("--dns-search=loden.internal", "--dns-opt=ndots:2");
    assert!(
        file.contains(&format!(
            "DOCKER_OPT_DNS=\"{dns}\"\nDOCKER_OPT_DNS_SEARCH=\"{search}\"\nDOCKER_OPT_DNS_OPT=\"{option}\"\n"
        )),
        "{file}"
    );
    assert!(file.contains(&format!(" --mtu=1450 {dns} {search} {option}\"\n")), "{file}");
    let value: Value = serde_json::from_str(&options(&served, "29").json().text).expect("JSON");
    assert_eq!(value["dns"], json!(["169.254.53.53", "10.5.7.1"]));
    assert_eq!((&value["dns-search"], &value["dns-opts"]), (&json!(["loden.internal"]), &json!(["ndots:2"])));
    // For the outside alone, or not yet.
    assert!(!options(&env(text), "20.10").environment_file().text.contains("dns"));
}

#[test]
fn a_shared_bridge_has_dockers_half_and_no_address_of_its_own() {
    let mut env = both();
    env.docker_ranges = env.subnets.iter().filter_map(|s| s.upper_half()).collect();
    let told = DaemonOptions::new(&env, Version::new(20, 10, 0), MARK, true).json();
    let value: Value = serde_json::from_str(&told.text).expect("JSON");
    assert_eq!(
        value,
        json!({
            "bridge": "loden0", "fixed-cidr": "10.5.7.128/25", "ip-masq": false, "mtu": 1450,
            "ipv6": true, "fixed-cidr-v6": "fd00:0:0:7:8000::/65",
        })
    );
}

#[test]
fn a_network_takes_the_whole_subnet_and_opens_itself_where_docker_closes_it() {
    let line =
        |env: &SubnetEnv, version: &str| network_line(env, version.parse().expect(version), "hdfs.example");
    assert_eq!(
        line(&four(), "20.10").text,
        "docker network create --driver=bridge --subnet=10.5.7.0/24 --gateway=10.5.7.1 --opt=com.docker.network.driver.mtu=1450 --opt=com.docker.network.bridge.enable_ip_masquerade=false hdfs.example\n"
    );
    let text = line(&both(), "28.0.0").text;
    assert!(text.contains("--ipv6 --subnet=fd00:0:0:7::/64 --gateway=fd00:0:0:7::1 "), "{text}");
    assert!(
        text.contains("gateway_mode_ipv4=nat-unprotected")
            && text.contains("gateway_mode_ipv6=nat-unprotected"),
        "{text}"
    );
    let six = env("FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:7::1/64");
    assert!(line(&six, "28").unsaid.is_empty() && line(&six, "28").text.contains("--ipv4=false"));
    assert_eq!((line(&six, "27").unsaid.len(), options(&six, "29").json().unsaid.len()), (1, 1));
}

#[test]
fn a_networks_name_is_one_word() {
    assert!(network_name("hdfs.example-1_a").is_ok());
    for wrong in ["", "-x", "a b", "a;b", "$(x)", "a\nb", "ä"] {
        assert!(network_name(wrong).is_err(), "{wrong}");
    }
}
