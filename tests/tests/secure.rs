//! etcd behind TLS, certificates and passwords, and secrets that stay secret.

use loden_tests::story::{SOON, VXLAN};
use loden_tests::{Lab, Security, eventually, matrix};

/// The lab's password for etcd; see `tls.rs`.
const PASSWORD: &str = "correct-horse-battery-staple";

fn two_hosts_through(security: Security, name: &str) {
    let lab = Lab::new(name);
    let etcd = lab.etcd_with(security);
    etcd.config(VXLAN);
    let [a, b] = lab.hosts();
    let daemons = [&a, &b].map(|h| h.daemon(&["--log-level=debug"]));
    for daemon in &daemons {
        daemon.wait_ready();
    }
    a.sees_peers(1);
    b.sees_peers(1);
    matrix(&[&a.container("a1"), &b.container("b1")]);
    for daemon in &daemons {
        let proc = |file: &str| {
            let bytes = std::fs::read(format!("/proc/{}/{file}", daemon.pid())).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        for (place, text) in [
            ("log", daemon.log()),
            ("cmdline", proc("cmdline")),
            ("environment", proc("environ")),
            ("status", format!("{:?}", daemon.host().status())),
        ] {
            assert!(!text.contains(PASSWORD), "the password is in the {place}");
            assert!(!text.contains("PRIVATE KEY"), "a key is in the {place}");
        }
    }
    let leaked = a.exec(&["grep", "-r", PASSWORD, "/run/loden", "/var/lib/loden"]);
    assert!(!leaked.success(), "the password is in a file: {}", leaked.describe());
    lab.check_invariants();
}

#[test]
fn etcd_with_a_private_ca() {
    two_hosts_through(Security::Ca, "tls_ca");
}

#[test]
fn etcd_that_demands_client_certificates() {
    two_hosts_through(Security::ClientCerts, "tls_certs");
}

#[test]
fn etcd_that_demands_a_user_and_password() {
    two_hosts_through(Security::Password, "tls_password");
}

#[test]
fn a_user_and_password_outlive_a_restart_of_etcd() {
    let lab = Lab::new("tls_restart");
    let etcd = lab.etcd_with(Security::Password);
    etcd.config(VXLAN);
    let a = lab.host("a");
    let _a = a.daemon(&[]).ready();
    etcd.kill9();
    etcd.start();
    let late = etcd.put_peer(200);
    eventually(SOON * 2, "the watch goes on", || loden_tests::kernel::route(&a, &late.to_string()));
    lab.check_invariants();
}

#[test]
fn a_wrong_ca_and_a_wrong_password_are_told_apart() {
    let lab = Lab::new("tls_wrong");
    let etcd = lab.etcd_with(Security::Password);
    etcd.config(VXLAN);
    let [a, b] = lab.hosts();
    let endpoint = format!("--etcd-endpoints={}", etcd.url());
    let no_ca = a.daemon(&[&endpoint]);
    no_ca.logs(&["certificate"]);
    assert!(no_ca.exited().is_none(), "it goes on trying");
    b.write_file("/etc/loden/password", "wrong\n");
    let ca = etcd.flags().into_iter().find(|f| f.starts_with("--etcd-cafile")).expect("a CA");
    let wrong =
        b.daemon(&[&endpoint, &ca, "--etcd-username=loden", "--etcd-password-file=/etc/loden/password"]);
    wrong.logs(&["password"]);
    assert!(!wrong.is_ready() && !no_ca.is_ready());
}

#[test]
fn certificates_are_read_again_when_their_files_change() {
    let lab = Lab::new("tls_rotate");
    let etcd = lab.etcd_with(Security::ClientCerts);
    etcd.config(VXLAN);
    let a = lab.host("a");
    let daemon = a.daemon(&[]).ready();
    let flags = etcd.flags();
    let path = flags.iter().find_map(|f| f.strip_prefix("--etcd-certfile=")).expect("the flag");
    let certificate = std::fs::read_to_string(path).expect("the certificate");
    std::fs::write(path, "not a certificate").expect("write");
    daemon.logs(&["files changed"]);
    eventually(SOON, "without a certificate etcd is away", || !a.status().etcd.connected);
    std::fs::write(path, certificate).expect("write");
    eventually(SOON, "with a certificate it is back", || a.status().etcd.connected);
    let late = etcd.put_peer(200);
    eventually(SOON, "the watch goes on", || loden_tests::kernel::route(&a, &late.to_string()));
    lab.check_invariants();
}
