//! What happened in a mock network, read from the files that its nodes keep, and how it measures up: which rounds failed
//! because a validator was down, how many were down at a time, whether one signed twice. The rolling example and the tests
//! share it; it only reads. [`Trace::table`] shows it to a person.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::ledger::{Block, CHAIN, Network, read_chain, slack};

/// All of it, up to the moment of reading.
pub struct Trace {
    pub network: Network,
    /// The longest chain that a node has, from block 1 on.
    pub blocks: Vec<Block>,
    pub nodes: Vec<Life>,
}

/// What one node has written down.
pub struct Life {
    pub blocks: Vec<Block>,
    /// The lines of its journal, in words.
    pub journal: Vec<Vec<String>>,
    /// When it was down.
    pub downs: Vec<Down>,
}

/// From the TERM (or, after a KILL, from the last sign of life) until the first vote after the next start, in Unix
/// milliseconds; an end that has not come yet is the end of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Down {
    pub from: u64,
    pub until: u64,
}

/// What a node signed.
#[derive(Clone, Debug, PartialEq)]
pub struct Vote {
    pub kind: String,
    pub height: u64,
    pub round: u64,
    pub hash: String,
    pub release: String,
    pub time: u64,
}

impl Life {
    fn read(datadir: &Path) -> Life {
        let text = fs::read_to_string(datadir.join("mock.journal")).unwrap_or_default();
        let journal: Vec<Vec<String>> = text.lines().map(words).filter(|line| whole(line)).collect();
        Life { blocks: read_chain(&datadir.join("geth").join(CHAIN)), downs: downs(&journal), journal }
    }

