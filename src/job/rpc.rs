//! One JSON-RPC call, over HTTP or over the node's IPC socket: bounded in time and size, and no reply is trusted.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::tls;
use crate::config::Address;
use crate::error::printable;

/// How long one call may take.
pub const CALL_TIME: Duration = Duration::from_secs(5);

/// The largest reply that is read; ours are a few hundred bytes.
const REPLY_MAX: u64 = 1 << 20;

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The node answers but does not offer this method (−32601).
    NotOffered,
    /// The node answers with an error of its own.
    Told(String),
    /// No answer, or one that is none.
    Silent(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Failure::NotOffered => f.write_str("the node does not offer it"),
            Failure::Told(text) | Failure::Silent(text) => f.write_str(text),
        }
    }
}

/// An open way to a node.
pub struct Client {
    way: Way,
    next_id: u64,
}

enum Way {
    Http { agent: ureq::Agent, url: String },
    Ipc { stream: UnixStream },
}

impl Client {
    /// Opens a way to this address. For HTTP the connection is made by the first call.
    pub fn connect(address: &Address) -> Result<Client, Failure> {
        match address {
            Address::Http(url) => Ok(Client { way: Way::Http { agent: agent(url)?, url: url.clone() }, next_id: 1 }),
            Address::Ipc(path) => connect_unix(path).map(Client::over).map_err(|e| Failure::Silent(e.to_string())),
        }
    }

    /// The way to a node over this connection.
    pub fn over(stream: UnixStream) -> Client {
        Client { way: Way::Ipc { stream }, next_id: 1 }
    }

    /// The process at the other end of an IPC socket (the one that listens on it).
    pub fn peer(&self) -> Option<u32> {
        match &self.way {
            Way::Ipc { stream } => {
                let pid = rustix::net::sockopt::socket_peercred(stream).ok()?.pid;
                u32::try_from(pid.as_raw_nonzero().get()).ok()
            }
            Way::Http { .. } => None,
        }
    }

    /// Calls a method and returns its result.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value, Failure> {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string();
        let reply = match &mut self.way {
            Way::Http { agent, url } => post(agent, url, &request)?,
            Way::Ipc { stream } => exchange(stream, request.as_bytes())?,
        };
        result(reply, id)
    }
}

/// The result in a reply, if the reply is one to this request.
pub fn result(reply: Value, id: u64) -> Result<Value, Failure> {
    let Value::Object(mut reply) = reply else {
        return Err(Failure::Silent("the reply is no JSON-RPC reply".to_owned()));
    };
    if let Some(error) = reply.get("error").filter(|e| !e.is_null()) {
        if error.get("code").and_then(Value::as_i64) == Some(-32601) {
            return Err(Failure::NotOffered);
        }
        let text = error.get("message").and_then(Value::as_str).unwrap_or("an error without a message");
        return Err(Failure::Told(format!("the node answers: {}", printable(text))));
    }
    if reply.get("id").and_then(Value::as_u64) != Some(id) {
        return Err(Failure::Silent("the reply is to another request".to_owned()));
    }
    reply.remove("result").ok_or_else(|| Failure::Silent("the reply has no result".to_owned()))
}

fn agent(url: &str) -> Result<ureq::Agent, Failure> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(CALL_TIME))
        .max_redirects(0)
        .max_redirects_will_error(false)
        .http_status_as_error(false)
        .proxy(None)
        .user_agent(concat!("wemixvisor/", env!("CARGO_PKG_VERSION")));
    if !url.starts_with("https:") {
        return Ok(config.build().into());
    }
    let tls = tls::config().map_err(Failure::Silent)?;
    Ok(config.tls_config(tls).build().into())
}

fn post(agent: &ureq::Agent, url: &str, request: &str) -> Result<Value, Failure> {
    let silent = |e: ureq::Error| Failure::Silent(tls::explain(&e).unwrap_or_else(|| printable(&e.to_string())));
    let mut reply = agent.post(url).header("content-type", "application/json").send(request).map_err(silent)?;
    let status = reply.status();
    let body = match reply.body_mut().with_config().limit(REPLY_MAX).read_to_vec() {
        Ok(body) => body,
        Err(ureq::Error::BodyExceedsLimit(_)) => {
            return Err(Failure::Silent("the reply is larger than 1 MiB".to_owned()));
        }
        Err(e) => return Err(silent(e)),
    };
    serde_json::from_slice(&body)
        .map_err(|_| Failure::Silent(format!("status {} and no JSON-RPC reply", status.as_u16())))
}

/// Connects to a unix socket of any path length: a longer one than a socket address holds is reached through its directory.
pub fn connect_unix(path: &Path) -> std::io::Result<UnixStream> {
    match UnixStream::connect(path) {
        Err(e) if e.kind() == ErrorKind::InvalidInput => {
            let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(e) };
            let dir = File::open(dir)?;
            UnixStream::connect(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))
        }
        connected => connected,
    }
}

/// Sends a request and reads until one whole JSON value is there.
fn exchange(stream: &mut UnixStream, request: &[u8]) -> Result<Value, Failure> {
    let silent = |e: std::io::Error| Failure::Silent(e.to_string());
    let until = Instant::now() + CALL_TIME;
    stream.set_write_timeout(Some(CALL_TIME)).map_err(silent)?;
    stream.write_all(request).map_err(silent)?;
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Silent(format!("no reply within {} s", CALL_TIME.as_secs())));
        }
        stream.set_read_timeout(Some(left)).map_err(silent)?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(Failure::Silent("the node closed the connection".to_owned())),
            Ok(n) => seen.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                continue;
            }
            Err(e) => return Err(silent(e)),
        }
        if seen.len() as u64 > REPLY_MAX {
            return Err(Failure::Silent("the reply is larger than 1 MiB".to_owned()));
        }
        match serde_json::Deserializer::from_slice(&seen).into_iter::<Value>().next() {
            Some(Ok(value)) => return Ok(value),
            Some(Err(e)) if !e.is_eof() => return Err(Failure::Silent("no JSON-RPC reply".to_owned())),
            Some(Err(_)) | None => {}
        }
    }
}

/// A number as Ethereum writes it: `0x1b4`.
pub fn quantity(value: &Value) -> Option<u64> {
    let digits = value.as_str()?.strip_prefix("0x")?;
    u64::from_str_radix(digits, 16).ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reply_to_our_request_has_a_result() {
        let of = |reply: Value| result(reply, 7);
        assert_eq!(of(json!({"id": 7, "result": "0x1"})), Ok(json!("0x1")));
        assert_eq!(of(json!({"id": 7, "result": null})), Ok(Value::Null));
        assert_eq!(of(json!({"id": 7, "error": {"code": -32601, "message": "x"}})), Err(Failure::NotOffered));
        assert_eq!(
            of(json!({"id": 7, "error": {"code": -32000, "message": "bad\n"}})),
            Err(Failure::Told("the node answers: bad".into()))
        );
        for none in
            [json!({"id": 8, "result": "0x1"}), json!({"result": "0x1"}), json!({"id": 7}), json!([]), json!("html")]
        {
            assert!(matches!(of(none.clone()), Err(Failure::Silent(_))), "{none}");
        }
    }

    #[test]
    fn a_quantity_is_hex_with_a_prefix_and_fits() {
        assert_eq!(quantity(&json!("0x1b4")), Some(436));
        for none in [
            json!("1b4"),
            json!("0x"),
            json!("0xzz"),
            json!(436),
            json!("0x10000000000000000"),
            json!("0x-1"),
            json!("0x+1"),
        ] {
            assert_eq!(quantity(&none), None, "{none}");
        }
    }
}
