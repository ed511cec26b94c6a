//! Talks to the supervisor: one JSON line out, one in.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Code, Error, OnFile, Result};
use crate::home::Home;
use crate::job::rpc::connect_unix;
use crate::supervise::control::Request;

/// How long a supervisor that just begins or ends may be unreachable.
const MEETING_TIME: Duration = Duration::from_secs(3);

/// How long the answer to a question may take: others that say nothing may keep all places for 5 s each time.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// The same where the node is asked: one that does not answer is not waited for.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// What to do where the socket is for others.
const PERMISSION: &str = ": do it as root, or as the owner of the home";

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
    // Only what changes something may take as long as that takes; the rest may also be asked twice.
    let patience = match request {
        Request::Head => Some(HEAD_TIME),
        Request::Status | Request::Metrics | Request::Stop { .. } => Some(ANSWER_TIME),
        Request::Restart { .. }
        | Request::Reload { .. }
        | Request::Cancel { .. }
        | Request::Now { .. }
        | Request::Revert { .. } => None,
    };
    loop {
        let (asked, error) = match connect_unix(&path) {
            Err(error) => (false, error),
            Ok(stream) => match exchange(stream, request, patience) {
                Ok(reply) => return understand(&path, &reply).map(Some),
                Err(error) => (true, error),
            },
        };
        // One that begins is not there yet, one that ends lets go in the middle.
        let gone = matches!(
            error.kind(),
            ErrorKind::NotFound
                | ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof
        );
        if !gone || (asked && patience.is_none()) {
            let remedy = if error.kind() == ErrorKind::PermissionDenied { PERMISSION } else { "" };
            return Err(format!("{error}{remedy}")).on("hear the supervisor at", &path);
        }
        if supervisor(home).is_none() {
            return Ok(None);
        }
        if Instant::now() > until {
            return Err(error).on("reach the supervisor at", &path);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Says the request and hears the reply, each one line.
fn exchange(mut stream: UnixStream, request: &Request, patience: Option<Duration>) -> std::io::Result<String> {
    stream.set_read_timeout(patience)?;
    let mut line = serde_json::to_string(request)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut reply = String::new();
    match BufReader::new(stream).read_line(&mut reply) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(reply),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Err(std::io::Error::new(
            ErrorKind::TimedOut,
            format!("no reply within {} s: too many clients?", patience.unwrap_or_default().as_secs()),
        )),
        Err(e) => Err(e),
    }
}

fn understand(path: &Path, reply: &str) -> Result<Value> {
    let mut reply: Value = serde_json::from_slice(reply.as_bytes()).on("understand the supervisor at", path)?;
    if let Some(error) = reply.get("error").and_then(Value::as_str) {
        return Err(Error::new(code(reply.get("code")), error));
    }
    Ok(reply.get_mut("ok").map(Value::take).unwrap_or_default())
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

/// A head, and whether the node tells it now.
pub struct Heard {
    /// As the node tells it, else the last one that its supervisor knows, else the last one on disk.
    pub height: Option<u64>,
    /// False: a supervisor runs, and its node does not answer.
    pub current: bool,
}

/// Asks for the head.
pub fn heard(home: &Home) -> Heard {
    let (told, late) = match ask(home, &Request::Head) {
        Ok(told) => (told, false),
        Err(_) => (ask(home, &Request::Status).ok().flatten(), true),
    };
    let height = told.as_ref().and_then(|told| told.get("height")?.as_u64());
    let current = !late && told.as_ref().is_none_or(|told| told.get("current") == Some(&Value::Bool(true)));
    Heard { height: height.or_else(|| Some(crate::job::look::read_known(home).head?.number)), current }
}
