//! The plugin killed at every system call, from its first to its exit, and what a runtime
//! then does: whatever the moment, no address, interface or file is left or given twice.
//!
//! strace sends SIGKILL as a call begins, and a call that begins with it is not carried out.
//! Between two calls a process changes nothing that outlives it, so this is every moment.

use std::collections::{BTreeSet, hash_map::RandomState};
use std::fs;
use std::hash::BuildHasher as _;
use std::process::Child;
use std::sync::Mutex;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::lab::{Call, Lab, Outcome, assert_connected, interfaces, ip};

/// What the runtime does once the plugin has been killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// ADD again, without DEL; then DEL.
    Again,
    /// DEL, then ADD of another container.
    Another,
    /// The container ends without DEL; GC with an empty list.
    Collect,
}

use Next::{Again, Another, Collect};

const NEXTS: [Next; 3] = [Again, Another, Collect];

/// What is so before the call that is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Neither a bridge nor a folder.
    Nothing,
    /// The container is connected.
    Connected,
    /// An ADD was killed half way, after it had made the pair.
    HalfMade,
}

/// A host, and the container that the killed call is about.
struct Scene {
    lab: Lab,
    netns: String,
    other: String,
}

impl Scene {
    fn new(before: Before) -> Self {
        let lab = dual_stack();
        let (netns, other) = (lab.namespace("c"), lab.namespace("other"));
        let scene = Self { lab, netns, other };
        if before != Before::Nothing {
            // The first ADD after the last DEL sets the bridge's MTU for good; the ones that are
            // compared all come later.
            scene.prepare(before);
            add_again(&scene.lab, &scene.netns);
            scene.lab.del(&scene.netns);
        }
        scene
    }

    /// From a host without containers, whatever it had before.
    fn prepare(&self, before: Before) {
        let Self { lab, netns, .. } = self;
        let _ = fs::remove_dir_all(lab.path().join("ipam"));
        if before == Before::Nothing {
            if !interfaces(&lab.host()).is_empty() {
                ip(&lab.host(), "link delete loden0");
            }
            return;
        }
        lab.add(netns);
        if before == Before::HalfMade {
            // Down, with the MAC of its allocation: as ADD makes it before it goes on.
            ip(netns, "link set eth0 down");
        }
    }

    /// Runs the command under strace, and returns the calls that were carried out before its
    /// end, by name; `kill` is the one that is not (its name, and the how manieth of that name).
    fn trace(&self, command: &str, kill: Option<(&str, usize)>) -> (Outcome, Vec<String>) {
        let log = self.lab.path().join("strace");
        let log = log.to_str().expect("path");
        let mut strace = vec!["strace", "-qq", "-s", "0", "-e", "raw=all", "-o", log];
        let inject = kill.map(|(name, n)| format!("inject={name}:signal=SIGKILL:when={n}"));
        if let Some(inject) = &inject {
            strace.extend(["-e", inject]);
        }
        let out = self.lab.call(command, &self.netns).under(&strace).run();
        let text = fs::read_to_string(log).expect("strace's log");
        // A call that the kernel restarts (a sysctl while something else is at the network's
        // lock) is carried out once.
        let done = text.lines().filter(|line| !line.contains("ERESTART") && !line.contains("+++"));
        let mut calls: Vec<String> =
            done.filter_map(|line| Some(line.split_once('(')?.0.to_owned())).collect();
        if out.code.is_none() {
            assert!(text.ends_with("+++ killed by SIGKILL +++\n"), "{text}");
            calls.pop();
        }
        (out, calls)
    }

    /// Does it, asserts that all is as if nothing had been killed, and leaves no container.
    fn follow(&self, next: Next, context: &str) {
        let Self { lab, netns, other } = self;
        match next {
            Again => {
                add_again(lab, netns);
                lab.assert_only(&[netns], context);
                assert_connected(netns, &lab.host(), "10.5.7.1");
                lab.del(netns);
            }
            Another => {
                lab.del(netns);
                lab.add(other);
                lab.assert_only(&[other], context);
                assert_connected(other, &lab.host(), "10.5.7.1");
                lab.del(other);
            }
            Collect => {
                lab.remove(netns);
                gc(lab).run().success();
            }
        }
        lab.assert_only(&[], context);
        if next == Collect {
            lab.namespace("c");
        } else {
            assert_eq!(interfaces(netns), Vec::<String>::new(), "{context}");
        }
    }
}

fn dual_stack() -> Lab {
    let lab = Lab::new();
    lab.lease(&["10.5.7.1/24", "fd00:0:0:7::1/64"]);
    lab
}

