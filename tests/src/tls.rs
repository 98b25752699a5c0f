//! How the lab's etcd is secured, and what each side needs for it.

use std::fs;
use std::path::{Path, PathBuf};

/// Security of the lab's etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// HTTP, no users.
    Plain,
    /// TLS with a CA of its own; clients need the CA alone.
    Ca,
    /// TLS that demands client certificates.
    ClientCerts,
    /// TLS by the CA, and a user with a password.
    Password,
}

/// The user of [`Security::Password`].
const USER: &str = "loden";
/// Its password, which must never show in logs or command lines.
pub(crate) const PASSWORD: &str = "correct-horse-battery-staple";

#[derive(Debug)]
pub(crate) struct Tls {
    security: Security,
    dir: PathBuf,
}

impl Tls {
    pub(crate) fn new(security: Security, lab: &Path) -> Self {
        let dir = lab.join("tls");
        if security != Security::Plain {
            fs::create_dir_all(&dir).expect("a folder for certificates");
            fs::write(dir.join("password"), format!("{PASSWORD}\n")).expect("the password file");
            let script = MAKE_CERTIFICATES.replace("ADDRESS", crate::Etcd::ADDRESS);
            let mut command = std::process::Command::new("sh");
            command.args(["-ec", &script]).current_dir(&dir);
            crate::process::run(command, b"").expect_success();
        }
        Self { security, dir }
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.security == Security::Plain { "http" } else { "https" }
    }

    pub(crate) fn server_flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if self.security != Security::Plain {
            flags.push(format!("--cert-file={}", self.file("server.crt")));
            flags.push(format!("--key-file={}", self.file("server.key")));
        }
        if self.security == Security::ClientCerts {
            flags.push("--client-cert-auth".into());
            flags.push(format!("--trusted-ca-file={}", self.file("ca.crt")));
        }
        flags
    }

    pub(crate) fn daemon_flags(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if self.security != Security::Plain {
            flags.push(format!("--etcd-cafile={}", self.file("ca.crt")));
        }
        if self.security == Security::ClientCerts {
            flags.push(format!("--etcd-certfile={}", self.file("client.crt")));
            flags.push(format!("--etcd-keyfile={}", self.file("client.key")));
        }
        if self.security == Security::Password {
            flags.push(format!("--etcd-username={USER}"));
            flags.push(format!("--etcd-password-file={}", self.file("password")));
        }
        flags
    }

    pub(crate) fn ctl_flags_without_user(&self) -> Vec<String> {
        let mut flags = Vec::new();
        if self.security != Security::Plain {
            flags.push(format!("--cacert={}", self.file("ca.crt")));
        }
        if self.security == Security::ClientCerts {
            flags.push(format!("--cert={}", self.file("client.crt")));
            flags.push(format!("--key={}", self.file("client.key")));
        }
        flags
    }

    pub(crate) fn ctl_flags(&self) -> Vec<String> {
        let mut flags = self.ctl_flags_without_user();
        if self.security == Security::Password {
            flags.push("--user=root:root".into());
        }
        flags
    }

    /// The etcdctl calls that turn authentication on: a user who may touch the network's keys.
    pub(crate) fn auth_steps(&self) -> Vec<Vec<String>> {
        if self.security != Security::Password {
            return Vec::new();
        }
        [
            "user add root:root".to_owned(),
            "user grant-role root root".into(),
            format!("user add {USER}:{PASSWORD}"),
            "role add network".into(),
            format!("role grant-permission network --prefix=true readwrite {}/", crate::PREFIX),
            format!("user grant-role {USER} network"),
            "auth enable".into(),
        ]
        .iter()
        .map(|line| line.split(' ').map(str::to_owned).collect())
        .collect()
    }
}

const MAKE_CERTIFICATES: &str = r#"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
  -keyout ca.key -out ca.crt -subj "/CN=lab CA" -addext "basicConstraints=critical,CA:TRUE"
for name in server client; do
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout $name.key -out $name.csr -subj "/CN=$name"
  printf 'basicConstraints=CA:FALSE\nsubjectAltName=IP:ADDRESS,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n' > ext
  openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $name.crt
done
"#;
