//! What went wrong, in one line, and the exit status it earns.

use std::fmt;
use std::os::unix::ffi::OsStrExt;

use crate::manifest::encode;

/// The exit status of a command, as the manual page lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// It was tried and did not work.
    Failed = 1,
    /// Wrong usage or configuration; nothing was changed.
    Usage = 2,
    /// No supervisor runs for this home.
    NotRunning = 3,
    /// Refused in the present state; nothing was changed.
    Refused = 4,
    /// The node failed for good.
    Node = 5,
}

/// One line for the operator: what failed, on what, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The exit status of the command that ends with this error.
    pub code: Code,
    /// The line; no full stop, no prefix.
    pub message: String,
}

/// A result whose error is a line for the operator.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with this exit status and line.
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        Error { code, message: message.into() }
    }

    /// It was tried and did not work.
    pub fn failed(message: impl Into<String>) -> Error {
        Error::new(Code::Failed, message)
    }

    /// Wrong usage or configuration.
    pub fn usage(message: impl Into<String>) -> Error {
        Error::new(Code::Usage, message)
    }

    /// Refused in the present state.
    pub fn refused(message: impl Into<String>) -> Error {
        Error::new(Code::Refused, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// What came from elsewhere, for a line: without what would speak to a terminal, and not long.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Names the file in an I/O error: `home/data: Permission denied`; as manifests write names, so that none speaks to a
/// terminal.
pub trait OnFile<T> {
    /// The error with what was being done and the file's name in front.
    fn on(self, doing: &str, file: &std::path::Path) -> Result<T>;
}

impl<T, E: fmt::Display> OnFile<T> for std::result::Result<T, E> {
    fn on(self, doing: &str, file: &std::path::Path) -> Result<T> {
        self.map_err(|e| {
            let file = encode(file.as_os_str().as_bytes());
            Error::failed(format!("cannot {doing} {file}: {e}"))
        })
    }
}
