//! The control socket: one JSON line in, one out; bounded in size, number and time. It knows nothing of what is asked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Code, OnFile, Result, printable};
use crate::home::{Home, Name, Release};

/// The largest request, in bytes.
const REQUEST_MAX: usize = 64 << 10;

/// How many clients are served at once; the others wait to be accepted.
const CLIENTS_MAX: usize = 16;

/// How many may wait for something to happen, such as the end of a restart.
const WAITING_MAX: usize = 48;

/// How long a client may take to say its request, or to take its reply.
const CLIENT_TIME: Duration = Duration::from_secs(5);

/// The same when there is no place, or no descriptor, for who waits to be accepted: who says nothing makes room.
const CROWDED_TIME: Duration = Duration::from_millis(100);

/// After a failed accept (no descriptors left) the listener rests for so long.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Tell everything.
    Status,
    /// Tell what is measured.
    Metrics,
    /// Tell the head, once the node was asked for it anew.
    Head,
    /// End node and supervisor.
    Stop {
        /// KILL without the grace.
        now: bool,
    },
    /// End the node gently and start it again.
    Restart {
        /// With these arguments; none: as before.
        args: Option<Vec<String>>,
    },
    /// Take these flags, too, and read the settings again.
    Reload {
        /// As typed: (variable or key, value).
        flags: Vec<(String, String)>,
    },
    /// Take back an upgrade that has begun but not switched.
    Cancel {
        /// Its name.
        name: Name,
    },
    /// Carry out an upgrade at once.
    Now {
        /// Its name.
        name: Name,
        /// The release that it brings.
        release: Release,
    },
    /// Go back to a release.
    Revert {
        /// To which; none: the one before the upgrade on trial.
        to: Option<Release>,
    },
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply(Value);

impl Reply {
    /// It is done; this is the result.
    pub fn done(result: Value) -> Reply {
        Reply(json!({"ok": result}))
    }

    /// It is not done; the exit status and the line for the operator.
    pub fn error(code: Code, why: impl Into<String>) -> Reply {
        Reply(json!({"error": why.into(), "code": code as u8}))
    }
}

/// What happened at the socket.
#[derive(Debug, PartialEq)]
pub enum Happening {
    /// A client asked for this.
    Asked(u64, Request),
    /// A client that waited for its reply is gone.
    Left(u64),
}

struct Client {
    stream: UnixStream,
    seen: Vec<u8>,
    reply: Vec<u8>,
    since: Instant,
    /// The request was read; the reply is not there yet. Such a client has no deadline: it waits for something to happen.
    waits: bool,
}

/// The socket and its clients.
pub struct Control {
    listener: UnixListener,
    clients: BTreeMap<u64, Client>,
    next: u64,
    rests_until: Option<Instant>,
    home: Home,
}

