//! Batch plans: the upgrades of a chain under one name, to be planned all or none. Pure parsing: of the file that holds one,
//! and of what an operator types or lists to make one. Nothing is asked of the disk.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::home::Name;
use crate::plan::{self, Plan};
use crate::source::{Checksum, Link};

/// The version of the form that is written and read.
const VERSION: &str = "1.0";

/// The most upgrades of one batch plan; more than any chain has.
const UPGRADES_MAX: usize = 1000;

/// A batch plan as its file has it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Batch {
    /// Version of this form.
    version: &'static str,
    /// Its name.
    pub name: Name,
    /// What a person wrote about it.
    pub description: String,
    /// When it was made, RFC 3339; empty where that is not known.
    pub created_at: String,
    /// When its upgrades were planned, all of them, RFC 3339; none: they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub applied_at: Option<String>,
    /// Its upgrades, by height: name, height and info of each.
    pub upgrades: Vec<Plan>,
}

/// An upgrade as it is typed or listed. Where its release is was not looked at yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// How errors name it.
    pub place: String,
    /// Its name.
    pub name: Name,
    /// The first block that the new release must execute.
    pub height: u64,
    /// A file or a URL; none: somebody else brings the release.
    pub source: Option<String>,
}

impl Batch {
    /// A new one.
    pub fn new(name: Name, description: String, created_at: String, upgrades: Vec<Plan>) -> Batch {
        Batch { version: VERSION, name, description, created_at, applied_at: None, upgrades }
    }

    /// The same with the mark that all its upgrades are planned.
    pub fn applied(self, applied_at: String) -> Batch {
        Batch { applied_at: Some(applied_at), ..self }
    }

    /// What its file holds; people read and edit it.
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The name of its file: the plan's, and when it was made, UTC.
    pub fn file_name(&self) -> String {
        let digits: String = self.created_at.chars().filter(char::is_ascii_digit).take(14).collect();
        let (day, time) = digits.split_at_checked(8).unwrap_or((&digits, ""));
        format!("{}-{day}-{time}.json", self.name)
    }
}

/// The plan's name in the name of its file, `NAME-YYYYMMDD-HHMMSS.json`.
pub fn name_in(file: &str) -> Option<Name> {
    let stem = file.strip_suffix(".json")?;
    let (name, stamp) = stem.split_at_checked(stem.len().checked_sub("-00000000-000000".len())?)?;
    let fits = |(a, b): (u8, u8)| if b == b'0' { a.is_ascii_digit() } else { a == b };
    stamp.bytes().zip(b"-00000000-000000".iter().copied()).all(fits).then(|| Name::parse(name).ok())?
}

/// The batch plan of a file. Nothing is taken from one that is broken anywhere; every error is told.
pub fn parse(bytes: &[u8]) -> Result<Batch, Vec<String>> {
    of_value(&plan::json(bytes).map_err(|e| vec![e])?)
}

/// The upgrades, and the description, of a file that is an array of plans or a batch plan.
pub fn listed(bytes: &[u8]) -> Result<(Vec<Plan>, String), Vec<String>> {
    let value = plan::json(bytes).map_err(|e| vec![e])?;
    match &value {
        Value::Array(items) => upgrades(items).map(|upgrades| (upgrades, String::new())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            of_value(&value).map(|batch| (batch.upgrades, batch.description))
        }
    }
}

fn of_value(value: &Value) -> Result<Batch, Vec<String>> {
    let Value::Object(object) = value else {
        return Err(vec![format!("a batch plan is a JSON object, not {}", plan::short(value))]);
    };
    // Of a form that is not known nothing can be judged.
    match object.get("version") {
        Some(Value::String(version)) if version == VERSION => {}
        Some(other) => return Err(vec![format!("version {} is not known, only {VERSION:?} is", plan::short(other))]),
        None => return Err(vec![format!("version is missing; {VERSION:?} is known")]),
    }
    let mut errors = Vec::new();
    let name = match object.get("name") {
        Some(Value::String(name)) => Name::parse(name),
        Some(other) => Err(format!("name is a string, not {}", plan::short(other))),
        None => Err("name is missing".to_owned()),
    };
    let name = noted(name, &mut errors);
    let description = noted(string(object, "description"), &mut errors);
    let created_at = noted(string(object, "created_at").and_then(time), &mut errors);
    let applied_at = noted(string(object, "applied_at").and_then(time), &mut errors);
    let upgrades = match object.get("upgrades") {
        Some(Value::Array(items)) => upgrades(items),
        Some(other) => Err(vec![format!("upgrades is an array of plans, not {}", plan::short(other))]),
        None => Err(vec!["upgrades is missing".to_owned()]),
    };
    let upgrades = upgrades.map_err(|more| errors.extend(more)).ok();
    let (Some(name), Some(description), Some(created_at), Some(applied_at), Some(upgrades)) =
        (name, description, created_at, applied_at, upgrades)
    else {
        return Err(errors);
    };
    let applied_at = Some(applied_at).filter(|time| !time.is_empty());
    Ok(Batch { applied_at, ..Batch::new(name, description, created_at, upgrades) })
}

