//! What a service manager is told, by systemd's notify protocol: datagrams to NOTIFY_SOCKET, sent without ever waiting. What
//! is to be known is compared with what was said, so that a word which a full or dead socket did not take is said again.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::machine::{Notice, Now};

/// Variables that speak of the supervisor alone: nobody that it starts gets them.
pub const VARIABLES: &[&str] =
    &["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// How much more time is asked for at once. Not more: for so long the watchdog looks away as well.
const EXTENSION: Duration = Duration::from_secs(60);

/// How often it is asked for again, well before the last one runs out.
const EXTEND_AGAIN: Duration = Duration::from_secs(20);

/// When what a socket did not take is said again.
const AGAIN: Duration = Duration::from_secs(1);

/// Speaks to the service manager, where there is one.
#[derive(Default)]
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// How often it wants to hear that the loop turns.
    watchdog: Option<Duration>,
    /// The node is up, or was.
    up: bool,
    /// It waits for the end of a reload.
    reloading: bool,
    said_up: bool,
    said_stopping: bool,
    said_status: String,
    watchdog_at: Now,
    extend_at: Now,
    /// When what was not taken is said again.
    again_at: Option<Now>,
    /// Whether the operator knows that the socket takes nothing.
    told: bool,
}

impl Notify {
    /// As the environment says.
    pub fn from_environment() -> Notify {
        let said = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let number = |name: &str| said(name).map(|value| value.to_str().and_then(|text| text.parse::<u64>().ok()));
        let Some(address) = said("NOTIFY_SOCKET") else { return Notify::default() };
        let socket = match open(&address) {
            Ok(socket) => socket,
            Err(e) => {
                log::warn!("NOTIFY_SOCKET is {address:?}, which cannot be used: {e}; systemd is told nothing");
                return Notify::default();
            }
        };
        let for_us = number("WATCHDOG_PID").is_none_or(|pid| pid == Some(u64::from(std::process::id())));
        let interval = number("WATCHDOG_USEC").flatten().filter(|usec| for_us && *usec > 1);
        let watchdog = interval.map(|usec| Duration::from_micros(usec / 2));
        Notify { socket: Some(socket), watchdog, ..Notify::default() }
    }

    /// Whether anybody listens.
    pub fn listens(&self) -> bool {
        self.socket.is_some()
    }

    /// The node is up.
    pub fn up(&mut self) {
        self.up = true;
    }

    /// The settings are about to be read again, because the service manager may have asked for it.
    pub fn reloading(&mut self) {
        // Before it is up, the end of a reload would be taken for its being up; and who stops does not come back.
        if self.said_up && !self.said_stopping {
            let now = clock_gettime(ClockId::Monotonic);
            let usec = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
            self.reloading = self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
        }
    }

    /// Says what is new. Nothing is: nothing is sent.
    pub fn tell(&mut self, now: Now, notice: &Notice) {
        if !self.listens() || self.again_at.is_some_and(|at| now < at) {
            return;
        }
        let mut lines = Vec::new();
        let ready = self.up && (!self.said_up || (self.reloading && !notice.reloading));
        if ready && !notice.stopping {
            lines.push("READY=1".to_owned());
        }
        if notice.stopping && !self.said_stopping {
            lines.push("STOPPING=1".to_owned());
        }
        if notice.status != self.said_status {
            lines.push(format!("STATUS={}", notice.status));
        }
        let extend = notice.busy && now >= self.extend_at;
        if extend {
            lines.push(format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()));
        }
        let alive = self.watchdog.filter(|_| now >= self.watchdog_at);
        if alive.is_some() {
            lines.push("WATCHDOG=1".to_owned());
        }
        if !notice.busy {
            // The next time that it takes long, that is said at once.
            self.extend_at = now;
        }
        if lines.is_empty() {
            return;
        }
        if !self.send(&lines.join("\n")) {
            self.again_at = Some(now + AGAIN);
            return;
        }
        self.again_at = None;
        if ready {
            self.said_up = true;
            self.reloading = false;
        }
        self.said_stopping |= notice.stopping;
        self.said_status.clone_from(&notice.status);
        if extend {
            self.extend_at = now + EXTEND_AGAIN;
        }
        if let Some(pause) = alive {
            self.watchdog_at = now + pause;
        }
    }

    /// When something is to be said without any event.
    pub fn wake_at(&self, notice: &Notice) -> Option<Now> {
        if !self.listens() || self.again_at.is_some() {
            return self.again_at;
        }
        let watchdog = self.watchdog.map(|_| self.watchdog_at);
        [watchdog, notice.busy.then_some(self.extend_at)].into_iter().flatten().min()
    }

    /// One datagram; false: it was dropped.
    fn send(&mut self, text: &str) -> bool {
        let Some((socket, address)) = &self.socket else { return false };
        match socket.send_to_addr(text.as_bytes(), address) {
            Ok(_) => {
                self.told = false;
                true
            }
            Err(e) => {
                if !std::mem::replace(&mut self.told, true) {
                    log::warn!("NOTIFY_SOCKET takes nothing: {e}; it is tried again and again");
                }
                false
            }
        }
    }
}

