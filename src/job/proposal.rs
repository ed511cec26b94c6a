//! Waits until no block is about to be proposed by this validator. Nothing of a WBFT node's consensus state is on disk, and it
//! proposes as soon as it runs where it is in turn for the block after its head: one that ended with a proposal of its own
//! under way comes back behind that block, and signs another proposal for it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::probe::stranger;
use super::rpc::{Client, Failure, quantity};
use crate::config::Address;
use crate::error::{Error, Result};
use crate::home::Home;

/// How often the head is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// For so many blocks it is to be another's turn: for those that are decided until it has ended, and the one after them.
pub const CLEAR_BLOCKS: usize = 3;

/// Whom to ask, and how long to wait.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The node's addresses, in the order in which they are tried.
    pub addresses: Vec<Address>,
    /// How long is waited at most.
    pub patience: Duration,
}

/// Waits for it at the first address that answers. False: it did not come in time.
pub fn wait(home: &Home, spec: &Spec) -> Result<bool> {
    let until = Instant::now() + spec.patience;
    let mut reasons = Vec::new();
    for address in &spec.addresses {
        match wait_at(home, address, until) {
            Ok(came) => return Ok(came),
            Err(failure) => reasons.push(format!("{address}: {failure}")),
        }
    }
    Err(Error::failed(reasons.join("; ")))
}

fn wait_at(home: &Home, address: &Address, until: Instant) -> std::result::Result<bool, Failure> {
    let mut client = Client::connect(address)?;
    let own = client.call("istanbul_nodeAddress", json!([]))?;
    if let Some(why) = stranger(home, address, &client) {
        return Err(Failure::Silent(why));
    }
    let mut seen = None;
    loop {
        let block = client.call("eth_getBlockByNumber", json!(["latest", false]))?;
        let number = block.get("number").and_then(quantity);
        if number.is_none() || number != seen {
            seen = number;
            let set = client.call("istanbul_getValidators", json!([block.get("number")]))?;
            let set: Vec<&str> = set.as_array().into_iter().flatten().filter_map(|one| one.as_str()).collect();
            let author = block.get("miner").and_then(|author| author.as_str()).unwrap_or_default();
            // After an epoch's last block another set is in turn, in another order.
            let extra = client.call("istanbul_getWbftExtraInfo", json!([block.get("number")])).unwrap_or_default();
            let ends_epoch = extra.get("epochInfo").is_some_and(|next| !next.is_null());
            if !ends_epoch && is_clear(&set, author, own.as_str().unwrap_or_default()) {
                return Ok(true);
            }
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        sleep(PAUSE);
    }
}

/// Whether the next blocks are to be proposed by others: each in the order of the set, from the one after who proposed the
/// last block. In a small set that is so when its own block was the last one.
fn is_clear(set: &[&str], author: &str, own: &str) -> bool {
    let place = |address: &str| set.iter().position(|one| one.eq_ignore_ascii_case(address));
    let (Some(author), Some(own)) = (place(author), place(own)) else { return true };
    let left = (own + set.len() - author - 1) % set.len();
    left >= CLEAR_BLOCKS.min(set.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_clear_when_the_next_blocks_are_those_of_others() {
        let clear = |count: usize, author: usize| {
            let set: Vec<String> = (0..count).map(|index| format!("0x{index}A")).collect();
            let set: Vec<&str> = set.iter().map(String::as_str).collect();
            is_clear(&set, set[author], "0x1a")
        };
        // With ten, not when the last block is one of the three before its own; with few, only after its own.
        let clear_after = |count: usize| (0..count).filter(|author| clear(count, *author)).collect::<Vec<_>>();
        assert_eq!(clear_after(10), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(clear_after(5), [1, 2]);
        assert_eq!(clear_after(4), [1]);
        assert_eq!(clear_after(3), [1]);
        assert_eq!(clear_after(2), [1]);
        // Who is not in the set proposes nothing, and of a stranger's block nothing follows.
        assert!(is_clear(&["0x1"], "0x1", "0x1") && is_clear(&["0x1", "0x2"], "0x1", "0x3"));
        assert!(is_clear(&["0x1", "0x2"], "0x3", "0x2") && is_clear(&[], "0x1", "0x1"));
    }
}
