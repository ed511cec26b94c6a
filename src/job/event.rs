//! Tells the operator's command of an event, by becoming it: who ends this process ends the command.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Report, check};
use crate::error::{Error, OnFile, Result};
use crate::event::Event;
use crate::home::Home;

/// Becomes the command, with the event as one line on its stdin. What it writes goes where our own log goes. Returns only
/// what went wrong.
pub fn become_command(home: &Home, path: &Path, event: &Event) -> Result<Report> {
    check::executable(path).map_err(Error::failed)?;
    // A group of its own, so that it ends with all that it started.
    let _ = rustix::process::setsid();
    let mut text = serde_json::to_vec(event).on("write an event for", path)?;
    text.push(b'\n');
    let memory = rustix::fs::memfd_create("event", rustix::fs::MemfdFlags::CLOEXEC).map_err(std::io::Error::from);
    let mut memory = File::from(memory.on("write an event for", path)?);
    memory.write_all(&text).and_then(|()| memory.rewind()).on("write an event for", path)?;
    let stderr = rustix::io::dup(std::io::stderr()).map_err(std::io::Error::from).on("run", path)?;
    let mut command = Command::new(path);
    command.stdin(Stdio::from(memory)).stdout(Stdio::from(stderr)).current_dir(home.root());
    Err(command.exec()).on("run", path)
}