/// A socket that never waits, and where it sends to: a path, or an abstract name behind `@`.
fn open(address: &OsStr) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        _ => return Err(std::io::Error::other("it is neither an absolute path nor an abstract name (@…)")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn pair() -> (UnixDatagram, Notify) {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("@wemixvisor-notify-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let reader = UnixDatagram::bind_addr(&address).unwrap();
        reader.set_nonblocking(true).unwrap();
        (reader, Notify { socket: Some(open(OsStr::new(&name)).unwrap()), ..Notify::default() })
    }

    fn heard(reader: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 4096];
        let mut next = || reader.recv(&mut bytes).ok().map(|n| String::from_utf8_lossy(&bytes[..n]).into_owned());
        std::iter::from_fn(&mut next).collect()
    }

    fn secs(n: u64) -> Now {
        Duration::from_secs(n)
    }

    fn notice(status: &str, busy: bool) -> Notice {
        Notice { status: status.to_owned(), busy, stopping: false, reloading: false }
    }

    #[test]
    fn only_what_is_new_is_said() {
        let (reader, mut notify) = pair();
        notify.tell(secs(0), &notice("starting", true));
        assert_eq!(heard(&reader), ["STATUS=starting\nEXTEND_TIMEOUT_USEC=60000000"]);
        notify.tell(secs(1), &notice("starting", true));
        assert!(heard(&reader).is_empty());
        notify.up();
        notify.tell(secs(2), &notice("running", false));
        assert_eq!(heard(&reader), ["READY=1\nSTATUS=running"]);
        notify.tell(secs(9), &notice("running", false));
        assert!(heard(&reader).is_empty());
        assert_eq!(notify.wake_at(&notice("running", false)), None);
        notify.tell(secs(10), &Notice { stopping: true, ..notice("stopping", true) });
        assert_eq!(heard(&reader), ["STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=60000000"]);
    }

    #[test]
    fn more_time_is_asked_for_again_before_the_last_one_runs_out() {
        let (reader, mut notify) = pair();
        for second in 0..=65 {
            notify.tell(secs(second), &notice("upgrading", true));
        }
        assert_eq!(heard(&reader).len(), 4, "at 0, 20, 40 and 60 s");
        assert_eq!(notify.wake_at(&notice("upgrading", true)), Some(secs(80)));
        notify.tell(secs(66), &notice("running", false));
        notify.tell(secs(67), &notice("running", true));
        assert!(heard(&reader).last().unwrap().contains("EXTEND"), "at once when it begins anew");
    }

    #[test]
    fn the_end_of_a_reload_is_told_but_never_before_the_node_was_up() {
        let (reader, mut notify) = pair();
        notify.tell(secs(0), &notice("starting", false));
        notify.reloading();
        notify.tell(secs(1), &notice("starting", false));
        assert_eq!(heard(&reader), ["STATUS=starting"]);
        notify.up();
        notify.tell(secs(2), &notice("starting", false));
        heard(&reader);
        notify.reloading();
        notify.tell(secs(3), &Notice { reloading: true, ..notice("starting", false) });
        let said = heard(&reader);
        assert!(said.len() == 1 && said[0].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{said:?}");
        notify.tell(secs(4), &notice("starting", false));
        assert_eq!(heard(&reader), ["READY=1"]);
    }

    #[test]
    fn what_a_full_socket_did_not_take_is_said_again() {
        let (reader, mut notify) = pair();
        while notify.send("filler") {}
        notify.up();
        notify.tell(secs(5), &notice("running", false));
        assert_eq!(notify.wake_at(&notice("running", false)), Some(secs(6)));
        assert!(heard(&reader).iter().all(|text| text == "filler"));
        notify.tell(secs(6), &notice("running", false));
        assert_eq!(heard(&reader), ["READY=1\nSTATUS=running"]);
    }

    #[test]
    fn an_address_is_a_path_or_an_abstract_name() {
        let long = format!("/{}", "x".repeat(108));
        for wrong in ["", "relative", "vsock:2:1", &long] {
            assert!(open(OsStr::new(wrong)).is_err(), "{wrong}");
        }
        assert!(open(OsStr::new("/run/systemd/notify")).is_ok());
    }
}
