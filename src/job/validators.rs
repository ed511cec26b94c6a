//! What a node tells of the validator set that it is in: by `istanbul_*` (WBFT), or by `clique_*`, which real geth offers.
//! Each question may go unanswered: a node that is no validator, or offers none of it, is told apart from one that is silent.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rpc::{Client, Failure, quantity};
use crate::config::Address;
use crate::error::{Error, Result};
use crate::supervise::validator::{client_of, clique_quorum, quorum};

/// The most validators that a set may have; more than any chain of this kind has.
const SET_MAX: usize = 1000;

/// How many blocks are looked at for what their proposers run, at most.
const CLIENT_BLOCKS: u64 = 64;

/// What the node answers, or why it does not.
type Asked<T> = std::result::Result<T, Failure>;

/// What to ask.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Blocks whose set is wanted besides the present one.
    pub at: BTreeSet<u64>,
    /// Whether to ask what the proposers of the last blocks run.
    pub clients: bool,
}

/// How the set decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Byzantine agreement.
    Wbft,
    /// Proof of authority by turns.
    Clique,
}

/// A validator set and who of it is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validators {
    /// How it decides.
    pub kind: Kind,
    /// This node's own address, in lower case.
    pub own: String,
    /// The set of the latest block, sorted.
    pub set: Vec<String>,
    /// Those of the set that signed lately, within about two rounds of the whole set.
    pub active: BTreeSet<String>,
    /// The sets of the blocks that were asked for, as far as the node could tell.
    pub at: BTreeMap<u64, Vec<String>>,
    /// What the proposers of recent blocks run; only when that was asked for.
    pub clients: BTreeMap<String, String>,
}

impl Validators {
    /// The fewest that can go on.
    pub fn quorum(&self) -> usize {
        match self.kind {
            Kind::Wbft => quorum(self.set.len()),
            Kind::Clique => clique_quorum(self.set.len()),
        }
    }

    /// How many others signed lately.
    pub fn active_others(&self) -> usize {
        self.active.iter().filter(|address| **address != self.own).count()
    }

    /// Whether this node is one of them.
    pub fn is_validator(&self) -> bool {
        self.set.contains(&self.own)
    }
}

/// Asks the node, whose head this is. None: it offers nothing of the kind.
pub fn ask(client: &mut Client, spec: &Spec, head: u64) -> Asked<Option<Validators>> {
    match optional(client.call("istanbul_nodeAddress", json!([])))? {
        Some(own) => wbft(client, spec, head, &own),
        None => clique(client, spec),
    }
}

/// What a node does not offer, or has no answer to, is nothing; one that is silent is an error.
fn optional(answer: Asked<Value>) -> Asked<Option<Value>> {
    match answer {
        Ok(Value::Null) | Err(Failure::NotOffered | Failure::Told(_)) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(silent) => Err(silent),
    }
}

fn wbft(client: &mut Client, spec: &Spec, head: u64, own: &Value) -> Asked<Option<Validators>> {
    let Some(own) = address(own) else { return Ok(None) };
    let set = optional(client.call("istanbul_getValidators", json!(["latest"])))?.and_then(|set| addresses(&set));
    let Some(set) = set else { return Ok(None) };
    let mut at = BTreeMap::new();
    for block in spec.at.iter().filter(|block| **block <= head) {
        let then = optional(client.call("istanbul_getValidators", json!([format!("{block:#x}")])))?;
        at.extend(then.and_then(|set| addresses(&set)).map(|set| (*block, set)));
    }
    let round = set.len() as u64;
    let from = head.saturating_sub(2 * round).max(1);
    let range = json!([format!("{from:#x}"), format!("{head:#x}")]);
    let status = optional(client.call("istanbul_status", range))?;
    let active = status.map(|status| signers(&status)).unwrap_or_default();
    let mut clients = BTreeMap::new();
    if spec.clients {
        for block in head.saturating_sub((2 * round).min(CLIENT_BLOCKS)).max(1)..=head {
            let number = format!("{block:#x}");
            let header = optional(client.call("eth_getBlockByNumber", json!([number, false])))?;
            let extra = optional(client.call("istanbul_getWbftExtraInfo", json!([number])))?;
            let proposer = header.and_then(|header| address(header.get("miner")?));
            let vanity = extra.and_then(|extra| client_of(extra.get("vanityData")?.as_str()?));
            clients.extend(proposer.zip(vanity));
        }
    }
    let active = active.into_iter().filter(|address| set.contains(address)).collect();
    Ok(Some(Validators { kind: Kind::Wbft, own, set, active, at, clients }))
}

