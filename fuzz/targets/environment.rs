//! The `CNI_…` variables, one after the other with zero bytes between, which no variable can hold.

#![no_main]

use libfuzzer_sys::fuzz_target;
use loden_cni::request::{Command, Environment, Request};
use loden_cni::run::{Streams, run};
use loden_fuzz::{PARSE_CODES, assert_error, assert_error_json, assert_request, is_interface_name, is_plain};

const COMMANDS: [(&str, Command); 6] = [
    ("ADD", Command::Add),
    ("DEL", Command::Del),
    ("CHECK", Command::Check),
    ("GC", Command::Gc),
    ("STATUS", Command::Status),
    ("VERSION", Command::Version),
];
const CONFIG: &[u8] = br#"{"cniVersion":"1.0.0","name":"n"}"#;
/// Refused by every command before anything is touched.
const NAMELESS: &[u8] = br#"{"cniVersion":"1.1.0"}"#;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let mut env = Environment::default();
    env.command = next();
    env.container_id = next();
    env.netns = next();
    env.ifname = next();
    env.args = next();
    env.path = next();
    env.netns_override = next();

    match env.command() {
        Ok(command) => {
            assert!(COMMANDS.contains(&(env.command.as_str(), command)));
            let attached = matches!(command, Command::Add | Command::Del | Command::Check);
            assert!(!attached || !(env.container_id.is_empty() || env.ifname.is_empty()));
            assert!(!attached || command == Command::Del || !env.netns.is_empty());
        }
        Err(error) => assert_error(&error, &[4]),
    }
    for command in [Command::Add, Command::Del, Command::Check] {
        match Request::parse(command, &env, CONFIG) {
            Ok(request) => {
                assert_request(&request);
                assert_eq!(request.attachment.container_id, env.container_id);
                assert_eq!(request.attachment.ifname.as_str(), env.ifname);
                assert_eq!(request.attachment.netns, env.netns);
            }
            Err(error) => {
                assert_error(&error, &PARSE_CODES);
                // CNI_ARGS are for ADD alone.
                let valid = is_plain(&env.container_id) && is_interface_name(&env.ifname);
                assert!(!valid || command == Command::Add, "{error}");
            }
        }
    }
    whole_call(&env);
});

/// The call as a whole, which ends at a configuration without a name.
fn whole_call(env: &Environment) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let streams = Streams { stdin: &mut &*NAMELESS, stdout: &mut stdout, stderr: &mut stderr };
    let code = run(env, streams);
    let stdout = String::from_utf8(stdout).expect("UTF-8");
    match (env.command.as_str(), code) {
        ("", 0) => assert!(stdout.is_empty() && stderr.starts_with(b"CNI loden plugin v")),
        ("VERSION", 0) => {
            assert!(serde_json::from_str::<serde_json::Value>(&stdout).is_ok_and(|v| v.is_object()));
        }
        (_, 1) => assert!([4, 6, 7].contains(&assert_error_json(&stdout)), "{stdout}"),
        (command, code) => panic!("{command} ends with {code}"),
    }
}
