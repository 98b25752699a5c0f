//! Reading JSON as Go's encoding/json does: keys match in any case, the exact spelling first.
//! flannel and its users rely on it ("network", "enableIPv6").

use serde_json::{Map, Value};

/// Finds and removes the member with this name in any case. Of several, the exact spelling
/// wins, else the last.
pub(crate) fn take(object: &mut Map<String, Value>, name: &str) -> Option<Value> {
    let exact = object.remove(name);
    let others: Vec<String> = object.keys().filter(|k| k.eq_ignore_ascii_case(name)).cloned().collect();
    let last = others.iter().filter_map(|k| object.remove(k)).last();
    exact.or(last).filter(|v| !v.is_null())
}

/// A value cut to a length fit for an error message.
pub(crate) fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > 80 {
        let end = (0..=77).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