fn clique(client: &mut Client, spec: &Spec) -> Asked<Option<Validators>> {
    let set = optional(client.call("clique_getSigners", json!([])))?.and_then(|set| addresses(&set));
    let Some(set) = set else { return Ok(None) };
    let own = optional(client.call("eth_coinbase", json!([])))?.and_then(|own| address(&own));
    let Some(own) = own else { return Ok(None) };
    let mut at = BTreeMap::new();
    for block in &spec.at {
        let then = optional(client.call("clique_getSigners", json!([format!("{block:#x}")])))?;
        at.extend(then.and_then(|set| addresses(&set)).map(|set| (*block, set)));
    }
    let status = optional(client.call("clique_status", json!([])))?;
    let active = status.map(|status| signers(&status)).unwrap_or_default();
    let active = active.into_iter().filter(|address| set.contains(address)).collect();
    Ok(Some(Validators { kind: Kind::Clique, own, set, active, at, clients: BTreeMap::new() }))
}

/// Everybody who did anything in `sealerActivity` or `author`: counts by address, of whatever depth.
fn signers(status: &Value) -> BTreeSet<String> {
    fn collect(value: &Value, found: &mut BTreeSet<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            match (address(&Value::String(key.clone())), value.as_u64()) {
                (Some(address), Some(1..)) => drop(found.insert(address)),
                (Some(_), _) => {}
                (None, _) => collect(value, found),
            }
        }
    }
    let mut found = BTreeSet::new();
    for part in ["sealerActivity", "author"] {
        collect(status.get(part).unwrap_or(&Value::Null), &mut found);
    }
    found
}

/// An address, in lower case.
fn address(value: &Value) -> Option<String> {
    let text = value.as_str()?.to_ascii_lowercase();
    let hex = text.strip_prefix("0x")?;
    (hex.len() == 40 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
}

/// A set of addresses, sorted, each once.
fn addresses(value: &Value) -> Option<Vec<String>> {
    let all = value.as_array().filter(|all| !all.is_empty() && all.len() <= SET_MAX)?;
    let set: BTreeSet<String> = all.iter().map(address).collect::<Option<_>>()?;
    Some(set.into_iter().collect())
}

/// The head of another node of the chain, the first that answers; nothing is decided upon it but how long a start is held.
pub fn reference_head(addresses: &[Address]) -> Result<u64> {
    let mut reasons = Vec::new();
    for address in addresses {
        let asked = Client::connect(address).and_then(|mut client| client.call("eth_blockNumber", json!([])));
        match asked.map(|head| quantity(&head)) {
            Ok(Some(head)) => return Ok(head),
            Ok(None) => reasons.push(format!("{address}: eth_blockNumber gave no number")),
            Err(failure) => reasons.push(format!("{address}: {failure}")),
        }
    }
    Err(Error::failed(reasons.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(n: u8) -> String {
        format!("0x{n:040x}")
    }

    #[test]
    fn who_signed_is_read_from_every_form_of_the_status() {
        let (a, b, c) = (named(1), named(2), named(3));
        let newer = json!({
            "sealerActivity": {"total": {&a: 9}, "prepared": {&a: 3}, "committed": {}, "prevCommitted": {&b: 1}},
            "author": {&c: 1}, "blockRange": {"startBlock": 1, "endBlock": 8, "totalBlocks": 8}
        });
        assert_eq!(signers(&newer), BTreeSet::from([a.clone(), b.clone(), c]));
        // Older builds, and clique; who is listed with 0 did nothing.
        let older = json!({"sealerActivity": {&a: 4, &b: 0}, "numBlocks": 64});
        assert_eq!(signers(&older), BTreeSet::from([a]));
        for none in [json!(null), json!([]), json!({"sealerActivity": 7}), json!({"author": {"x": 1}})] {
            assert!(signers(&none).is_empty(), "{none}");
        }
    }

    #[test]
    fn who_signed_is_read_from_what_a_real_client_answers() {
        // gstable 1.0.1, where the fourth one was down in these blocks.
        let [a, b, c, d] = [
            "0x1563915e194d8cfba1943570603f7606a3115508",
            "0x19e7e376e7c213b7e7e7e46cc70a5dd086daff2a",
            "0x5cbdd86a2fa8dc4bddd8a8f69dba48572eec07fb",
            "0x7564105e977516c53be337314c7e53838967bdac",
        ];
        let seals = json!({a: 8, b: 8, c: 8, d: 0});
        let status = json!({
            "sealerActivity": {
                "total": {a: 32, b: 32, c: 32, d: 0},
                "prepared": seals, "committed": seals, "prevPrepared": seals, "prevCommitted": seals
            },
            "author": {a: 2, b: 3, c: 3, d: 0},
            "blockRange": {"startBlock": 107, "endBlock": 114, "totalBlocks": 8},
            "roundStats": {"roundDistribution": {"0": 6, "1": 2}, "totalRounds": 2}
        });
        assert_eq!(signers(&status), BTreeSet::from([a, b, c].map(str::to_owned)));
    }

    #[test]
    fn a_set_is_sorted_and_lower_case_and_nothing_else_is_one() {
        let upper = format!("0x{}", "AB".repeat(20));
        assert_eq!(addresses(&json!([upper, named(1)])), Some(vec![named(1), upper.to_lowercase()]));
        for none in [json!([]), json!(["0x1"]), json!([7]), json!({}), json!([format!("0x{}", "g".repeat(40))])] {
            assert_eq!(addresses(&none), None, "{none}");
        }
    }
}
