//! `config show` and `config validate`: what the settings are, who said so, and whether they are right.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::config::{Settings, Sources, resolve};
use crate::error::Result;

/// Every setting once, with its value and its origin: aligned text, or an object in JSON.
pub fn show(settings: &Settings, json: bool) -> String {
    let arguments = json!(settings.node_args).to_string();
    if json {
        let told = |value: &str, origin: String| json!({ "value": value, "origin": origin });
        let mut all: Map<String, Value> =
            settings.values.iter().map(|one| (one.key.clone(), told(&one.value, one.origin.to_string()))).collect();
        all.insert("node_args".to_owned(), json!(settings.node_args));
        return format!("{:#}\n", Value::Object(all));
    }
    let keys = settings.values.iter().map(|one| one.key.len()).max().unwrap_or(0);
    // One long path must not push all origins off the screen.
    let values =
        settings.values.iter().map(|one| one.value.chars().count()).filter(|length| *length <= 40).max().unwrap_or(0);
    let mut text = String::new();
    for one in &settings.values {
        let value = if one.value.is_empty() { "-" } else { &one.value };
        text += &format!("{:keys$}  {value:values$}  {}\n", one.key, one.origin);
    }
    text + &format!("{:keys$}  {arguments}\n", "node_args")
}

/// Checks FILE in the place of the home's config.toml, or without one the configuration as it is, with all other sources.
/// The error holds every problem, one a line. Nothing is changed and no supervisor is asked.
pub fn validate(sources: &Sources, file: Option<&Path>) -> Result<String> {
    let config_file = file.map(Path::to_owned).or_else(|| sources.config_file.clone());
    let settings = resolve(&Sources { flags: sources.flags, config_file, env: sources.env, etc: sources.etc })?;
    settings.config()?;
    let mut text: String = settings.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    let files: Vec<String> = settings.files.iter().map(|file| file.display().to_string()).collect();
    text += &match files.as_slice() {
        [] => "valid; no configuration file was found\n".to_owned(),
        files => format!("valid; read {}\n", files.join(", ")),
    };
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]

    use super::*;

    fn sources<'a>(flags: &'a [(String, String)], env: &'a [(String, String)]) -> Sources<'a> {
        Sources { flags, config_file: None, env, etc: Path::new("/nowhere") }
    }

    #[test]
    fn show_tells_every_setting_once_with_its_origin() {
        let env = [("DAEMON_HOME".to_owned(), "/h".to_owned())];
        let mut settings = resolve(&sources(&[], &env)).unwrap();
        settings.node_args = vec!["--datadir".to_owned(), "/d d".to_owned()];
        let text = show(&settings, false);
        assert_eq!(text.lines().count(), crate::config::SETTINGS.len() + 1);
        assert!(text.lines().next().unwrap().ends_with("  variable DAEMON_HOME"), "{text}");
        assert!(text.contains("\nnode_args") && text.contains(r#"["--datadir","/d d"]"#));
        let json: Value = serde_json::from_str(&show(&settings, true)).unwrap();
        assert_eq!(json["daemon_name"], json!({ "value": "wemixd", "origin": "default" }));
        assert_eq!(json["node_args"], json!(["--datadir", "/d d"]));
    }

    #[test]
    fn validate_tells_what_it_read_or_every_error() {
        let env = [("DAEMON_HOME".to_owned(), "/nowhere".to_owned())];
        assert_eq!(validate(&sources(&[], &env), None).unwrap(), "valid; no configuration file was found\n");
        let file = std::env::temp_dir().join(format!("wemixvisor-validate-{}.toml", std::process::id()));
        std::fs::write(&file, "daemon_metrics_interval = '1m'").unwrap();
        let told = validate(&sources(&[], &env), Some(&file)).unwrap();
        assert!(
            told.starts_with("warning: DAEMON_METRICS_INTERVAL")
                && told.ends_with(&format!("valid; read {}\n", file.display())),
            "{told}"
        );
        std::fs::write(&file, "daemon_max_restarts = 'x'\ndaemon_nam = 'y'").unwrap();
        let wrong = validate(&sources(&[], &env), Some(&file)).unwrap_err();
        assert_eq!((wrong.message.lines().count(), wrong.code), (2, crate::error::Code::Usage));
        std::fs::remove_file(&file).unwrap();
    }
}
