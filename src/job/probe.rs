//! Asks the node where it is and who it is. An answer counts only when it comes from this node: who listens must be
//! among those that hold `data.lock`. What was learnt goes into `state.json` (unsynced: an older one is safe).

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rpc::{Client, Failure, quantity};
use super::validators::{self, Validators};
use super::{Line, Note, durable, look, say, step};
use crate::config::Address;
use crate::error::{Error, OnFile, Result};
use crate::home::{Home, Release};
use crate::journal::{Head, Identity, Known, Passed, unix_now};
use crate::proc;

/// What to ask, and where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The addresses, in the order in which they are tried.
    pub addresses: Vec<Address>,
    /// The release that runs.
    pub release: Release,
    /// Whether to ask who the node is, too.
    pub identity: bool,
    /// Plans that were there at the first start of this home: those whose height the first head has reached are past.
    pub initial: Vec<Passed>,
    /// What to ask of the validator set, if anything.
    pub validators: Option<validators::Spec>,
    /// Whether to write down who it is. A node whose identity is on trial must not overwrite the one before.
    pub remember_identity: bool,
}

/// What the node told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// The address that answered.
    pub address: String,
    /// How long its first answer took.
    pub latency: Duration,
    /// Why the answer counts for nothing, if so: who answered cannot be shown to be this node.
    pub foreign: Option<String>,
    /// The highest block.
    pub head: u64,
    /// The time in that block, seconds since 1970.
    pub head_time: Option<u64>,
    /// Connected peers.
    pub peers: Option<u64>,
    /// Whether it says that it syncs, and up to which block.
    pub syncing: Option<u64>,
    /// Who it is, when that was asked.
    pub identity: Option<Identity>,
    /// `web3_clientVersion`, when identity was asked.
    pub version: Option<String>,
    /// The validator set, when it was asked for and the node knows one.
    pub validators: Option<Validators>,
}

/// Asks each address until one answers that is this node; a foreign answer is the second choice.
pub fn probe(home: &Home, spec: &Spec) -> Result<Probed> {
    let began = unix_now();
    let mut foreign = None;
    let mut reasons = Vec::new();
    for address in &spec.addresses {
        match ask(home, address, spec) {
            Ok(probed) if probed.foreign.is_some() => foreign = foreign.or(Some(probed)),
            Ok(probed) => {
                if let Err(e) = remember(home, spec, &probed, began) {
                    if !spec.initial.is_empty() {
                        // The plans of a first start are judged on disk or not at all.
                        return Err(e);
                    }
                    say(&Line::Note(Note::Warning(e.message)));
                }
                return Ok(probed);
            }
            Err(failure) => reasons.push(format!("{address}: {failure}")),
        }
    }
    foreign.ok_or_else(|| Error::failed(reasons.join("; ")))
}

fn ask(home: &Home, address: &Address, spec: &Spec) -> std::result::Result<Probed, Failure> {
    let began = Instant::now();
    let mut client = Client::connect(address)?;
    let head = client.call("eth_blockNumber", json!([]))?;
    let head = quantity(&head).ok_or_else(|| Failure::Silent("eth_blockNumber gave no number".to_owned()))?;
    let latency = began.elapsed();
    let foreign = stranger(home, address, &client);
    let mut probed = Probed { address: address.to_string(), latency, foreign, head, ..Probed::default() };
    if probed.foreign.is_some() {
        return Ok(probed);
    }
    let mut optional = |method: &str, params: Value| client.call(method, params).ok();
    probed.head_time =
        optional("eth_getBlockByNumber", json!(["latest", false])).and_then(|b| quantity(b.get("timestamp")?));
    probed.peers = optional("net_peerCount", json!([])).and_then(|n| quantity(&n));
    probed.syncing = optional("eth_syncing", json!([])).and_then(|s| quantity(s.get("highestBlock")?));
    if spec.identity {
        let text = |value: Option<Value>| value.and_then(|v| Some(v.as_str()?.chars().take(200).collect::<String>()));
        probed.version = text(optional("web3_clientVersion", json!([])));
        let chain_id = text(optional("eth_chainId", json!([])));
        let genesis =
            text(optional("eth_getBlockByNumber", json!(["0x0", false])).and_then(|b| b.get("hash").cloned()));
        // The p2p id of its key, which every release offers over IPC; else the validator's address. Two kinds of name are
        // never compared.
        let id = text(optional("admin_nodeInfo", json!([])).and_then(|info| info.get("id").cloned()));
        let node = id
            .map(|id| format!("id:{id}"))
            .or_else(|| text(optional("istanbul_nodeAddress", json!([]))).map(|address| format!("address:{address}")));
        probed.identity = Some(Identity { chain_id, genesis, node });
    }
    if let Some(spec) = &spec.validators {
        // A node that says nothing here has answered all the same.
        probed.validators = validators::ask(&mut client, spec, head).ok().flatten();
    }
    Ok(probed)
}

