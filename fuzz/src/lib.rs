//! What several fuzz targets assert: the form of errors, the specification's rules for names.
//! Written down once more instead of called, so that a mistake in the plugin shows.

use loden_cni::Error;
use loden_cni::request::{Attachment, Environment, Request, Version};
use serde_json::Value;

/// The codes of docs/cni.md that reading a request alone can lead to.
pub const PARSE_CODES: [u32; 5] = [1, 2, 4, 6, 7];

/// An attachment's environment that is right, of a namespace that does not exist.
pub fn environment(command: &str) -> Environment {
    let mut env = Environment::default();
    env.command = command.into();
    env.container_id = "c1".into();
    env.netns = "/nonexistent/netns".into();
    env.ifname = "eth0".into();
    env.path = "/opt/cni/bin".into();
    env
}

/// Asserts that an error has one of these codes and that its JSON is the specification's.
pub fn assert_error(error: &Error, codes: &[u32]) {
    assert!(codes.contains(&error.code()), "code {} of {error}", error.code());
    let text = error.to_json(Version::NEWEST.as_str()).to_string();
    assert_eq!(assert_error_json(&text), error.code());
}

/// Asserts that a text is an error as the specification wants it, and returns its code.
pub fn assert_error_json(text: &str) -> u32 {
    let json: Value = serde_json::from_str(text).expect("an error is JSON");
    let members = json.as_object().expect("an error is an object");
    for (name, value) in members {
        let right = match name.as_str() {
            "cniVersion" => value.as_str().is_some_and(|v| Version::find(v).is_some()),
            "code" => value.as_u64().is_some_and(|code| code > 0),
            "msg" => value.as_str().is_some_and(|msg| !msg.is_empty()),
            "details" => value.is_string(),
            _ => false,
        };
        assert!(right, "{name} is {value}");
    }
    assert!(["cniVersion", "code", "msg"].iter().all(|name| members.contains_key(*name)), "{text}");
    json["code"].as_u64().and_then(|code| u32::try_from(code).ok()).expect("a code")
}

/// The specification's rule for network names and container ids.
pub fn is_plain(text: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(rest)
}

/// The specification's rule for interface names (section 2), which is the kernel's.
pub fn is_interface_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace())
}

/// Asserts what holds for every request that was let through.
pub fn assert_request(request: &Request) {
    let Request { attachment, config, wishes, .. } = request;
    assert_attachment(attachment);
    assert_eq!(attachment.network, config.network);
    assert!(config.subnet_file.is_absolute() && config.data_dir.is_absolute());
    // No allocation lies outside of its folder.
    let folder = config.data_dir.join(&config.network);
    assert_eq!(folder.parent(), Some(config.data_dir.as_path()));
    assert_eq!(folder.file_name().and_then(|n| n.to_str()), Some(config.network.as_str()));
    if let Some(bridge) = &config.bridge {
        assert!(is_interface_name(bridge.as_str()), "{bridge:?}");
    }
    assert!(config.dns.is_object());
    if let Some(mac) = wishes.mac {
        assert!(mac.is_unicast(), "{mac}");
    }
    for (i, address) in wishes.addresses.iter().enumerate() {
        assert!(!wishes.addresses[..i].contains(address), "{address} twice");
    }
    if let Some(name) = &wishes.name {
        assert!(!name.is_empty() && !name.contains(char::is_control), "{name:?}");
    }
}

fn assert_attachment(attachment: &Attachment) {
    let Attachment { network, container_id, ifname, .. } = attachment;
    assert!(is_plain(network) && network.len() <= 255, "{network:?}");
    assert_ne!(network, loden_proto::allocation::LOCK_FILE, "the lock has this name");
    assert!(is_plain(container_id), "{container_id:?}");
    assert!(is_interface_name(ifname.as_str()), "{ifname:?}");
    assert!(is_interface_name(&loden_cni::naming::host_end(attachment).name));
}