/// ADD of a container whose last call was killed.
fn add_again(lab: &Lab, netns: &str) {
    let retry = lab.call("ADD", netns).run();
    if retry.code != Some(0) {
        // The pair was complete but for the answer; then DEL has to come first.
        retry.failure(102, &["DEL must come before"]);
        assert!(ip(netns, "link show eth0").contains(",UP"), "a half-made pair is no obstacle");
        lab.del(netns);
        lab.add(netns);
    }
}

/// GC for a runtime without containers.
fn gc(lab: &Lab) -> Call {
    lab.call("GC", &lab.host()).config(|config| {
        config["cniVersion"] = json!("1.1.0");
        config["cni.dev/valid-attachments"] = json!([]);
    })
}

/// The first call of our own; before it is the loader's work.
const MAIN: &str = "umask";
/// Calls that can change what outlives the process.
const CHANGING: [&str; 8] =
    ["sendto", "linkat", "renameat", "unlinkat", "utimensat", "mkdirat", "openat", "setns"];

/// Kills the command at each of its calls. `all` follow where it is asked for and where the call
/// before may have changed something, else one of them in turn.
fn sweep(before: Before, command: &str, all: bool) {
    let calls = {
        let scene = Scene::new(before);
        scene.prepare(before);
        let (out, calls) = scene.trace(command, None);
        out.success();
        calls
    };
    let main = calls.iter().position(|call| call == MAIN).expect("main's first call");
    // The first is strace's own execve.
    let points = 1..calls.len();
    let nexts = |point: &usize| match *point > main && (all || CHANGING.contains(&calls[point - 1].as_str()))
    {
        true => NEXTS.to_vec(),
        false => vec![NEXTS[point % NEXTS.len()]],
    };
    let mut todo: Vec<(usize, Next)> =
        points.flat_map(|p| nexts(&p).into_iter().map(move |next| (p, next))).collect();
    // Where the kernel restarts a call, the one that is killed is another than meant.
    for round in 0.. {
        assert!(round < 100, "{before:?} {command}: never killed at {todo:?}");
        let (queue, hit) = (Mutex::new(todo.clone()), Mutex::new(Vec::new()));
        let work = || {
            let scene = Scene::new(before);
            loop {
                let Some((point, next)) = queue.lock().expect("lock").pop() else { return };
                let name = &calls[point];
                let n = calls[..=point].iter().filter(|c| *c == name).count();
                scene.prepare(before);
                let (out, done) = scene.trace(command, Some((name, n)));
                let context = format!(
                    "{command} ({before:?}) killed at call {}, {name} {n}, then {next:?}",
                    done.len()
                );
                scene.follow(next, &context);
                if out.code.is_none() {
                    hit.lock().expect("lock").push((done.len(), next));
                }
            }
        };
        let threads = todo.len().min(2);
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        let hit = hit.into_inner().expect("lock");
        todo.retain(|point| !hit.contains(point));
        if todo.is_empty() {
            return;
        }
    }
}

#[test]
fn an_add_can_be_killed_at_any_call() {
    sweep(Before::Nothing, "ADD", true);
}

#[test]
fn an_add_that_repeats_a_killed_one_can_be_killed_at_any_call() {
    sweep(Before::HalfMade, "ADD", false);
}

#[test]
fn a_del_can_be_killed_at_any_call() {
    sweep(Before::Connected, "DEL", false);
}

/// At those that change files: how many others there are depends on the machine's processes.
#[test]
fn a_gc_can_be_killed() {
    let lab = dual_stack();
    let mut killed = 0;
    for call in ["flock", "utimensat", "renameat", "unlinkat"] {
        for n in 1.. {
            let netns = lab.namespace("c");
            lab.add(&netns);
            lab.remove(&netns);
            // Left by another command that was killed.
            fs::write(lab.ipam().join(".new"), "").expect("written");
            let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=SIGKILL:when={n}"));
            let strace = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            let out = gc(&lab).under(&strace).run();
            gc(&lab).run().success();
            lab.assert_only(&[], &format!("GC killed at {call} {n}"));
            if out.code == Some(0) {
                break;
            }
            killed += 1;
        }
    }
    assert!(killed > 8, "killed only {killed} times");
}

/// Starts the command and holds it where it begins the call for the `n`th time; it is killed there
/// when it is dropped.
struct Held {
    strace: Option<Child>,
    plugin: Pid,
}

