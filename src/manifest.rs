//! What a backup says of itself: `manifest.json`. One JSON object, written and read line by line, so that a million files
//! need no more memory than one: the first line is the header, then one line a file, the last line the totals. Pure.

use serde::{Deserialize, Serialize};

use crate::home::Release;

/// How a backup came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By reflinks, or by hard links and copies of what a node changes in place.
    Snapshot,
    /// By copying everything.
    Copy,
}

/// How one file came into a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Its blocks are shared until either side changes them.
    Reflink,
    /// It is the same file under a second name.
    Link,
    /// Byte by byte.
    Copy,
}

/// What a manifest begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of this form: 1.
    pub version: u32,
    /// The upgrade that made it, by the id of its journal and history line; none: the operator did, or a restore.
    pub id: Option<String>,
    /// The upgrade's name; `manual`, or `before-restore`.
    pub upgrade: String,
    /// When, RFC 3339.
    pub created: String,
    /// The head of the data, as last told by the node.
    pub head: Option<u64>,
    /// The release that ran on it.
    pub release: Option<Release>,
    /// How it came to be.
    pub mode: Mode,
}

/// One file (or symbolic link) of a backup. Directories are not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to `data/`. Bytes that are not UTF-8, `%`, and control characters stand as `%XX`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Time of the last change, nanoseconds since 1970.
    pub mtime_ns: i64,
    /// How it came here.
    pub how: How,
}

/// What a manifest ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// How many files.
    pub count: u64,
    /// Their sizes together.
    pub bytes: u64,
}
