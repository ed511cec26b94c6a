//! The map of the program: arguments, command, exit status.

mod batch;
mod cli;
mod commands;
mod config;
#[cfg(test)]
mod docs;
mod error;
mod event;
mod geth;
mod home;
mod job;
mod journal;
mod manifest;
mod metrics;
mod node_args;
mod plan;
mod proc;
mod schedule;
mod source;
mod supervise;

// For the fuzzer, to which this file is a library, and for the tests, which replay what it found.
#[cfg(any(test, fuzzing))]
#[path = "../tests/fuzz/targets.rs"]
pub mod targets;

use std::process::ExitCode;

use cli::{Command, Invocation};
use commands::Context;
use error::{Error, Result};
use job::Flags;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os().skip(1)).and_then(dispatch) {
        Ok(code) => code,
        Err(error) => {
            for line in error.message.lines() {
                eprintln!("wemixvisor: {line}");
            }
            ExitCode::from(error.code as u8)
        }
    }
}

fn dispatch(said: Invocation) -> Result<ExitCode> {
    let flags = Flags { settings: said.settings, config_file: said.config_file };
    let context = |flags: Flags| Context::new(flags, said.json, said.quiet);
    let to_ask = |flags: Flags| Context::to_ask(flags, said.json, said.quiet);
    let done = |result: Result<()>| result.map(|()| ExitCode::SUCCESS);
    match said.command {
        Command::Worker => Ok(job::worker()),
        Command::Exec(words) => Ok(job::shim::exec(&words)),
        Command::Supervise(words) => {
            let (flags, args) = words.split_first().ok_or_else(|| Error::usage("supervise is only for `start`"))?;
            let flags = serde_json::from_slice(flags.as_bytes())
                .map_err(|e| Error::usage(format!("supervise is only for `start`: {e}")))?;
            commands::run::background(context(flags)?, args.to_vec())
        }
        Command::Help(topic) => done(commands::answer(&cli::help(topic))),
        Command::OurVersion => done(commands::answer(concat!("wemixvisor ", env!("CARGO_PKG_VERSION")))),
        Command::Init { binary } => done(commands::init::init(&context(flags)?, binary.as_deref())),
        Command::Run { args } => commands::run::run(context(flags)?, args),
        Command::Start { args } => commands::run::start(&context(flags)?, args),
        Command::Stop { now } => commands::run::stop(&to_ask(flags)?, now),
        Command::Restart { args } => commands::run::restart(&context(flags)?, args),
        Command::Status { check } => commands::status::status(&to_ask(flags)?, check),
        Command::Logs(wanted) => done(commands::logs::logs(&to_ask(flags)?, &wanted)),
        Command::Version => done(commands::version::version(&context(flags)?)),
        Command::Upgrade(upgrade) => commands::upgrade::upgrade(&context(flags)?, &upgrade),
        Command::Plan(plan) => commands::plan::plan(&context(flags)?, &plan),
        Command::Metrics(what) => done(commands::metrics::metrics(&context(flags)?, &what)),
        Command::Backup(backup) => commands::backup::backup(&context(flags)?, &backup),
        Command::Systemd => done(commands::systemd::systemd(&context(flags)?)),
        Command::Config(command) => done(commands::config::config(&flags, said.json, said.quiet, &command)),
        Command::Completions { shell } => done(commands::completions::completions(&shell)),
        Command::Complete(words) => done(commands::completions::complete(&words)),
    }
}
