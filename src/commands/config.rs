//! `config …`: what the settings are, who said so, whether they are right; and changing them.

mod edit;
mod migrate;

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{answer, done};
use crate::cli::ConfigCommand;
use crate::config::templates::{TEMPLATES, Template};
use crate::config::{Origin, Settings, Sources, file, nearest, resolve};
use crate::error::{Error, Result};
use crate::home::{Home, Release};
use crate::job::Flags;

pub use edit::record;

/// Carries out a `config` command.
pub fn config(flags: &Flags, json: bool, quiet: bool, command: &ConfigCommand) -> Result<()> {
    let changed = match command {
        ConfigCommand::Show => return answer(&show(&flags.resolve()?, json)),
        ConfigCommand::Validate { file } => {
            return answer(&flags.with_sources(|sources| validate(sources, file.as_deref()))?);
        }
        ConfigCommand::Template { list: true, name: None } => return answer(&templates(json)),
        ConfigCommand::Template { list: true, name: Some(_) } => {
            return Err(Error::usage("config template: give NAME or --list, not both"));
        }
        ConfigCommand::Template { list: false, name } => return answer(&template(flags, name.as_deref())?),
        ConfigCommand::Set { key, value } => flags.with_sources(|sources| edit::set(sources, key, value))?,
        ConfigCommand::Unset { key } => flags.with_sources(|sources| edit::unset(sources, key))?,
        ConfigCommand::Migrate => flags.with_sources(migrate::migrate)?,
    };
    done(json, &changed.answer, json!({}))?;
    for note in changed.notes.iter().filter(|_| !quiet) {
        eprintln!("{note}");
    }
    Ok(())
}

/// What a command that changes a file tells: its answer, and notes beside it.
#[derive(Debug)]
struct Changed {
    answer: String,
    notes: Vec<String>,
}

/// Every setting once, with its value and its origin: aligned text, or an object in JSON.
pub fn show(settings: &Settings, json: bool) -> String {
    let arguments = json!(settings.node_args).to_string();
    if json {
        let told = |value: &str, origin: String| json!({ "value": value, "origin": origin });
        let mut all: Map<String, Value> =
            settings.values.iter().map(|one| (one.key.clone(), told(&one.value, one.origin.to_string()))).collect();
        let origin = settings.node_args_origin.to_string();
        all.insert("node_args".to_owned(), json!({ "value": settings.node_args, "origin": origin }));
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
    text + &format!("{:keys$}  {arguments:values$}  {}\n", "node_args", settings.node_args_origin)
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

/// The kinds of node that there are templates for.
fn templates(json: bool) -> String {
    if json {
        let all: Vec<Value> = TEMPLATES.iter().map(|one| json!({ "name": one.name, "summary": one.summary })).collect();
        return format!("{:#}\n", Value::Array(all));
    }
    TEMPLATES.iter().map(|one| format!("{:10} {}\n", one.name, one.summary)).collect()
}

/// A config.toml for a kind of node in this home; without a name all defaults.
fn template(flags: &Flags, name: Option<&str>) -> Result<String> {
    let Some(name) = name else { return Ok(file::commented(file::INTRO, &[])) };
    let Some(template) = TEMPLATES.iter().find(|one| one.name == name) else {
        let names = || TEMPLATES.iter().map(|one| one.name);
        let hint = nearest(name, names()).map_or_else(
            || format!("there are: {}", names().collect::<Vec<_>>().join(", ")),
            |near| format!("did you mean {near}?"),
        );
        return Err(Error::usage(format!("{name:?} is no template; {hint}")));
    };
    // The home's own file may just be overwritten with what is printed here.
    let settings = Flags { config_file: Some("/dev/null".into()), ..flags.clone() }.resolve()?;
    let config = settings.config()?;
    let home = Home::new(&config.home, &config.name);
    let data = config.data_dir.clone().unwrap_or_else(|| home.data());
    let said = settings.get("DAEMON_NAME").origin != Origin::Default;
    let binary = if said { Some(config.name) } else { only_binary(&home) };
    Ok(filled(template, &data, binary.as_deref()))
}

/// The file of a template for a node with its data there and a binary of this name.
fn filled(template: &Template, data: &Path, binary: Option<&str>) -> String {
    let datadir = ["--datadir".to_owned(), data.display().to_string()];
    let arguments: Vec<String> =
        datadir.into_iter().chain(template.node_args.iter().map(|word| (*word).to_owned())).collect();
    let mut values = vec![("node_args", file::list(&arguments))];
    values.extend(binary.map(|name| ("daemon_name", file::literal(name))));
    values.extend(template.settings.iter().map(|(key, value)| (*key, file::literal(value))));
    let notes: String = template.notes.iter().map(|note| format!("# {note}\n")).collect();
    file::commented(&format!("# For {}.\n{notes}#\n{}", template.summary, file::INTRO), &values)
}

/// The name of the genesis release's binary, where there is only one file that can be it.
fn only_binary(home: &Home) -> Option<String> {
    let mut names = std::fs::read_dir(home.release(&Release::Genesis).join("bin")).ok()?.flatten();
    let name = names.next()?.file_name().into_string().ok()?;
    names.next().is_none().then_some(name)
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
        assert_eq!(json["node_args"], json!({ "value": ["--datadir", "/d d"], "origin": "default" }));
    }

    #[test]
    fn every_template_is_a_valid_file_that_says_what_its_table_says() {
        let file = std::env::temp_dir().join(format!("wemixvisor-template-{}.toml", std::process::id()));
        let env = [("DAEMON_HOME".to_owned(), "/nowhere".to_owned())];
        for template in TEMPLATES {
            std::fs::write(&file, filled(template, Path::new("/d d"), Some("gwemix"))).unwrap();
            let settings = resolve(&Sources { config_file: Some(file.clone()), ..sources(&[], &env) }).unwrap();
            settings.config().unwrap();
            assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
            let from_file = settings.values.iter().filter(|one| one.origin == Origin::File(file.clone())).count();
            assert_eq!(from_file, template.settings.len() + 1, "{}", template.name);
            for (key, value) in template.settings {
                assert_eq!(settings.get(key).value, *value, "{}: {key}", template.name);
            }
            assert_eq!(settings.get("DAEMON_NAME").value, "gwemix");
            assert_eq!(settings.node_args[..2], ["--datadir", "/d d"]);
            assert_eq!(settings.node_args[2..], *template.node_args, "{}", template.name);
        }
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn validate_tells_what_it_read_or_every_error() {
        let env = [("DAEMON_HOME".to_owned(), "/nowhere".to_owned())];
        assert_eq!(validate(&sources(&[], &env), None).unwrap(), "valid; no configuration file was found\n");
        let file = std::env::temp_dir().join(format!("wemixvisor-validate-{}.toml", std::process::id()));
        std::fs::write(&file, "cosmovisor_disable_recase = true").unwrap();
        let told = validate(&sources(&[], &env), Some(&file)).unwrap();
        assert!(
            told.starts_with("warning: COSMOVISOR_DISABLE_RECASE")
                && told.ends_with(&format!("valid; read {}\n", file.display())),
            "{told}"
        );
        std::fs::write(&file, "daemon_max_restarts = 'x'\ndaemon_nam = 'y'").unwrap();
        let wrong = validate(&sources(&[], &env), Some(&file)).unwrap_err();
        assert_eq!((wrong.message.lines().count(), wrong.code), (2, crate::error::Code::Usage));
        std::fs::remove_file(&file).unwrap();
    }
}
