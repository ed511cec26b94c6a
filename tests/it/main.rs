//! The tests that drive the real binary, one file per subject; `support` holds what they share.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests may fail by panic, block, start processes and write files"
)]

mod answers;
mod archive;
mod background;
mod backup;
mod bad_input;
mod batch;
mod crash;
mod death;
mod download;
mod geth;
mod hooks;
mod init;
mod launch;
mod life;
mod plans;
mod power;
mod recovery;
mod revert;
mod rpc;
mod support;
mod tarball;
mod tls;
mod trial;
mod upgrade;
mod web;