fn noted<T>(found: Result<T, String>, errors: &mut Vec<String>) -> Option<T> {
    found.map_err(|e| errors.push(e)).ok()
}

/// A text that may be left out.
fn string(object: &Map<String, Value>, key: &str) -> Result<String, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("{key} is a string, not {}", plan::short(other))),
    }
}

/// A time, which is shown as it is.
fn time(text: String) -> Result<String, String> {
    let in_time = |c: char| c.is_ascii_digit() || "-:.+TZ".contains(c);
    if text.len() <= 40 && text.chars().all(in_time) {
        return Ok(text);
    }
    Err(format!("{} is no time such as 2026-01-01T00:00:00Z", plan::short(&Value::from(text))))
}

/// Reads and checks the upgrades of one batch plan.
fn upgrades(items: &[Value]) -> Result<Vec<Plan>, Vec<String>> {
    let mut errors = Vec::new();
    let mut read = Vec::new();
    for (i, item) in items.iter().enumerate() {
        match plan::one(item) {
            Ok(found) => read.push(Plan { batch: None, retry: 0, ..found }),
            Err(e) => {
                let name = item.get("name").and_then(Value::as_str).and_then(|name| Name::parse(name).ok());
                errors.push(format!("{}: {e}", place(i, name.as_ref())));
            }
        }
    }
    // What is missing would be taken for a fault of its neighbours.
    if errors.is_empty() {
        errors = contradictions(&read);
    }
    if errors.is_empty() { Ok(read) } else { Err(errors) }
}

/// How an upgrade is named in errors: `upgrade 2 (v3)`.
pub fn place(index: usize, name: Option<&Name>) -> String {
    let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
    format!("upgrade {}{name}", index + 1)
}

/// What is wrong with these upgrades as the upgrades of one batch plan.
pub fn contradictions(upgrades: &[Plan]) -> Vec<String> {
    if upgrades.is_empty() {
        return vec!["it has no upgrades".to_owned()];
    }
    if upgrades.len() > UPGRADES_MAX {
        return vec![format!("it has {} upgrades, more than {UPGRADES_MAX}", upgrades.len())];
    }
    let mut errors = Vec::new();
    let at = |i: usize| place(i, upgrades.get(i).map(|plan| &plan.name));
    for (i, pair) in upgrades.windows(2).enumerate() {
        if let [before, plan] = pair
            && plan.height <= before.height
        {
            let (height, other) = (plan.height, before.height);
            errors.push(format!("{}: its height {height} is not above {other}, that of {}", at(i + 1), at(i)));
        }
    }
    // A release is found by the lower-case form of its name, too.
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    for (i, plan) in upgrades.iter().enumerate() {
        match names.get(&plan.name.as_str().to_ascii_lowercase()) {
            Some(first) => errors.push(format!("{}: {} has the same name", at(i), at(*first))),
            None => {
                names.insert(plan.name.as_str().to_ascii_lowercase(), i);
            }
        }
    }
    errors
}

/// Reads `NAME:HEIGHT`, `NAME:HEIGHT:FILE` and `NAME:HEIGHT:URL#CHECKSUM`.
pub fn words(words: &[String]) -> Result<Vec<Row>, Vec<String>> {
    let one = |(i, word): (usize, &String)| {
        let mut parts = word.splitn(3, ':').map(str::trim);
        let (name, height) = (parts.next().unwrap_or_default(), parts.next());
        let source = parts.next().filter(|source| !source.is_empty()).map(str::to_owned);
        let named = Name::parse(name);
        let place = place(i, named.as_ref().ok());
        let read = named.and_then(|name| {
            let height = height.ok_or_else(|| format!("{word:?} says no height: give NAME:HEIGHT"))?;
            Ok(Row { place: place.clone(), name, height: height_of(height)?, source })
        });
        read.map_err(|e| format!("{place}: {e}"))
    };
    all(words.iter().enumerate().map(one))
}

