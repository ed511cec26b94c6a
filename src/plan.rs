//! Plan files: one upgrade each, or an array of them. Pure parsing: a plan counts only when the whole file parses.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::home::Name;

/// The most that is read of a plan file, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// How deep `info` may be nested. What reads JSON stops at 128, and a plan lies deeper in a journal and in messages than in its
/// file.
const DEPTH_MAX: usize = 64;

/// One upgrade: from which block on which release must run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The name of the upgrade.
    pub name: Name,
    /// The first block that the new release must execute; from 1 to 2^63 − 1.
    pub height: u64,
    /// Absent, null, a string or an object, as the file has it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub info: Value,
    /// The batch plan that it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<Name>,
    /// How often the operator said `upgrade retry`: a change of content, so that the plan counts as a new one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retry: u64,
}

/// When validators take their turns in an upgrade.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rolling {
    /// The block at which the first one's turn is.
    pub start: Option<u64>,
    /// The blocks between two turns.
    pub spacing: Option<u64>,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Plan {
    /// What tells this plan from another and from an earlier content of itself: SHA-256 over its fields, in hex.
    pub fn digest(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The description that a person wrote into `info`, at most 200 characters of it.
    pub fn description(&self) -> Option<String> {
        let text = match self.info_object() {
            Some(object) => object.get("description")?.as_str()?.to_owned(),
            None => self.info.as_str()?.to_owned(),
        };
        readable(&text)
    }

    /// `info` as a hook gets it: the string itself, an object as JSON, nothing as nothing.
    pub fn info_text(&self) -> String {
        match &self.info {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            info @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => info.to_string(),
        }
    }

    /// When validators take their turns, as far as `info.rolling` says it.
    pub fn rolling(&self) -> Rolling {
        let object = self.info_object().unwrap_or_default();
        let number = |key: &str| object.get("rolling")?.get(key)?.as_u64();
        Rolling { start: number("start"), spacing: number("spacing").filter(|spacing| *spacing > 0) }
    }

    /// `info` as an object: itself, or the JSON in its string.
    fn info_object(&self) -> Option<serde_json::Map<String, Value>> {
        match &self.info {
            Value::Object(object) => Some(object.clone()),
            Value::String(text) => serde_json::from_slice(text.as_bytes()).ok(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
        }
    }
}

/// Reads a height as people and files write it; the error says what is allowed.
pub fn height(value: &Value) -> Result<u64, String> {
    let allowed = "height is a whole number from 1 to 9223372036854775807";
    match value.as_u64() {
        Some(n) if n >= 1 && i64::try_from(n).is_ok() => Ok(n),
        Some(_) | None => Err(format!("{allowed}, not {}", short(value))),
    }
}

/// What people wrote about something, as a terminal may show it: at most 200 characters of it; none when it says nothing.
pub fn readable(text: &str) -> Option<String> {
    let short: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    Some(short).filter(|s| !s.trim().is_empty())
}

/// The text of a file that people write: not too large, not empty, without the mark that some editors put in front.
pub fn text(bytes: &[u8]) -> Result<&str, String> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err("larger than 1 MiB".to_owned());
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8 text".to_owned())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() { Err("empty".to_owned()) } else { Ok(text) }
}

/// The JSON in such a file.
pub fn json(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(text(bytes)?.as_bytes()).map_err(|e| format!("not JSON: {e}"))
}

/// The plan, or the plans, of one file. Nothing is taken from a file that is broken anywhere.
pub fn parse(bytes: &[u8]) -> Result<Vec<Plan>, String> {
    let value = json(bytes)?;
    match value {
        Value::Array(items) => {
            items.iter().enumerate().map(|(i, item)| one(item).map_err(|e| format!("plan {}: {e}", i + 1))).collect()
        }
        Value::Object(_) => one(&value).map(|plan| vec![plan]),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err(format!("a plan is a JSON object, not {}", short(&value)))
        }
    }
}

/// One plan.
pub fn one(value: &Value) -> Result<Plan, String> {
    let object = value.as_object().ok_or_else(|| format!("a plan is a JSON object, not {}", short(value)))?;
    let name = match object.get("name") {
        Some(Value::String(name)) if !name.is_empty() => Name::parse(name)?,
        Some(Value::String(_)) | None => return Err("name is missing or empty".to_owned()),
        Some(other) => return Err(format!("name is a string, not {}", short(other))),
    };
    let height = height(object.get("height").ok_or("height is missing")?)?;
    let info = match object.get("info") {
        None => Value::Null,
        Some(info) if !shallow(info, DEPTH_MAX) => return Err(format!("info is nested more than {DEPTH_MAX} deep")),
        Some(info @ (Value::Null | Value::String(_) | Value::Object(_))) => info.clone(),
        Some(other) => return Err(format!("info is an object or a string, not {}", short(other))),
    };
    let batch = match object.get("batch") {
        None | Some(Value::Null) => None,
        Some(Value::String(batch)) => Some(Name::parse(batch)?),
        Some(other) => return Err(format!("batch is a string, not {}", short(other))),
    };
    let retry = object.get("retry").and_then(Value::as_u64).unwrap_or(0);
    Ok(Plan { name, height, info, batch, retry })
}