    /// The highest block that it has.
    pub fn head(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.number)
    }

    /// The lines of one kind.
    pub fn events(&self, kind: &str) -> Vec<&[String]> {
        self.journal.iter().filter(|line| line[0] == kind).map(Vec::as_slice).collect()
    }

    /// All its signatures, oldest first.
    pub fn votes(&self) -> Vec<Vote> {
        let number = |word: &str| word.parse().unwrap_or(0);
        let vote = |line: &[String]| Vote {
            kind: line[4].clone(),
            height: number(&line[5]),
            round: number(&line[6]),
            hash: line[7].clone(),
            release: line[2].clone(),
            time: number(&line[3]),
        };
        self.events("vote").into_iter().map(vote).collect()
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// What whoever kills a node writes into its journal for it: nothing else tells when that was.
pub const KILLED: &str = "killed";

/// A line that a KILL cut, or that is being written.
fn whole(line: &[String]) -> bool {
    line.len() >= if line[0] == "vote" { 8 } else { 4 }
}

/// The time of a journal line. A signal's name stands before the rest.
fn time(line: &[String]) -> u64 {
    let place = if line[0] == "sig" { 4 } else { 3 };
    line.get(place).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn downs(journal: &[Vec<String>]) -> Vec<Down> {
    let mut all = Vec::new();
    let (mut since, mut started, mut last) = (None, false, None);
    for line in journal {
        match line[0].as_str() {
            "term" | "die" | "stop" | KILLED => {
                since = since.or(Some(time(line)));
                started = false;
            }
            "start" => {
                since = since.or(last);
                started = true;
            }
            "vote" if started => {
                all.extend(since.take().map(|from| Down { from, until: time(line) }));
            }
            _ => {}
        }
        last = Some(time(line));
    }
    all.extend(since.map(|from| Down { from, until: u64::MAX }));
    all
}

impl Trace {
    /// Reads what the nodes with these data directories have, in the order of the network's members.
    pub fn read(network: &Network, datadirs: &[PathBuf]) -> Trace {
        let nodes: Vec<Life> = datadirs.iter().map(|dir| Life::read(dir)).collect();
        let blocks = nodes.iter().map(|node| &node.blocks).max_by_key(|blocks| blocks.len()).cloned();
        Trace { network: network.clone(), blocks: blocks.unwrap_or_default(), nodes }
    }

    /// The highest block that anybody has.
    pub fn head(&self) -> u64 {
        self.blocks.last().map_or(0, |block| block.number)
    }

    pub fn block(&self, number: u64) -> Option<&Block> {
        self.blocks.get(usize::try_from(number).ok()?.checked_sub(1)?)
    }

    /// Which of the members that were to sign a block were down while it was in the making.
    pub fn down_for(&self, number: u64) -> BTreeSet<usize> {
        let begun = self.block(number - 1).map_or(0, |parent| parent.time_ms);
        let ended = self.block(number + 1).map_or(u64::MAX, |next| next.time_ms);
        let was_down = |i: &usize| self.nodes[*i].downs.iter().any(|down| down.from < ended && down.until > begun);
        self.set(number).into_iter().filter(was_down).collect()
    }

    fn set(&self, number: u64) -> Vec<usize> {
        self.network.set(number).iter().filter_map(|address| self.network.index(address)).collect()
    }

    /// How many rounds of a block failed because its proposers were down, or too many others. What else failed is the
    /// slowness of the machine.
    pub fn rounds_lost(&self, number: u64) -> u64 {
        let (Some(block), Some(parent)) = (self.block(number), self.block(number.saturating_sub(1))) else { return 0 };
        let down = self.down_for(number);
        let no_quorum = down.len() > slack(self.set(number).len());
        let lost = |round: &u64| {
            let proposer = self.network.index(&self.network.proposer(parent, *round));
            no_quorum || proposer.is_some_and(|i| down.contains(&i))
        };
        (0..block.round).filter(lost).count() as u64
    }

    /// The blocks that needed more than one extra round because validators were down.
    pub fn held_up(&self) -> Vec<u64> {
        (1..=self.head()).filter(|number| self.rounds_lost(*number) > 1).collect()
    }

    /// The most validators that were down at a time, counting at each block those that were to sign it.
    pub fn most_down(&self) -> usize {
        let at_once = |number: u64| {
            let set = self.set(number);
            let begun = self.block(number - 1).map_or(0, |parent| parent.time_ms);
            let ended = self.block(number).map_or(u64::MAX, |block| block.time_ms);
            let is_down = |i: &&usize, at: u64| self.nodes[**i].downs.iter().any(|d| d.from <= at && at < d.until);
            let count = |at: u64| set.iter().filter(|i| is_down(i, at)).count();
            // The number grows only where one goes down.
            let falls = set.iter().flat_map(|i| &self.nodes[*i].downs).map(|down| down.from);
            falls.filter(|at| (begun..ended).contains(at)).chain([begun]).map(count).max().unwrap_or(0)
        };
        (1..=self.head() + 1).map(at_once).max().unwrap_or(0)
    }

    /// The blocks before which fewer than a quorum were up at some time: the chain stood still.
    pub fn halts(&self) -> Vec<u64> {
        let mut falls: Vec<u64> = self.nodes.iter().flat_map(|node| &node.downs).map(|down| down.from).collect();
        falls.sort_unstable();
        let halted = |at: &u64| {
            let number = self.blocks.iter().find(|block| block.time_ms > *at).map_or(self.head() + 1, |b| b.number);
            let set = self.set(number);
            let down = |i: &&usize| self.nodes[**i].downs.iter().any(|d| d.from <= *at && *at < d.until);
            (set.iter().filter(down).count() > slack(set.len())).then_some(number)
        };
        let numbers: BTreeSet<u64> = falls.iter().filter_map(halted).collect();
        numbers.into_iter().collect()
    }

    /// Whoever signed two blocks at one height and round, as told to a person.
    pub fn double_votes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let mut signed: BTreeMap<(String, u64, u64), String> = BTreeMap::new();
            for vote in node.votes() {
                let first = signed.entry((vote.kind.clone(), vote.height, vote.round)).or_insert(vote.hash.clone());
                if *first != vote.hash {
                    let (kind, height, round) = (&vote.kind, vote.height, vote.round);
                    found.push(format!("validator {index}: {kind} at height {height}, round {round}"));
                }
            }
        }
        found
    }

    /// The block that a member signed first under a release.
    pub fn first_vote(&self, member: usize, release: &str) -> Option<u64> {
        self.nodes[member].votes().iter().find(|vote| vote.release == release).map(|vote| vote.height)
    }

    /// The last one that it signed under a release.
    pub fn last_vote(&self, member: usize, release: &str) -> Option<u64> {
        self.nodes[member].votes().iter().filter(|vote| vote.release == release).map(|vote| vote.height).max()
    }

    /// Two tables: per block round and signers, blocks that are alike in one row; per validator when it was down.
    pub fn table(&self) -> String {
        let mut text = String::from("  block      round  signers     proposed by  of release  down meanwhile\n");
        let mut rows: Vec<(u64, u64, String)> = Vec::new();
        for block in &self.blocks {
            let mark =
                |i: &usize| if block.committers.contains(&self.network.members[*i].address) { mark(*i) } else { '.' };
            let signers: String = self.set(block.number).iter().map(mark).collect();
            let down: Vec<String> = self.down_for(block.number).iter().map(usize::to_string).collect();
            let author = self.network.index(&block.author).map_or("?".to_owned(), |i| i.to_string());
            let author = if block.round > 0 { author } else { "in turn".to_owned() };
            let told =
                format!("{:>5}  {signers:<10}  {author:<11}  {:<10}  {}", block.round, block.version, down.join(" "));
            match rows.last_mut() {
                Some((_, last, same)) if *same == told && block.round == 0 => *last = block.number,
                _ => rows.push((block.number, block.number, told)),
            }
        }
        for (first, last, told) in rows {
            let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
            let _ = writeln!(text, "  {range:<9}  {}", told.trim_end());
        }
        text += "\n  validator  down from block  to block   for\n";
        for (index, node) in self.nodes.iter().enumerate() {
            let at = |time: u64| self.blocks.iter().take_while(|block| block.time_ms <= time).count();
            for down in &node.downs {
                let (until, time) = match down.until {
                    u64::MAX => ("-".to_owned(), "still".to_owned()),
                    until => (at(until).to_string(), format!("{:.1} s", (until - down.from) as f64 / 1000.0)),
                };
                let _ = writeln!(text, "  {:<9}  {:<15}  {until:<9}  {time}", mark(index), at(down.from));
            }
        }
        text
    }
}

/// A validator in one letter.
fn mark(index: usize) -> char {
    char::from_digit(index as u32, 36).unwrap_or('?')
}
