//! Where a flag's value comes from: flag, environment, flannel's environment, file, in this order.
//! Told by which of several impossible values the program complains about.

use std::process::Command;

/// Runs `loden daemon` with a configuration file, environment and flags; how it ends, and what it says.
fn ends(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("loden.toml");
    std::fs::write(&path, file).expect("write");
    let output = Command::new(env!("CARGO_BIN_EXE_loden"))
        .arg("daemon")
        .arg(format!("--config-file={}", path.display()))
        .args(flags)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("loden runs");
    assert!(!output.status.success(), "an impossible value ends it");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What it says on its way out.
fn says(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> String {
    ends(file, environment, flags).1
}

const FILE: &str = "fwmark = \"from-file\"\n";

#[test]
fn a_flag_wins_over_the_environment_and_that_over_the_file() {
    let environment = [("LODEN_FWMARK", "from-environment")];
    assert!(says(FILE, &[], &[]).contains("\"from-file\""));
    assert!(says(FILE, &environment, &[]).contains("\"from-environment\""));
    assert!(says(FILE, &environment, &["--fwmark=from-flag"]).contains("\"from-flag\""));
}

#[test]
fn flannels_names_are_taken_with_a_note() {
    let said = says("", &[("FLANNELD_PUBLIC_IP", "not-an-address")], &[]);
    assert!(said.contains("not-an-address") && said.contains("--public-ip"), "{said}");
    let said = says("", &[("FLANNELD_IFACE", "eth9"), ("LODEN_FWMARK", "bad")], &[]);
    assert!(said.contains("FLANNELD_IFACE") && said.contains("LODEN_"), "{said}");
}

#[test]
fn a_misspelt_key_and_a_broken_file_are_named() {
    /// EX_USAGE of sysexits(3)
    const USAGE: Option<i32> = Some(64);
    let (code, said) = ends("etcd-endpoint = \"http://127.0.0.1:1\"\n", &[], &[]);
    assert!(said.contains("unknown key etcd-endpoint") && said.contains("loden.toml"), "{said}");
    assert_eq!(code, USAGE);
    let (code, said) = ends("etcd-endpoints = [\n", &[], &[]);
    assert!(said.contains("loden.toml"), "{said}");
    assert_eq!(code, USAGE);
}

#[test]
fn an_impossible_setting_is_told_with_its_value_and_what_would_be_right() {
    for (flag, words) in [
        ("--etcd-endpoints=127.0.0.1:2379", ["127.0.0.1:2379", "http://"]),
        ("--etcd-certfile=/x.crt", ["--etcd-keyfile", "both"]),
        ("--etcd-cafile=/no/such/ca", ["/no/such/ca", "cannot be read"]),
        ("--subnet-lease-ttl=1s", ["--subnet-lease-ttl", "5s"]),
        ("--network=Too.Long", ["--network", "lower-case"]),
        ("--label=rack", ["--label", "KEY=VALUE"]),
        ("--iface=a-name-of-17-bytes", ["a-name-of-17-bytes", "15"]),
        ("--public-ip=224.0.0.1", ["224.0.0.1", "unicast"]),
        ("--vtep-source-check=maybe", ["maybe", "auto"]),
    ] {
        let said = says("", &[], &[flag]);
        assert!(words.iter().all(|word| said.contains(word)), "{flag}: {said}");
    }
}