impl Held {
    fn at(lab: &Lab, command: &str, netns: &str, call: &str, n: usize) -> Self {
        let log = lab.path().join("strace");
        let _ = fs::remove_file(&log);
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:delay_enter=600s:when={n}"));
        let strace = ["strace", "-qq", "-o", log.to_str().expect("path"), "-e", &trace, "-e", &inject];
        let mut strace = lab.call(command, netns).under(&strace).spawn();
        loop {
            let text = fs::read_to_string(&log).unwrap_or_default();
            if text.lines().count() == n && !text.ends_with('\n') {
                break;
            }
            assert!(strace.try_wait().expect("wait").is_none(), "{command} never comes to {call} {n}");
            sleep(Duration::from_millis(1));
        }
        let children = format!("/proc/{0}/task/{0}/children", strace.id());
        let plugin = fs::read_to_string(children).expect("strace's children").trim().parse().expect("one");
        Self { strace: Some(strace), plugin: Pid::from_raw(plugin).expect("a process") }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        kill_process(self.plugin, Signal::KILL).expect("killed");
        if let Some(mut strace) = self.strace.take() {
            // It would hold the dead until the delay is over. Its output ends with the last of the two.
            strace.kill().expect("killed");
            assert_eq!(Outcome::of(strace).code, None);
        }
    }
}

#[test]
fn one_that_is_killed_does_not_harm_another_at_the_same_time() {
    let lab = dual_stack();
    let (killed, other) = (lab.namespace("killed"), lab.namespace("other"));
    // The third setns is after the pair.
    let add = [("flock", 1), ("linkat", 1), ("renameat", 2), ("sendto", 5), ("setns", 3)].map(|p| ("ADD", p));
    let del = [("sendto", 1), ("flock", 1), ("renameat", 2), ("unlinkat", 1)].map(|p| ("DEL", p));
    for (command, (call, n)) in add.into_iter().chain(del) {
        if command == "DEL" {
            lab.add(&killed);
        }
        let held = Held::at(&lab, command, &killed, call, n);
        let second = lab.call("ADD", &other).spawn();
        // Time to come to the lock, if the first has it; to be done, if not.
        sleep(Duration::from_millis(20));
        drop(held);
        Outcome::of(second).success();
        add_again(&lab, &killed);
        let context = format!("{command} killed at {call} {n}");
        lab.assert_only(&[&killed, &other], &context);
        assert_connected(&killed, &other, &shown(&other));
        for netns in [&killed, &other] {
            lab.del(netns);
        }
        lab.assert_only(&[], &context);
    }
}

#[test]
fn of_fifty_at_once_any_can_be_killed() {
    const COUNT: usize = 50;
    let lab = dual_stack();
    let all: Vec<String> = (0..COUNT).map(|i| lab.namespace(&format!("c{i}"))).collect();
    // Random, and told by the message.
    let seed = RandomState::new().hash_one(0);
    let random = |i: usize| (seed.rotate_left(7 * i as u32) ^ (i as u64).wrapping_mul(0x9e37_79b9)) as usize;
    let mut children = Vec::new();
    for (i, netns) in all.iter().enumerate() {
        children.push(Some(lab.call("ADD", netns).spawn()));
        // One of the last few, at whatever it is just now; the first for certain.
        if (i == 0 || random(i) % 2 == 0)
            && let Some(Some(child)) = children.get_mut(i.saturating_sub(random(i) / 2 % 6))
        {
            child.kill().expect("killed");
        }
    }
    let outcomes: Vec<Outcome> = children.into_iter().flatten().map(Outcome::of).collect();
    let killed = outcomes.iter().filter(|out| out.code.is_none()).count();
    for (netns, out) in all.iter().zip(&outcomes) {
        match out.code {
            None => add_again(&lab, netns),
            Some(_) => drop(out.success()),
        }
    }
    let context = format!("seed {seed}, {killed} killed");
    assert!(killed > 0, "{context}");
    let living: Vec<&str> = all.iter().map(String::as_str).collect();
    lab.assert_only(&living, &context);
    let addresses: BTreeSet<String> = all.iter().map(|n| shown(n)).collect();
    assert_eq!(addresses.len(), COUNT, "{context}");
    // Half of them end without DEL.
    for (i, netns) in all.iter().enumerate() {
        if i % 2 == 0 {
            lab.del(netns);
        } else {
            lab.remove(netns);
        }
    }
    gc(&lab).run().success();
    lab.assert_only(&[], &context);
}

/// The IPv4 address that a container has, by the kernel.
fn shown(netns: &str) -> String {
    let line = ip(netns, "-4 -o address show eth0");
    let address = line.split_whitespace().nth(3).and_then(|address| address.split('/').next());
    address.expect("an address").to_owned()
}
