//! Where the node's output is: in a file, in systemd's journal, or where a supervisor in the foreground has its own.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::super::{Context, client};
use crate::job::shim::read_record;
use crate::proc;

/// Where it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// In this file, which may not be there yet.
    File(PathBuf),
    /// In the journal, under the options that choose it, such as `-u wemixvisor`.
    Journal(String),
    /// Nowhere that we could read it: why.
    Elsewhere(String),
}

/// Asks the node that runs, then the settings, then the processes that run, then looks where `start` puts it.
pub fn find(context: &Context) -> Place {
    let home = &context.home;
    // The supervisor may have been started with other settings than ours, or have other ones for the node's next start.
    let node = read_record(home).filter(|record| proc::start_time(record.pid) == Some(record.start_time));
    if let Some(Place::File(path)) = node.as_ref().and_then(|record| of_process(record.pid)) {
        return Place::File(path);
    }
    if let Some(path) = &context.config.log_file {
        return Place::File(path.clone());
    }
    let writer = node.map(|record| record.pid).or_else(|| client::supervisor(home).filter(|pid| !is_background(*pid)));
    writer.and_then(of_process).unwrap_or_else(|| Place::File(home.node_log()))
}

/// Whether a supervisor was started by `start`: then its own output is not the node's.
fn is_background(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).nth(1) == Some(b"supervise")
}

/// Where the standard error of a process goes; none: nobody tells us.
fn of_process(pid: u32) -> Option<Place> {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let target = match fs::read_link(format!("/proc/{pid}/fd/2")) {
        Ok(target) => target,
        // Not for us to see, as with another group than ours; but what a unit writes goes to the journal, mostly.
        Err(e) if e.kind() == ErrorKind::PermissionDenied => return unit(&cgroup).map(Place::Journal),
        Err(_) => return None,
    };
    let shown = target.display();
    if target.is_file() {
        return Some(Place::File(target));
    }
    if target.as_os_str().as_encoded_bytes().ends_with(b" (deleted)") {
        // It was removed, and is there for as long as the node has it open.
        return Some(Place::File(PathBuf::from(format!("/proc/{pid}/fd/2"))));
    }
    if !target.to_string_lossy().starts_with("socket:") {
        return Some(Place::Elsewhere(format!(
            "the node writes to where its supervisor does, {shown}: read it there (in a container: with the tool that runs it), or set DAEMON_LOG_FILE"
        )));
    }
    Some(Place::Journal(unit(&cgroup).unwrap_or_else(|| format!("_PID={pid}"))))
}

/// The options for journalctl that choose the unit of a control group: of the machine's manager, or of a user's.
fn unit(cgroup: &str) -> Option<String> {
    let path = cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .or_else(|| cgroup.lines().find_map(|line| line.split_once(":name=systemd:").map(|(_, path)| path)))?;
    let units: Vec<&str> = path.split('/').filter(|part| part.ends_with(".service")).collect();
    let unit = units.last()?;
    let plain = unit.chars().all(|c| c.is_ascii_alphanumeric() || "@._-:".contains(c));
    let of_user = units.len() > 1 && units.first().is_some_and(|first| first.starts_with("user@"));
    plain.then(|| format!("{}-u {}", if of_user { "--user " } else { "" }, unit.trim_end_matches(".service")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_told_from_the_control_group() {
        let is = |cgroup: &str, options: Option<&str>| assert_eq!(unit(cgroup).as_deref(), options, "{cgroup}");
        is("0::/system.slice/wemixvisor.service\n", Some("-u wemixvisor"));
        is("0::/system.slice/system-node.slice/node@1.service/payload\n", Some("-u node@1"));
        is("0::/user.slice/user-1000.slice/user@1000.service/app.slice/node.service\n", Some("--user -u node"));
        is("12:cpu:/x\n1:name=systemd:/system.slice/node.service\n", Some("-u node"));
        is("0::/user.slice/user-1000.slice/session-2.scope\n", None);
        is("0::/system.slice/a;b.service\n", None);
        is("0::/\n", None);
        is("", None);
    }
}
