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
mod clique;
mod config;
mod container;
mod crash;
mod death;
mod download;
mod events;
mod geth;
mod health;
mod hooks;
mod init;
mod launch;
#[allow(dead_code, reason = "the mock node uses the rest of it")]
#[path = "../examples/mocknode/ledger.rs"]
mod ledger;
mod life;
mod logs;
mod metrics;
mod network;
mod plans;
mod power;
mod recovery;
mod revert;
mod rolling;
mod rpc;
mod signers;
mod support;
mod systemd;
mod tarball;
mod tls;
#[path = "../examples/mocknode/trace.rs"]
mod trace;
mod trial;
mod upgrade;
mod wbft;
mod web;
