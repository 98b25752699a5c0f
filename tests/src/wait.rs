//! Waiting for a state, with a message that shows the last state seen.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// What a check can return: `bool`, `Option<T>` or `Result<T, state>`.
pub trait Outcome {
    /// What a successful check yields.
    type Value;
    /// The value, or the state that was seen instead.
    fn outcome(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();
    fn outcome(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("it is not so".into()) }
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;
    fn outcome(self) -> Result<T, String> {
        self.ok_or_else(|| "there is none".into())
    }
}

impl<T, E: Display> Outcome for Result<T, E> {
    type Value = T;
    fn outcome(self) -> Result<T, String> {
        self.map_err(|e| e.to_string())
    }
}

/// Polls until the check holds and returns its value; panics with the last state seen.
#[track_caller]
pub fn eventually<O: Outcome>(within: Duration, what: &str, mut check: impl FnMut() -> O) -> O::Value {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    loop {
        match check().outcome() {
            Ok(value) => return value,
            // One more look after the deadline: a loaded machine may have slept through it.
            Err(state) if start.elapsed() > within => {
                panic!("not within {within:?}: {what}\n  last seen: {state}")
            }
            Err(_) => thread::sleep(pause),
        }
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}

/// Checks again and again for a while; panics as soon as the check fails.
#[track_caller]
pub fn always<O: Outcome>(during: Duration, what: &str, mut check: impl FnMut() -> O) {
    let start = Instant::now();
    while start.elapsed() < during {
        if let Err(state) = check().outcome() {
            panic!("not always: {what}\n  after {:?}: {state}", start.elapsed());
        }
        thread::sleep(Duration::from_millis(50));
    }
}
