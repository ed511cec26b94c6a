//! Signals as a readable descriptor: each handler sets its flag, then writes a byte that wakes the loop.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::proc;

const HUP: i32 = 1;
const INT: i32 = 2;
const QUIT: i32 = 3;
const USR1: i32 = 10;
const PIPE: i32 = 13;
const TERM: i32 = 15;
const CHLD: i32 = 17;
const TTIN: i32 = 21;
const TTOU: i32 = 22;

/// What came since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// TERM, INT or QUIT.
    pub stop: bool,
    /// HUP.
    pub reload: bool,
    /// USR1.
    pub reopen: bool,
    /// CHLD.
    pub child: bool,
}

/// The handlers' flags and the descriptor that wakes the loop.
pub struct Signals {
    wake: UnixStream,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
    reopen: Arc<AtomicBool>,
    child: Arc<AtomicBool>,
}

impl Signals {
    /// Takes over our signals. Refused when one of them is blocked: then it would never come, and nothing in this program
    /// can unblock it.
    pub fn install() -> Result<Signals> {
        let (blocked, _) = proc::inherited_signals();
        let named = [(TERM, "TERM"), (INT, "INT"), (HUP, "HUP"), (CHLD, "CHLD")];
        if let Some((_, name)) = named.iter().find(|(signal, _)| proc::in_mask(blocked, *signal)) {
            return Err(Error::usage(format!(
                "SIG{name} is blocked by who started this program, so that a stop would never be heard: start it from a plain shell or unit"
            )));
        }
        let failed = |e: std::io::Error| Error::failed(format!("cannot take over signals: {e}"));
        let (wake, write) = UnixStream::pair().map_err(failed)?;
        wake.set_nonblocking(true).and_then(|()| write.set_nonblocking(true)).map_err(failed)?;
        let register = |signals: &[i32]| -> std::io::Result<Arc<AtomicBool>> {
            let flag = Arc::new(AtomicBool::new(false));
            for &signal in signals {
                // In this order: when the loop wakes, the flag is set.
                signal_hook::flag::register(signal, Arc::clone(&flag))?;
                signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
            }
            Ok(flag)
        };
        let stop = register(&[TERM, INT, QUIT]).map_err(failed)?;
        let reload = register(&[HUP]).map_err(failed)?;
        let reopen = register(&[USR1]).map_err(failed)?;
        let child = register(&[CHLD]).map_err(failed)?;
        for signal in [PIPE, TTIN, TTOU] {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false))).map_err(failed)?;
        }
        Ok(Signals { wake, stop, reload, reopen, child })
    }

    /// What to wait on.
    pub fn descriptor(&self) -> &UnixStream {
        &self.wake
    }

    /// What came since the last call.
    pub fn take(&mut self) -> Came {
        let mut bytes = [0; 64];
        while matches!(std::io::Read::read(&mut self.wake, &mut bytes), Ok(n) if n == bytes.len()) {}
        let take = |flag: &AtomicBool| flag.swap(false, Ordering::SeqCst);
        Came {
            stop: take(&self.stop),
            reload: take(&self.reload),
            reopen: take(&self.reopen),
            child: take(&self.child),
        }
    }
}
