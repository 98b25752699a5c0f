//! Reading JSON as Go's encoding/json does: member names match in any case. Runtimes rely
//! on it (go-cni sends `Servers`, `HostPort`). Used by all that reads a
//! configuration or a result.

use serde_json::{Map, Value};

/// The member with this name: the exact spelling first, else one that differs in case. `null` counts as absent.
pub(crate) fn member<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object
        .get(name)
        .or_else(|| object.iter().filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v).next_back())
        .filter(|v| !v.is_null())
}

/// A member that must be a string where it is there.
pub(crate) fn string<'a>(object: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, String> {
    match member(object, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(format!("{name} must be a string, but is {}", kind(other))),
    }
}

/// A member that must be a boolean where it is there.
pub(crate) fn boolean(object: &Map<String, Value>, name: &str) -> Result<Option<bool>, String> {
    match member(object, name) {
        None => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(format!("{name} must be true or false, but is {}", kind(other))),
    }
}

/// A member that must be an object where it is there.
pub(crate) fn object<'a>(
    object: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a Map<String, Value>>, String> {
    match member(object, name) {
        None => Ok(None),
        Some(Value::Object(value)) => Ok(Some(value)),
        Some(other) => Err(format!("{name} must be an object, but is {}", kind(other))),
    }
}

/// A member that must be an array of objects where it is there.
pub(crate) fn objects<'a>(
    object: &'a Map<String, Value>,
    name: &str,
) -> Result<Vec<&'a Map<String, Value>>, String> {
    match member(object, name) {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| {
                item.as_object().ok_or_else(|| format!("{name} must hold objects, but holds {}", kind(item)))
            })
            .collect(),
        Some(other) => Err(format!("{name} must be an array, but is {}", kind(other))),
    }
}

/// A member that must be an array of strings where it is there.
pub(crate) fn strings(object: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, String> {
    match member(object, name) {
        None => Ok(None),
        Some(Value::Array(items)) => items
            .iter()
            .map(|i| {
                i.as_str()
                    .map(str::to_owned)
                    .ok_or_else(|| format!("{name} must hold strings, but holds {}", kind(i)))
            })
            .collect::<Result<_, _>>()
            .map(Some),
        Some(other) => Err(format!("{name} must be an array, but is {}", kind(other))),
    }
}

/// What a value is, for an error message.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_match_in_any_case_and_the_exact_one_wins() {
        let value = json!({"SubnetFile": "a", "datadir": "b", "name": "exact", "NAME": "other", "x": null});
        let object = value.as_object().expect("object");
        assert_eq!(string(object, "subnetFile"), Ok(Some("a")));
        assert_eq!(string(object, "dataDir"), Ok(Some("b")));
        assert_eq!(string(object, "name"), Ok(Some("exact")));
        assert_eq!(string(object, "x"), Ok(None));
        assert_eq!(string(object, "absent"), Ok(None));
    }

    #[test]
    fn wrong_kinds_are_named() {
        let value = json!({"a": 1, "b": [1], "c": ["x"], "d": [{}]});
        let object = value.as_object().expect("object");
        assert_eq!(string(object, "a"), Err("a must be a string, but is a number".into()));
        assert!(strings(object, "b").is_err() && strings(object, "a").is_err());
        assert_eq!(strings(object, "c"), Ok(Some(vec!["x".into()])));
        assert!(objects(object, "b").is_err() && objects(object, "a").is_err());
        assert_eq!(objects(object, "d").map(|o| o.len()), Ok(1));
    }
}