impl Control {
    /// Binds the socket, replacing what a dead supervisor left. Only the holder of `lock` may call this.
    pub fn bind(home: &Home) -> Result<Control> {
        let path = home.socket();
        let dir = File::open(home.dir()).on("open", &home.dir())?;
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).on("remove the old socket", &path),
            Ok(()) | Err(_) => {}
        }
        // Through the directory's descriptor: a socket address holds 107 bytes, a home may be longer. The mask makes the
        // socket private from its first moment.
        let through = format!("/proc/self/fd/{}/control.sock", dir.as_raw_fd());
        let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(Path::new(&through));
        rustix::process::umask(old);
        let listener = bound.on("listen at", &path)?;
        listener.set_nonblocking(true).on("listen at", &path)?;
        if let Ok(owner) = home.owner() {
            crate::job::durable::give(&path, owner)?;
        }
        Ok(Control::at(listener, home))
    }

    /// Serves whom this listener lets in; it must not wait.
    pub fn at(listener: UnixListener, home: &Home) -> Control {
        Control { listener, clients: BTreeMap::new(), next: 1, rests_until: None, home: home.clone() }
    }

    /// Removes the socket: nobody is here any more.
    pub fn close(&self) {
        let _ = fs::remove_file(self.home.socket());
    }

    /// Whether new clients are to be waited for, and the descriptor to wait on.
    pub fn listener(&self) -> Option<&UnixListener> {
        (self.has_room() && self.rests_until.is_none()).then_some(&self.listener)
    }

    /// The clients' descriptors, and whether each waits to be written to.
    pub fn clients(&self) -> impl Iterator<Item = (u64, &UnixStream, bool)> {
        self.clients.iter().map(|(id, client)| (*id, &client.stream, !client.reply.is_empty()))
    }

    /// Those who were heard and wait for something to happen take no place from those who want to be heard.
    fn has_room(&self) -> bool {
        let waiting = self.clients.values().filter(|client| client.waits).count();
        self.clients.len() - waiting < CLIENTS_MAX && waiting < WAITING_MAX
    }

    fn patience(&self) -> Duration {
        let crowded = !self.has_room() || self.rests_until.is_some();
        if crowded { CROWDED_TIME } else { CLIENT_TIME }
    }

    /// When a client has taken too long, or the listener has rested.
    pub fn deadline(&self) -> Option<Instant> {
        let late = self.clients.values().filter(|c| !c.waits).map(|c| c.since + self.patience()).min();
        [late, self.rests_until].into_iter().flatten().min()
    }

    /// Takes in new clients, as many as there is room for.
    pub fn accept(&mut self, now: Instant) {
        while self.has_room() {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        let client = Client { stream, seen: Vec::new(), reply: Vec::new(), since: now, waits: false };
                        self.clients.insert(self.next, client);
                        self.next += 1;
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
                Err(_) => {
                    self.rests_until = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Serves a client whose descriptor is ready.
    pub fn serve(&mut self, id: u64) -> Option<Happening> {
        let client = self.clients.get_mut(&id)?;
        if !client.reply.is_empty() {
            if write_some(client) {
                self.clients.remove(&id);
            }
            return None;
        }
        let mut chunk = [0; 4096];
        loop {
            match client.stream.read(&mut chunk) {
                Ok(0) => {
                    let waited = client.waits;
                    self.clients.remove(&id);
                    return waited.then_some(Happening::Left(id));
                }
                // More than one request a connection is not served: what follows the first line is dropped.
                Ok(_) if client.waits => {}
                Ok(n) => client.seen.extend_from_slice(chunk.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
                Err(_) => {
                    let waited = client.waits;
                    self.clients.remove(&id);
                    return waited.then_some(Happening::Left(id));
                }
            }
            if client.waits {
                continue;
            }
            if let Some(end) = client.seen.iter().position(|&b| b == b'\n') {
                let request = serde_json::from_slice(client.seen.get(..end).unwrap_or_default());
                client.seen.clear();
                return match request {
                    Ok(request) => {
                        client.waits = true;
                        Some(Happening::Asked(id, request))
                    }
                    Err(e) => {
                        self.reply(
                            id,
                            &Reply::error(Code::Usage, format!("no request: {}", printable(&e.to_string()))),
                        );
                        None
                    }
                };
            }
            if client.seen.len() > REQUEST_MAX {
                self.reply(id, &Reply::error(Code::Usage, "the request is larger than 64 KiB"));
                return None;
            }
        }
    }

    /// Answers a client, if it is still there.
    pub fn reply(&mut self, id: u64, reply: &Reply) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.reply = reply.0.to_string().into_bytes();
        client.reply.push(b'\n');
        client.waits = false;
        client.since = Instant::now();
        if write_some(client) {
            self.clients.remove(&id);
        }
    }

    /// Lets go of who took too long.
    pub fn expire(&mut self, now: Instant) {
        let patience = self.patience();
        self.clients.retain(|_, client| client.waits || now < client.since + patience);
        self.rests_until = self.rests_until.filter(|until| now < *until);
    }

    /// Writes what is still to be said, as far as that goes without waiting: the program ends.
    pub fn flush(&mut self) {
        for client in self.clients.values_mut() {
            write_some(client);
        }
    }
}

/// Writes what the socket takes; true when the client is done with, either way.
fn write_some(client: &mut Client) -> bool {
    loop {
        match client.stream.write(&client.reply) {
            Ok(n) => {
                client.reply.drain(..n);
                if client.reply.is_empty() {
                    return true;
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return e.kind() != ErrorKind::WouldBlock,
        }
    }
}
