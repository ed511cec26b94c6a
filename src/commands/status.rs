//! `status`: what the supervisor tells, for people or for programs; without one, the last known state and why.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Context, answer, client, paint};
use crate::error::{Code, Result};
use crate::home::Home;
use crate::job::backup;
use crate::job::look::{self, read_history, read_known};
use crate::job::shim::read_record;
use crate::journal::{Stage, rfc3339, unix_now};
use crate::supervise::control::Request;

/// Prints the status; its exit status says whether the node is looked after.
pub fn status(context: &Context, check: bool) -> Result<ExitCode> {
    context.laid_out()?;
    let status = match client::ask(&context.home, &Request::Status)? {
        Some(status) => status,
        None => without_supervisor(context),
    };
    answer(&if context.json { format!("{status:#}\n") } else { text(context, &status) })?;
    let state = status.get("state").and_then(Value::as_str).unwrap_or("");
    let healthy = status.pointer("/health/healthy").and_then(Value::as_bool).unwrap_or(false);
    Ok(match state {
        "stopped" | "crashed" | "error" if status.get("supervisor_pid").and_then(Value::as_u64).unwrap_or(0) == 0 => {
            ExitCode::from(Code::NotRunning as u8)
        }
        "crashed" | "error" => ExitCode::from(Code::NotRunning as u8),
        "running" if check && !healthy => ExitCode::from(Code::Failed as u8),
        _ => ExitCode::SUCCESS,
    })
}

/// What is known on disk.
fn without_supervisor(context: &Context) -> Value {
    let home: &Home = &context.home;
    let known = read_known(home);
    let record = read_record(home);
    let upgrade = look::read_journal(home).ok().flatten().map(|journal| {
        json!({"name": journal.name, "height": journal.height, "phase": phase_word(journal.stage),
            "waits_for": "the next start, which goes on with it", "eta_seconds": Value::Null, "progress": Value::Null})
    });
    let (state, error) = look::last_state(home);
    let last = read_history(home).pop();
    json!({
        "state": state,
        "state_string": state,
        "pid": 0,
        "uptime": "0s",
        "restart_count": 0,
        "network": context.config.network,
        "binary": home.current_binary(),
        "version": known.client_version,
        "health": {"healthy": false, "timestamp": rfc3339(unix_now()), "checks": {}},
        "release": home.current_release().ok().map(|release| release.to_string()),
        "height": known.head.map(|head| head.number),
        "head_known": false,
        "supervisor_pid": 0,
        "args": record.map(|r| r.args).unwrap_or_default(),
        "hold": Value::Null,
        "waits_for": backup::restore_pending(home).then_some("the next start, which finishes a restore that was interrupted"),
        "upgrade": upgrade,
        "plans": [],
        "plan_errors": [],
        "last_upgrade": last.map(|h| json!({"name": h.name, "result": h.result, "reason": h.reason, "finished": h.finished, "backup": h.backup, "downtime_ms": h.downtime_ms})),
        "validator": Value::Null,
        "readiness": [],
        "error": error,
    })
}

/// The phase of an upgrade that nobody carries on right now.
pub fn phase_word(stage: Stage) -> &'static str {
    match stage {
        Stage::Stop => "stopping",
        Stage::Hook => "hook",
        Stage::Switch => "switch",
        Stage::Trial => "trial",
        Stage::Restore | Stage::Back | Stage::Return => "reverting",
    }
}