/// Reads a list: one upgrade a line, `name,file-or-url,height`, a field in double quotes where it has a comma in it.
pub fn csv(bytes: &[u8]) -> Result<Vec<Row>, Vec<String>> {
    let text = plan::text(bytes).map_err(|e| vec![e])?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    all(lines.map(|(i, line)| {
        let place = format!("line {}", i + 1);
        row(&place, line).map_err(|e| format!("{place}: {e}"))
    }))
}

fn row(place: &str, line: &str) -> Result<Row, String> {
    let fields = fields(line)?;
    let [name, source, height] = fields.as_slice() else {
        return Err(format!("it has {} fields; a line is name,file-or-url,height", fields.len()));
    };
    let name = Name::parse(name)?;
    let source = Some(source.clone()).filter(|source| !source.is_empty());
    Ok(Row { place: format!("{place} ({name})"), height: height_of(height)?, name, source })
}

/// The fields of a line, without the spaces around them; two double quotes in a quoted one are one.
fn fields(line: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let (field, behind) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let (field, behind) = rest.split_at(end);
                (field.trim().to_owned(), behind)
            }
        };
        fields.push(field);
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None => return Ok(fields),
        }
    }
}

/// What stands in quotes, and what follows it: nothing, or a comma and the next field.
fn quoted_field(mut rest: &str) -> Result<(String, &str), String> {
    let mut field = String::new();
    loop {
        let (part, behind) = rest.split_once('"').ok_or("a double quote is never closed")?;
        field += part;
        if let Some(behind) = behind.strip_prefix('"') {
            field.push('"');
            rest = behind;
            continue;
        }
        let behind = behind.trim_start();
        if behind.is_empty() || behind.starts_with(',') {
            return Ok((field.trim().to_owned(), behind));
        }
        return Err("behind a field in double quotes stands neither a comma nor the end".to_owned());
    }
}

/// A height as people write it.
fn height_of(text: &str) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number: Option<u64> = text.parse().ok().filter(|_| digits);
    plan::height(&number.map_or_else(|| Value::from(text), Value::from))
}

/// All that was read, or all errors.
fn all(rows: impl Iterator<Item = Result<Row, String>>) -> Result<Vec<Row>, Vec<String>> {
    let (mut read, mut errors) = (Vec::new(), Vec::new());
    for row in rows {
        match row {
            Ok(row) => read.push(row),
            Err(e) => errors.push(e),
        }
    }
    if errors.is_empty() { Ok(read) } else { Err(errors) }
}

/// Whether a source is a URL and not the name of a file.
pub fn is_url(source: &str) -> bool {
    let begins = |scheme: &str| source.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    source.contains("://") || begins("file:")
}

