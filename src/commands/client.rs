//! Talks to the supervisor: one JSON line out, one in.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Code, Error, OnFile, Result};
use crate::home::Home;
use crate::job::rpc::connect_unix;
use crate::supervise::control::Request;

/// How long a supervisor that just begins or ends may be unreachable.
const MEETING_TIME: Duration = Duration::from_secs(3);

/// How long the answer to a question may take.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// The pid of who supervises this home, while its lock is held.
pub fn supervisor(home: &Home) -> Option<u32> {
    let lock = File::open(home.lock()).ok()?;
    if lock.try_lock_shared().is_ok() {
        return None;
    }
    Some(
        std::fs::read_to_string(home.lock())
            .ok()
            .and_then(|text| text.split_whitespace().next()?.parse().ok())
            .unwrap_or(0),
    )
}

/// Asks the supervisor; none when there is none.
pub fn ask(home: &Home, request: &Request) -> Result<Option<Value>> {
    let path = home.socket();
    let until = Instant::now() + MEETING_TIME;
    let mut stream = loop {
        match connect_unix(&path) {
            Ok(stream) => break stream,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                if supervisor(home).is_none() {
                    return Ok(None);
                }
                if Instant::now() > until {
                    return Err(e).on("reach the supervisor at", &path);
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) => return Err(e).on("reach the supervisor at", &path),
        }
    };
    // Only what changes something may take as long as that takes.
    let patient = match request {
        Request::Status | Request::Stop { .. } => Some(ANSWER_TIME),
        Request::Restart { .. }
        | Request::Reload { .. }
        | Request::Cancel { .. }
        | Request::Now { .. }
        | Request::Revert { .. } => None,
    };
    stream.set_read_timeout(patient).on("ask the supervisor at", &path)?;
    let mut line = serde_json::to_string(request).on("ask the supervisor at", &path)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).on("ask the supervisor at", &path)?;
    let mut reply = String::new();
    BufReader::new(stream).read_line(&mut reply).on("hear the supervisor at", &path)?;
    if reply.is_empty() {
        return Err(Error::failed("the supervisor ended before it answered"));
    }
    let mut reply: Value = serde_json::from_slice(reply.as_bytes()).on("understand the supervisor at", &path)?;
    if let Some(error) = reply.get("error").and_then(Value::as_str) {
        return Err(Error::new(code(reply.get("code")), error));
    }
    Ok(reply.get_mut("ok").map(Value::take))
}

fn code(value: Option<&Value>) -> Code {
    let all = [Code::Failed, Code::Usage, Code::NotRunning, Code::Refused, Code::Node];
    all.into_iter().find(|code| value.and_then(Value::as_u64) == Some(*code as u64)).unwrap_or(Code::Failed)
}

/// The same for what needs a supervisor.
pub fn demand(home: &Home, request: &Request) -> Result<Value> {
    ask(home, request)?
        .ok_or_else(|| Error::new(Code::NotRunning, format!("no supervisor runs for {}", home.root().display())))
}

/// The head that is known: of the running supervisor, else the last one on disk.
pub fn head(home: &Home) -> Option<u64> {
    let status = ask(home, &Request::Status).ok().flatten();
    status
        .and_then(|status| status.get("height")?.as_u64())
        .or_else(|| Some(crate::job::look::read_known(home).head?.number))
}