fn text(context: &Context, status: &Value) -> String {
    let word = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or("");
    let number = |key: &str| status.get(key).and_then(Value::as_u64);
    let mut out = String::new();
    let mut line = |label: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "{label:<9} {value}");
        }
    };
    let state = word("state");
    let colour = match state {
        "running" => "32",
        "starting" | "stopping" | "upgrading" => "33",
        _ => "31",
    };
    line("State:", &paint(&context.config, state, colour));
    line("Reason:", word("error"));
    line(
        "Waits:",
        &status.get("waits_for").and_then(Value::as_str).map(|what| format!("for {what}")).unwrap_or_default(),
    );
    if let Some(pid) = number("pid").filter(|pid| *pid > 0) {
        line("PID:", &format!("{pid} (supervisor {})", number("supervisor_pid").unwrap_or(0)));
        line("Uptime:", &spaced(word("uptime")));
        line("Restarts:", &number("restart_count").unwrap_or(0).to_string());
        line("Health:", &health(context, status));
    }
    line("Version:", word("version"));
    line("Network:", word("network"));
    line("Release:", word("release"));
    let told = status.get("head_known").and_then(Value::as_bool).unwrap_or(false);
    line(
        "Height:",
        &number("height")
            .map(|height| if told { height.to_string() } else { format!("{height} (last known)") })
            .unwrap_or_else(|| "unknown".to_owned()),
    );
    if let Some(validator) = status.get("validator").filter(|v| !v.is_null()) {
        line("Validator:", &validator_line(validator));
    }
    if let Some(upgrade) = status.get("upgrade").filter(|u| !u.is_null()) {
        line("Upgrade:", &upgrade_line(upgrade));
        line("Downtime:", upgrade.get("downtime").and_then(Value::as_str).unwrap_or(""));
    }
    for plan in status.get("plans").and_then(Value::as_array).into_iter().flatten() {
        let of = |key: &str| plan.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        if matches!(of("state").as_str(), "conflict" | "failed" | "held") {
            line("Plan:", &format!("{} {}: {}", of("name"), of("state"), of("note")));
        }
    }
    for error in status.get("plan_errors").and_then(Value::as_array).into_iter().flatten() {
        let of = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or("");
        line("Broken:", &format!("{}: {}", of("file"), of("error")));
    }
    if let Some(last) = status.get("last_upgrade").filter(|l| !l.is_null()) {
        let of = |key: &str| last.get(key).and_then(Value::as_str).unwrap_or("");
        // Only an upgrade that was carried out has measured its time without a node.
        let down = match last.get("downtime_ms").and_then(Value::as_u64) {
            Some(ms) if ms > 0 => {
                format!(" (downtime {})", crate::config::show_duration(std::time::Duration::from_millis(ms)))
            }
            Some(_) | None => String::new(),
        };
        let why = if of("reason").is_empty() { String::new() } else { format!(": {}", of("reason")) };
        line("Last:", &format!("{} {} {}{down}{why}", of("name"), of("result"), of("finished")));
    }
    out
}

fn health(context: &Context, status: &Value) -> String {
    let checks = status.pointer("/health/checks").and_then(Value::as_object);
    let problems: Vec<String> = checks
        .into_iter()
        .flatten()
        .filter(|(_, check)| check.get("healthy") == Some(&Value::Bool(false)))
        .map(|(name, check)| format!("{name}: {}", check.get("error").and_then(Value::as_str).unwrap_or("")))
        .collect();
    let healthy = status.pointer("/health/healthy") == Some(&Value::Bool(true));
    let word =
        if healthy { paint(&context.config, "healthy", "32") } else { paint(&context.config, "unhealthy", "31") };
    if problems.is_empty() { word } else { format!("{word} ({})", problems.join("; ")) }
}

fn upgrade_line(upgrade: &Value) -> String {
    let of = |key: &str| upgrade.get(key).and_then(Value::as_str).unwrap_or("");
    let height = upgrade.get("height").and_then(Value::as_u64).map(|h| format!(" at block {h}")).unwrap_or_default();
    let waits = if of("waits_for").is_empty() { String::new() } else { format!(", waits for {}", of("waits_for")) };
    let eta = upgrade
        .get("eta_seconds")
        .and_then(Value::as_u64)
        .filter(|seconds| *seconds > 0)
        .map(|s| format!(", about {}", spaced(&crate::config::show_duration(std::time::Duration::from_secs(s)))))
        .unwrap_or_default();
    format!("{}{height}: {}{waits}{eta}", of("name"), of("phase"))
}

fn validator_line(validator: &Value) -> String {
    let number = |key: &str| validator.get(key).and_then(Value::as_i64);
    let address = validator.get("address").and_then(Value::as_str).unwrap_or("");
    let Some(rank) = number("rank") else { return format!("{address} is in no set") };
    let of = |key: &str| number(key).unwrap_or(0);
    let slot = number("slot").map(|slot| format!(", turn at block {slot}")).unwrap_or_default();
    format!(
        "{address}, rank {rank} of {}, {} others signed lately, quorum {} (margin {}){slot}",
        of("validators"),
        of("active_others"),
        of("quorum"),
        of("margin")
    )
}

/// `2h30m45s` as people read it: `2h 30m 45s`.
fn spaced(duration: &str) -> String {
    let mut out = String::new();
    let mut after_letter = false;
    for c in duration.chars() {
        if c.is_ascii_digit() && after_letter {
            out.push(' ');
        }
        after_letter = c.is_ascii_alphabetic();
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_spaced_for_people() {
        assert_eq!(spaced("2h30m45s"), "2h 30m 45s");
        assert_eq!(spaced("300ms"), "300ms");
    }
}