/// Whether a value is nested no deeper than so.
fn shallow(value: &Value, depth: usize) -> bool {
    let below = depth.saturating_sub(1);
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        Value::Array(items) => depth > 0 && items.iter().all(|item| shallow(item, below)),
        Value::Object(object) => depth > 0 && object.values().all(|item| shallow(item, below)),
    }
}

/// A value as an error shows it.
pub fn short(value: &Value) -> String {
    let text = value.to_string().replace(char::is_control, "");
    if text.len() > 40 { format!("{}…", text.chars().take(40).collect::<String>()) } else { text }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_good_plan_is_read_with_every_form_of_info() {
        for (text, description) in [
            (r#"{"name":"v2","height":7}"#, None),
            (r#"{"name":"v2","height":7,"info":null,"other":[1]}"#, None),
            ("\u{feff}{\"name\":\"v2\",\r\n\"height\":7,\"info\":\"some words\"}\r\n", Some("some words")),
            (r#"{"name":"v2","height":7,"info":"{\"description\":\"d\",\"binaries\":{}}"}"#, Some("d")),
            (r#"{"name":"v2","height":7,"info":{"description":"d"}}"#, Some("d")),
        ] {
            let plans = parse(text.as_bytes()).unwrap();
            assert_eq!((plans.len(), plans[0].name.as_str(), plans[0].height), (1, "v2", 7), "{text}");
            assert_eq!(plans[0].description().as_deref(), description, "{text}");
        }
    }

    #[test]
    fn a_broken_file_gives_one_reason_and_no_plan() {
        for (text, reason) in [
            ("", "empty"),
            ("  \n", "empty"),
            (r#"{"name":"v2","hei"#, "not JSON"),
            ("{}", "name is missing or empty"),
            (r#"{"name":"","height":7}"#, "name is missing or empty"),
            (r#"{"name":3,"height":7}"#, "name is a string"),
            (r#"{"height":7}"#, "name is missing or empty"),
            (r#"{"name":"v2"}"#, "height is missing"),
            (r#"{"name":"v2","height":0}"#, "from 1 to"),
            (r#"{"name":"v2","height":-1}"#, "from 1 to"),
            (r#"{"name":"v2","height":1.5}"#, "from 1 to"),
            (r#"{"name":"v2","height":"12"}"#, "from 1 to"),
            (r#"{"name":"v2","height":9223372036854775808}"#, "from 1 to"),
            (r#"{"name":"v2","height":"\u009b2J"}"#, "not \"2J\""),
            (&format!(r#"{{"name":"v2","height":7,"info":{{"a":{}{}}}}}"#, "[".repeat(64), "]".repeat(64)), "64 deep"),
            (r#"{"name":"v2","height":7,"info":12}"#, "info is an object or a string"),
            (r#"{"name":"../x","height":7}"#, "no name of an upgrade"),
            (r#"[{"name":"v2","height":7},{"name":"v3"}]"#, "plan 2: height is missing"),
            ("[1]", "plan 1: a plan is a JSON object"),
            ("7", "a plan is a JSON object"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(parse(&[0xff, 0xfe]).unwrap_err().contains("UTF-8"));
        assert!(parse(&vec![b' '; 1 + (1 << 20)]).unwrap_err().contains("1 MiB"));
    }

    #[test]
    fn a_plan_that_was_written_down_is_the_same_plan() {
        for number in ["0.1", "-0.0", "1.7976931347246317e308", "5e-324", "18446744073709551615"] {
            let plans = parse(format!(r#"{{"name":"v2","height":7,"info":{{"a":{number}}}}}"#).as_bytes()).unwrap();
            assert_eq!(parse(&serde_json::to_vec(&plans).unwrap()), Ok(plans), "{number}");
        }
    }

    #[test]
    fn a_retry_changes_the_digest_and_an_unknown_field_does_not() {
        let digest = |text: &str| parse(text.as_bytes()).unwrap()[0].digest();
        assert_eq!(digest(r#"{"name":"v2","height":7}"#), digest(r#"{"height":7,"name":"v2","time":"x","info":null}"#));
        assert_ne!(digest(r#"{"name":"v2","height":7}"#), digest(r#"{"name":"v2","height":7,"retry":1}"#));
        assert_ne!(digest(r#"{"name":"v2","height":7}"#), digest(r#"{"name":"v2","height":8}"#));
    }
}
