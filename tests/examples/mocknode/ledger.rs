//! What the validators of a mock network agree on, as it lies on disk: the network file, which every node is given, and
//! the chain, one block a line. The node writes them and lives by them; tests and the rolling example write the file and
//! read the chain. It owns the arithmetic of the set (who proposes, how many make a quorum) and talks to nobody.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A decided block. Neither round nor signers are part of its hash, as with WBFT.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Block {
    pub number: u64,
    pub hash: String,
    pub parent: String,
    /// When it was proposed; RPC tells whole seconds of it.
    pub time_ms: u64,
    /// Who proposed it first.
    pub author: String,
    /// The round in which it was decided: so many rounds failed before.
    pub round: u64,
    /// Whose commits the decider had.
    pub committers: Vec<String>,
    /// The version of the author's node.
    pub version: String,
    /// In an epoch block, the set of the blocks that follow.
    pub next: Option<Vec<String>>,
}

impl Block {
    /// The hash that its content has.
    pub fn seal(mut self) -> Block {
        let next = self.next.as_ref().map(|set| set.join(",")).unwrap_or_default();
        let (number, time) = (self.number.to_string(), self.time_ms.to_string());
        let parts = ["block", &self.parent, &number, &time, &self.author, &self.version, &next];
        self.hash = format!("0x{}", sha(&parts));
        self
    }
}

/// The network file: what a genesis file says, and where the others listen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Network {
    pub period_ms: u64,
    /// The timeout of round 0; each further round has twice the time of the one before.
    pub request_timeout_ms: u64,
    /// Blocks in an epoch. Its last block names the set of the next one.
    pub epoch: u64,
    /// All that take part, validators or not; others are followers.
    pub members: Vec<Member>,
    /// The validators from a block on, in proposer order; the first set is the genesis block's.
    pub sets: Vec<Set>,
}

/// One node of the network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    pub address: String,
    /// Where it listens, over UDP.
    pub at: SocketAddr,
}

/// The validators from a block on, by their place among the members.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Set {
    pub from: u64,
    pub members: Vec<usize>,
}

impl Network {
    /// A network of `count` validators whose node keys are [`key`] 0, 1, … It has a loopback address of its own, by which
    /// no two networks on a machine meet: `number` tells those of one process apart.
    pub fn new(count: usize, number: u32, period: Duration, request_timeout: Duration) -> Network {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, high.wrapping_add(1).max(1), low, (number % 250) as u8 + 1);
        let at = |index: usize| SocketAddr::from((address, 30_300 + index as u16));
        let members = (0..count).map(|index| Member { address: address_of(&key(index)), at: at(index) }).collect();
        Network {
            period_ms: period.as_millis() as u64,
            request_timeout_ms: request_timeout.as_millis() as u64,
            epoch: 20,
            members,
            sets: vec![Set { from: 1, members: (0..count).collect() }],
        }
    }

    /// Another set from the first block of an epoch on.
    pub fn then(mut self, from: u64, members: &[usize]) -> Network {
        assert!((from - 1).is_multiple_of(self.epoch), "a set changes after the last block of an epoch");
        self.sets.push(Set { from, members: members.to_vec() });
        self
    }

    pub fn read(path: &Path) -> io::Result<Network> {
        serde_json::from_slice(&fs::read(path)?).map_err(io::Error::from)
    }

    /// For who starts the nodes: a node never writes it.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_vec_pretty(self)?)
    }

    /// Who is to sign this block, in proposer order. Block 0 has the first set, as with geth.
    pub fn set(&self, number: u64) -> Vec<String> {
        let set = self.sets.iter().rev().find(|set| set.from <= number.max(1));
        let members = set.map(|set| set.members.as_slice()).unwrap_or_default();
        members.iter().filter_map(|index| self.members.get(*index)).map(|member| member.address.clone()).collect()
    }

    /// Which member has this address.
    pub fn index(&self, address: &str) -> Option<usize> {
        self.members.iter().position(|member| member.address == address)
    }

    /// Who proposes the block after this one in that round: the one after the last author, and one further each round.
    pub fn proposer(&self, parent: &Block, round: u64) -> String {
        let set = self.set(parent.number + 1);
        let first = set.iter().position(|address| *address == parent.author).map_or(0, |index| index as u64 + 1);
        set[((first + round) % set.len() as u64) as usize].clone()
    }

    /// The set that an epoch block names; none in other blocks.
    pub fn named(&self, number: u64) -> Option<Vec<String>> {
        (number.is_multiple_of(self.epoch)).then(|| self.set(number + 1))
    }

    /// How long a round lasts.
    pub fn timeout(&self, round: u64) -> Duration {
        let factor = 1u64.checked_shl(round.min(62) as u32).unwrap_or(u64::MAX);
        Duration::from_millis(self.request_timeout_ms.saturating_mul(factor))
    }

    pub fn period(&self) -> Duration {
        Duration::from_millis(self.period_ms)
    }
}

/// How many of `n` may be down.
pub fn slack(n: usize) -> usize {
    n.saturating_sub(1) / 3
}

/// How many of `n` must sign.
pub fn quorum(n: usize) -> usize {
    n - slack(n)
}

/// The node key of a member, to be put into its `nodekey` file.
pub fn key(index: usize) -> String {
    sha(&["network key", &index.to_string()])
}

/// The validator address that follows from a node key.
pub fn address_of(key: &str) -> String {
    format!("0x{}", &sha(&["address", key])[..40])
}

/// The file of the chain, below the instance directory. The genesis block is not in it.
pub const CHAIN: &str = "chaindata/blocks";

/// All whole blocks of a chain file, oldest first. A line that was cut by a KILL ends it.
pub fn read_chain(path: &Path) -> Vec<Block> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()
}

pub fn sha(parts: &[&str]) -> String {
    hex(&Sha256::digest(parts.join("/").as_bytes()))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