/// Why who listens at this address is not known to be the node or a child of it: a holder of the data lock.
pub(super) fn stranger(home: &Home, address: &Address, client: &Client) -> Option<String> {
    let holders = super::clear::holders(home);
    let ours = match address {
        Address::Ipc(_) => client.peer().is_some_and(|pid| holders.iter().any(|h| h.pid == pid)),
        Address::Http(url) => match loopback_port(url) {
            Some(port) => proc::listens(&holders, port),
            None => return Some("it is no loopback address, so that nothing shows it to be this node".to_owned()),
        },
    };
    (!ours).then(|| "another process listens there".to_owned())
}

/// The port of a URL whose host is this machine's loopback.
fn loopback_port(url: &str) -> Option<u16> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        Some(_) | None => (authority, if scheme == "https" { 443 } else { 80 }),
    };
    let loopback = host == "localhost"
        || host == "[::1]"
        || (host.starts_with("127.") && host.parse::<std::net::Ipv4Addr>().is_ok());
    loopback.then_some(port)
}

fn remember(home: &Home, spec: &Spec, probed: &Probed, seen: u64) -> Result<()> {
    let before = look::read_known(home);
    if before.head.is_none() {
        // Before the head is on disk: whoever is killed in between, the next start judges these plans in the same way.
        let past: Vec<Passed> = spec.initial.iter().filter(|plan| probed.head >= plan.height).cloned().collect();
        step::pass(home, &past, &format!("the chain was at {} already when this home was first started", probed.head))?;
    }
    let identity = match (&probed.identity, spec.remember_identity) {
        (Some(identity), true) => identity.clone().or(&before.identity),
        (Some(_) | None, _) => before.identity.clone(),
    };
    let head = Head { number: probed.head, seen, release: spec.release.clone() };
    let known = Known {
        highest: before.highest_with(&head),
        head: Some(head),
        client_version: probed.version.clone().or_else(|| before.client_version.clone()),
        identity,
        machine: proc::machine(),
        last: before.last.clone(),
    };
    let path = home.state();
    let text = serde_json::to_vec(&known).on("write", &path)?;
    let owner = home.owner().on("read", home.root())?;
    if before.head.is_none() {
        // That there ever was a head must not be forgotten; which one it was may be.
        return durable::replace_file(&path, &text, 0o600, owner);
    }
    durable::replace_file_unsynced(&path, &text, 0o600, owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loopback_address_can_be_shown_to_be_this_node() {
        for (url, port) in [
            ("http://127.0.0.1:8545", Some(8545)),
            ("http://localhost:8588/path", Some(8588)),
            ("http://[::1]:7", Some(7)),
            ("http://127.9.9.9", Some(80)),
            ("https://localhost", Some(443)),
            ("http://127.example.com:1", None),
            ("http://10.0.0.1:8545", None),
            ("http://example.com:8545", None),
        ] {
            assert_eq!(loopback_port(url), port, "{url}");
        }
    }
}