/// The `info` of a plan whose release is at this URL; `#` may part it from its checksum.
pub fn info_of_url(url: &str) -> Result<Value, String> {
    let Some((url, sum)) = url.split_once('#') else {
        return Link::parse(url, None).map(|_| json!({"binaries": {"any": url}}));
    };
    Link::parse(url, Some(sum))?;
    Ok(json!({"binaries": {"any": url}, "checksum": Checksum::parse(sum)?}))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn errors(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().join("\n")
    }

    /// A batch plan with these upgrades.
    fn with(upgrades: &str) -> String {
        format!(r#"{{"version":"1.0","name":"b","upgrades":{upgrades}}}"#)
    }

    #[test]
    fn the_form_on_disk_is_frozen() {
        let frozen = include_str!("../fixtures/batch.json");
        let batch = parse(frozen.as_bytes()).unwrap();
        assert_eq!(batch.text(), frozen);
        assert_eq!((batch.name.as_str(), batch.upgrades.len()), ("spring", 3));
        assert_eq!(batch.file_name(), "spring-20260101-000000.json");
        let waiting = Batch { applied_at: None, ..batch };
        assert!(!waiting.text().contains("applied_at"));
        assert_eq!(parse(waiting.text().as_bytes()), Ok(waiting));
    }

    #[test]
    fn what_people_add_or_leave_out_is_no_fault() {
        let text = "\u{feff}{\"version\":\"1.0\",\r\n\"name\":\"b\",\"applied_at\":null,\"other\":[1],\r\n\
                    \"upgrades\":[{\"name\":\"v2\",\"height\":7,\"batch\":\"c\",\"retry\":3,\"x\":1}]}\r\n";
        let batch = parse(text.as_bytes()).unwrap();
        let upgrade = &batch.upgrades[0];
        assert_eq!((upgrade.name.as_str(), upgrade.height, &upgrade.batch, upgrade.retry), ("v2", 7, &None, 0));
        assert_eq!((batch.description.as_str(), batch.created_at.as_str(), batch.applied_at), ("", "", None));
    }

    #[test]
    fn a_broken_file_tells_every_error_and_where_it_is() {
        for (text, reason) in [
            ("", "empty"),
            ("{", "not JSON"),
            ("7", "a batch plan is a JSON object, not 7"),
            ("{}", "version is missing"),
            (r#"{"version":"2.0","name":7}"#, r#"version "2.0" is not known, only "1.0" is"#),
            (r#"{"version":1.0}"#, "version 1.0 is not known"),
            (r#"{"version":"1.0","upgrades":[]}"#, "name is missing\nit has no upgrades"),
            (r#"{"version":"1.0","name":"../x"}"#, "no name of an upgrade"),
            (
                r#"{"version":"1.0","name":"b","created_at":"\u001b[2J","description":7,"upgrades":{}}"#,
                "description is a string, not 7",
            ),
            (r#"{"version":"1.0","name":"b","created_at":"\u001b[2J","upgrades":{}}"#, "is no time such as"),
            (r#"{"version":"1.0","name":"b","upgrades":{}}"#, "upgrades is an array of plans"),
            (&with("[7]"), "upgrade 1: a plan is a JSON object, not 7"),
            (&with(r#"[{"name":"v2","height":0},{"name":"v3"}]"#), "upgrade 1 (v2): height is a whole number from 1"),
            (&with(r#"[{"name":"v2","height":0},{"name":"v3"}]"#), "\nupgrade 2 (v3): height is missing"),
            (&with(r#"[{"name":"\u001b","height":1}]"#), r#"upgrade 1: "\u{1b}" is no name"#),
            (
                &with(r#"[{"name":"v2","height":9},{"name":"v3","height":9},{"name":"V2","height":8}]"#),
                "upgrade 2 (v3): its height 9 is not above 9, that of upgrade 1 (v2)\n\
                 upgrade 3 (V2): its height 8 is not above 9, that of upgrade 2 (v3)\n\
                 upgrade 3 (V2): upgrade 1 (v2) has the same name",
            ),
        ] {
            let told = errors(text);
            assert!(told.contains(reason), "{text}: {told}");
        }
        let many = |n: u64| {
            let all: Vec<String> = (1..=n).map(|h| format!(r#"{{"name":"v{h}","height":{h}}}"#)).collect();
            with(&format!("[{}]", all.join(",")))
        };
        assert_eq!(parse(many(1000).as_bytes()).unwrap().upgrades.len(), 1000);
        assert_eq!(errors(&many(1001)), "it has 1001 upgrades, more than 1000");
        assert!(errors(&" ".repeat(1 + (1 << 20))).contains("1 MiB"));
    }

    #[test]
    fn a_file_is_named_after_its_plan_and_a_time() {
        let name = |file| name_in(file).map(|name| name.to_string());
        assert_eq!(name("spring-20260101-000000.json").as_deref(), Some("spring"));
        assert_eq!(name("a-b-20260101-000000-20260101-000000.json").as_deref(), Some("a-b-20260101-000000"));
        for other in [
            "spring.json",
            "spring-20260101-000000",
            "-20260101-000000.json",
            ".x-20260101-000000.json",
            "spring-2026010a-000000.json",
            "é-20260101-000000.json",
            "",
        ] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn a_list_of_plans_is_read_from_an_array_or_a_batch_plan() {
        let array = r#"[{"name":"v2","height":7,"batch":"x"},{"name":"v3","height":8,"info":"words"}]"#;
        let (upgrades, description) = listed(array.as_bytes()).unwrap();
        assert_eq!((upgrades.len(), &upgrades[0].batch, description.as_str()), (2, &None, ""));
        let object = r#"{"version":"1.0","name":"b","description":"d","upgrades":[{"name":"v2","height":7}]}"#;
        assert_eq!(listed(object.as_bytes()).unwrap().1, "d");
        for bad in ["[]", "[1]", "7", r#"{"name":"v2","height":7}"#] {
            assert!(listed(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_upgrade_is_typed_as_name_height_and_source() {
        let row = |i: usize, name: &str, height, source: Option<&str>| Row {
            place: place(i, Some(&Name::parse(name).unwrap())),
            name: Name::parse(name).unwrap(),
            height,
            source: source.map(str::to_owned),
        };
        let typed = |all: &[&str]| words(&all.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let url = format!("https://h:80/x#sha256:{HEX}");
        assert_eq!(
            typed(&["v2:7", "v3:8:./a:b", &format!("v4:9:{url}"), "v5:10:"]),
            Ok(vec![
                row(0, "v2", 7, None),
                row(1, "v3", 8, Some("./a:b")),
                row(2, "v4", 9, Some(&url)),
                row(3, "v5", 10, None)
            ])
        );
        let told = typed(&["v2", "v3:x", ":7", "v4:0", "v5:+1", "v6:9"]).unwrap_err();
        assert_eq!(told.len(), 5, "{told:?}");
        assert!(told[0].starts_with("upgrade 1 (v2): \"v2\" says no height"), "{told:?}");
        assert!(told[1].starts_with("upgrade 2 (v3): height is a whole number") && told[1].ends_with("not \"x\""));
        assert!(told[2].starts_with("upgrade 3: \"\" is no name"), "{told:?}");
        assert!(told[4].contains("upgrade 5 (v5): height"), "{told:?}");
    }

    #[test]
    fn a_list_in_lines_has_three_fields_in_each() {
        let text = "\u{feff}v2, ./geth ,7\r\n\r\n  \"v3\" ,\"a,\"\"b\"\"\", 8 \nv4,,9\n";
        let rows = csv(text.as_bytes()).unwrap();
        let shape: Vec<(&str, Option<&str>, u64)> =
            rows.iter().map(|row| (row.name.as_str(), row.source.as_deref(), row.height)).collect();
        assert_eq!(shape, [("v2", Some("./geth"), 7), ("v3", Some("a,\"b\""), 8), ("v4", None, 9)]);
        assert_eq!(rows[1].place, "line 3 (v3)", "blank lines count");
        for (text, reason) in [
            ("v2,7", "line 1: it has 2 fields; a line is name,file-or-url,height"),
            ("v2,a,b,7", "line 1: it has 4 fields"),
            ("\n\nv2,,x", "line 3: height is a whole number"),
            ("name,path,height", "line 1: height is a whole number"),
            ("v2,\"a,7", "line 1: a double quote is never closed"),
            ("v2,\"a\"b,7", "line 1: behind a field in double quotes"),
            ("../x,,7", "line 1: \"../x\" is no name"),
            ("v2,7\nv3,8", "\nline 2: it has 2 fields"),
            ("", "empty"),
        ] {
            let told = csv(text.as_bytes()).unwrap_err().join("\n");
            assert!(told.contains(reason), "{text}: {told}");
        }
    }

    #[test]
    fn a_url_carries_its_checksum_behind_a_hash_or_in_itself() {
        assert!(is_url("HTTPS://h/x") && is_url("file:/x") && is_url("ftp://h") && !is_url("./a:b") && !is_url("/x"));
        let sum = format!("sha256:{HEX}");
        let beside = json!({"binaries": {"any": "https://h/x"}, "checksum": sum});
        assert_eq!(info_of_url(&format!("https://h/x#{HEX}")), Ok(beside.clone()));
        assert_eq!(info_of_url(&format!("https://h/x#SHA256:{}", HEX.to_uppercase())), Ok(beside));
        let inside = format!("https://h/x?checksum={sum}");
        assert_eq!(info_of_url(&inside), Ok(json!({"binaries": {"any": inside}})));
        for bad in ["https://h/x#", "https://h/x#top", "ftp://h/x", &format!("{inside}#{}", "0".repeat(64))] {
            assert!(info_of_url(bad).is_err(), "{bad}");
        }
    }
}
