//! The one-shot verbs, one small file each. They may block; answers go to stdout, everything else to stderr.
#![allow(clippy::disallowed_methods, reason = "a command is a process of its own and may block")]

pub mod backup;
pub mod client;
pub mod completions;
pub mod config;
pub mod init;
pub mod logs;
pub mod meter;
pub mod metrics;
pub mod plan;
pub mod run;
pub mod status;
pub mod systemd;
pub mod upgrade;
pub mod version;

use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::home::Home;
use crate::job::Flags;

/// What every command is given.
pub struct Context {
    /// What was typed of settings.
    pub flags: Flags,
    /// The settings.
    pub config: Config,
    /// The home that they name.
    pub home: Home,
    /// Answer in JSON.
    pub json: bool,
    /// No progress and no notes.
    pub quiet: bool,
}

impl Context {
    /// Resolves the settings; their warnings are told once, on stderr.
    pub fn new(flags: Flags, json: bool, quiet: bool) -> Result<Context> {
        let settings = flags.resolve()?;
        let config = settings.config()?;
        let context = Context { home: Home::new(&config.home, &config.name), flags, config, json, quiet };
        for warning in &settings.warnings {
            context.note(&format!("warning: {warning}"));
        }
        Ok(context)
    }

    /// The same for who only asks a supervisor: a broken file must not keep anybody from `stop` and `status`.
    pub fn to_ask(flags: Flags, json: bool, quiet: bool) -> Result<Context> {
        Context::new(flags.clone(), json, quiet).or_else(|error| {
            let without = Flags { config_file: Some(std::path::PathBuf::from("/dev/null")), ..flags };
            let context = Context::new(without, json, quiet).map_err(|_| error.clone())?;
            if !context.home.dir().is_dir() {
                return Err(error);
            }
            context
                .note(&format!("warning: going on without the home's settings: {}", error.message.replace('\n', "; ")));
            Ok(context)
        })
    }

    /// The home must have been laid out.
    pub fn laid_out(&self) -> Result<()> {
        let root = self.home.root().display();
        if !self.home.root().is_dir() {
            return Err(Error::usage(format!(
                "{root} is no directory: give the home with --home or DAEMON_HOME, or make it with `wemixvisor init`"
            )));
        }
        if !self.home.dir().is_dir() {
            return Err(Error::usage(format!(
                "{root} is no home: `wemixvisor --home {root} init BINARY` makes it one"
            )));
        }
        Ok(())
    }

    /// Answers what was done: a line for people, or an object with that line and these facts.
    pub fn done(&self, text: &str, facts: Value) -> Result<()> {
        done(self.json, text, facts)
    }

    /// Says something beside the answer.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }
}

/// What [`Context::done`] does, for who has no home.
pub fn done(json: bool, text: &str, mut facts: Value) -> Result<()> {
    if !json {
        return answer(text);
    }
    facts["message"] = Value::from(text);
    answer(&format!("{facts:#}"))
}

/// Writes an answer to stdout. A reader that is gone is not told anything more, and is no failure of the command.
pub fn answer(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out
        .write_all(text.as_bytes())
        .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") })
        .and_then(|()| out.flush())
    {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        Err(e) => Err(Error::new(Code::Failed, format!("cannot write the answer to stdout: {e}"))),
    }
}

/// A word in a colour, on a terminal that may have them.
pub fn paint(config: &Config, text: &str, colour: &str) -> String {
    if config.color_logs && std::env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal() {
        format!("\x1b[{colour}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
