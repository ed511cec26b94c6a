//! A validator among others: the consensus of a WBFT network in miniature, over UDP on loopback.
//!
//! In lock step: the proposer of a round sends its block to all, they answer by PREPARE; with a quorum of these it says so,
//! they answer by COMMIT; with a quorum of these the block is decided, and the proposer sends it to all with their names.
//! A round that ends without a block is followed by one with the next proposer and twice the time. The new proposer needs a
//! quorum that has come to its round, and proposes again what one of them saw prepared. Who hears of a higher round from
//! more than may fail goes there at once. That is QBFT without forged messages: nobody lies here, so nobody proves.
//!
//! As in the real node, nothing of it is on disk but decided blocks: who comes back starts at round 0 and has forgotten what
//! it signed. Every vote is written to the mock's journal before it is sent, for tests to find whoever signed twice.
//!
//! It owns the chain of this node, in memory and in its file, and reads of [`Node`] what it was told to be. One thread does
//! it all; RPC looks at the chain under its lock.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::ledger::{self, Block, Network, quorum, slack};
use super::{Config, Node, Phase, fatal, info, locked, unix_ms, warn};

/// How soon a stop is noticed.
const GLANCE: Duration = Duration::from_millis(100);

/// Who was not heard for so long is no peer.
const SILENCE: Duration = Duration::from_secs(5);

/// Blocks in one datagram, which holds 64 KiB.
const BATCH: usize = 16;

/// The chain as RPC and consensus see it.
pub struct Chain {
    pub network: Network,
    /// This node's place among the members.
    me: usize,
    shared: Mutex<Shared>,
}

struct Shared {
    /// Its place is a block's number.
    blocks: Vec<Block>,
    heard: Vec<Option<Instant>>,
}

/// What goes over the wire.
#[derive(Serialize, Deserialize)]
struct Letter {
    from: usize,
    message: Message,
}

#[derive(Clone, Serialize, Deserialize)]
enum Message {
    /// Where a node stands, sent now and then and at each change of round: for a round above 0 it is its ROUND-CHANGE.
    Stand(Stand),
    /// The parent goes along, for whom its decision has not reached yet.
    Propose {
        round: u64,
        block: Block,
        parent: Block,
    },
    Prepare(Vote),
    /// There is a quorum of PREPAREs.
    Prepared(Vote),
    Commit(Vote),
    Blocks(Vec<Block>),
    /// Asks for the blocks from here on.
    Ask(u64),
}

#[derive(Clone, Serialize, Deserialize)]
struct Stand {
    head: u64,
    round: u64,
    prepared: Option<(u64, Block)>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Vote {
    height: u64,
    round: u64,
    hash: String,
}

impl Chain {
    /// Reads the network file and what this node has of the chain.
    pub fn open(config: &Config, network: Network, address: &str, genesis: &str) -> io::Result<Chain> {
        let none = || io::Error::other(format!("{address} is not in the network file"));
        let me = network.index(address).ok_or_else(none)?;
        let path = config.instance.join(ledger::CHAIN);
        let mut blocks = vec![Block {
            number: 0,
            hash: genesis.to_owned(),
            parent: format!("0x{:064}", 0),
            time_ms: 0,
            author: format!("0x{:040}", 0),
            round: 0,
            committers: Vec::new(),
            version: String::new(),
            next: Some(network.set(1)),
        }];
        let stored = ledger::read_chain(&path);
        let kept = stored.len().saturating_sub(config.rewind as usize);
        blocks.extend(stored.into_iter().take(kept));
        let heard = vec![None; network.members.len()];
        rewrite(config, &blocks)?;
        Ok(Chain { network, me, shared: Mutex::new(Shared { blocks, heard }) })
    }

    pub fn block(&self, number: u64) -> Option<Block> {
        locked(&self.shared).blocks.get(number as usize).cloned()
    }

    pub fn head(&self) -> Block {
        let shared = locked(&self.shared);
        shared.blocks[shared.blocks.len() - 1].clone()
    }

    /// Who was heard lately.
    pub fn peers(&self) -> u64 {
        let recent = |heard: &&Option<Instant>| heard.is_some_and(|at| at.elapsed() < SILENCE);
        locked(&self.shared).heard.iter().filter(recent).count() as u64
    }
}

/// The chain file anew: without what was cut off by a KILL or given up.
fn rewrite(config: &Config, blocks: &[Block]) -> io::Result<()> {
    let mut text = String::new();
    for block in &blocks[1..] {
        text += &format!("{}\n", serde_json::to_string(block)?);
    }
    let path = config.instance.join(ledger::CHAIN);
    let new = path.with_extension("tmp");
    fs::write(&new, text)?;
    fs::rename(new, path)
}

/// Takes part until the node stops. The socket is open only while it does.
pub fn take_part(node: &Arc<Node>, chain: &Arc<Chain>) {
    let at = chain.network.members[chain.me].at;
    let socket = UdpSocket::bind(at)
        .unwrap_or_else(|e| fatal(&format!("Error starting protocol stack: listen udp {at}: bind: {e}")));
    let now = Instant::now();
    let mut validator = Validator {
        node,
        chain,
        socket,
        head: chain.head(),
        due: now,
        round: 0,
        deadline: now,
        proposal: None,
        voted: Vec::new(),
        prepared: None,
        prepares: BTreeSet::new(),
        commits: BTreeSet::new(),
        enough_since: None,
        stands: vec![None; chain.network.members.len()],
        next_word: now,
        asked: None,
    };
    info("WBFT: start", format_args!("address={} head={}", validator.address(), validator.head.number));
    validator.new_height();
    let mut datagram = vec![0; 65_536];
    loop {
        match node.phase() {
            Phase::Stopping => return,
            Phase::Hung => {
                node.wait_until(Instant::now() + Duration::from_secs(3600));
                continue;
            }
            Phase::Starting | Phase::Running => {}
        }
        let pause = validator.wakes_at().saturating_duration_since(Instant::now());
        let pause = pause.clamp(Duration::from_millis(1), GLANCE);
        // Neither a timeout nor a peer that is gone is an error.
        let got = validator.socket.set_read_timeout(Some(pause)).and_then(|()| validator.socket.recv(&mut datagram));
        // It may have slept while a stop or a hang began.
        if node.phase() != Phase::Running {
            continue;
        }
        let quiet = got.is_err();
        if let Some(letter) = got.ok().and_then(|size| serde_json::from_slice::<Letter>(&datagram[..size]).ok()) {
            validator.receive(letter);
        }
        validator.act(quiet);
    }
}

struct Validator<'a> {
    node: &'a Arc<Node>,
    chain: &'a Arc<Chain>,
    socket: UdpSocket,
    /// The last decided block; the others are about the one after it.
    head: Block,
    /// When the next block may be proposed.
    due: Instant,
    round: u64,
    deadline: Instant,
    /// The block of this round.
    proposal: Option<Block>,
    /// What was signed at this height: kind and vote.
    voted: Vec<(&'static str, Vote)>,
    /// What a quorum was seen to be ready for, and in which round; it outlives the round.
    prepared: Option<(u64, Block)>,
    /// What the proposer collects.
    prepares: BTreeSet<usize>,
    commits: BTreeSet<usize>,
    enough_since: Option<Instant>,
    /// What each member told last.
    stands: Vec<Option<Stand>>,
    next_word: Instant,
    asked: Option<Instant>,
}

impl Validator<'_> {
    fn network(&self) -> &Network {
        &self.chain.network
    }

    fn address(&self) -> &str {
        &self.network().members[self.chain.me].address
    }

    fn height(&self) -> u64 {
        self.head.number + 1
    }

    /// The members that are to sign the next block.
    fn set(&self) -> Vec<usize> {
        let network = self.network();
        network.set(self.height()).iter().filter_map(|address| network.index(address)).collect()
    }

    fn proposer(&self) -> usize {
        let network = self.network();
        network.index(&network.proposer(&self.head, self.round)).unwrap_or(usize::MAX)
    }

    /// Whether this node signs the next block: a validator of its set, told to mine, that knows the rules of this height.
    fn signs(&self) -> bool {
        self.node.config.mine && self.height() <= self.node.config.halt_at && self.set().contains(&self.chain.me)
    }

    /// A network that has no block yet waits until all its validators were there; later nobody waits.
    fn begun(&self) -> bool {
        let set = self.set();
        self.head.number > 0 || set.iter().all(|i| *i == self.chain.me || self.stands[*i].is_some())
    }

    fn wakes_at(&self) -> Instant {
        let mut at = self.next_word.min(self.deadline);
        if self.proposal.is_none() && self.due > Instant::now() {
            at = at.min(self.due);
        }
        if let Some(since) = self.enough_since {
            at = at.min(since + self.patience());
        }
        at
    }

    /// How long the proposer waits for more commits than it needs.
    fn patience(&self) -> Duration {
        self.network().period() / 2
    }

    // ---- What it says

    fn send(&self, to: usize, message: Message) {
        let letter = Letter { from: self.chain.me, message };
        if let (Ok(text), Some(member)) = (serde_json::to_vec(&letter), self.network().members.get(to)) {
            // Who is down hears nothing.
            let _ = self.socket.send_to(&text, member.at);
        }
    }

    fn tell_all(&self, message: &Message) {
        for to in (0..self.network().members.len()).filter(|to| *to != self.chain.me) {
            self.send(to, message.clone());
        }
    }

    fn stand(&self) -> Stand {
        let (head, prepared) = (self.head.number, self.prepared.clone());
        Stand { head, round: if self.signs() { self.round } else { 0 }, prepared }
    }

    /// Now and then: what may have been lost is said again.
    fn speak(&mut self) {
        self.next_word = Instant::now() + self.network().timeout(0) / 2;
        self.tell_all(&Message::Stand(self.stand()));
        if let Some(block) = self.proposal.clone().filter(|_| self.proposer() == self.chain.me) {
            let vote = Vote { height: self.height(), round: self.round, hash: block.hash.clone() };
            self.tell_all(&Message::Propose { round: self.round, block, parent: self.head.clone() });
            if self.prepared.as_ref().is_some_and(|(round, _)| *round == self.round) {
                self.tell_all(&Message::Prepared(vote));
            }
        }
    }

    /// Signs, unless it did already: it never signs twice for one height and round in one life.
    fn sign(&mut self, kind: &'static str, vote: &Vote) -> bool {
        let signed = self.voted.iter().find(|(k, v)| *k == kind && (v.height, v.round) == (vote.height, vote.round));
        if let Some((_, signed)) = signed {
            return signed == vote;
        }
        let more = format!("{kind} {} {} {}", vote.height, vote.round, vote.hash);
        self.node.journal.write("vote", more);
        self.voted.push((kind, vote.clone()));
        true
    }

    // ---- Height and round

    fn new_height(&mut self) {
        let since_parent = unix_ms(SystemTime::now()).saturating_sub(self.head.time_ms);
        let left = self.network().period_ms.saturating_sub(since_parent);
        self.due = Instant::now() + Duration::from_millis(left);
        self.voted.clear();
        self.prepared = None;
        self.enter(0);
    }

    fn enter(&mut self, round: u64) {
        self.round = round;
        let timeout = self.network().timeout(round);
        self.deadline = self.due.max(Instant::now()) + timeout;
        self.proposal = None;
        self.prepares.clear();
        self.commits.clear();
        self.enough_since = None;
        if round > 0 {
            let height = self.height();
            self.node.journal.write("round", format_args!("{height} {round} {}", timeout.as_millis()));
            info("WBFT: start new round", format_args!("next.round={round} next.seq={height}"));
            self.tell_all(&Message::Stand(self.stand()));
        }
    }

    /// A round is over only when all is read that has come: a machine that is slow is not a proposer that is down.
    fn act(&mut self, quiet: bool) {
        let now = Instant::now();
        if now >= self.next_word {
            self.speak();
        }
        if !self.signs() || !self.begun() {
            self.deadline = now.max(self.due) + self.network().timeout(self.round);
            return;
        }
        if quiet && now >= self.deadline {
            self.enter(self.round + 1);
        }
        if self.proposer() == self.chain.me {
            if self.proposal.is_none() && now >= self.due && self.may_propose() {
                self.propose();
            }
            self.count();
        }
    }

    /// Those that stand at this height and round, this node among them.
    fn gathered(&self) -> Vec<usize> {
        let here = |stand: &Stand| (stand.head, stand.round) == (self.head.number, self.round);
        let is_here = |i: &usize| *i == self.chain.me || self.stands[*i].as_ref().is_some_and(here);
        self.set().into_iter().filter(is_here).collect()
    }

    fn may_propose(&self) -> bool {
        self.round == 0 || self.gathered().len() >= quorum(self.set().len())
    }

    /// Anew, or what was prepared in the highest round that one of those who came here tells of.
    fn propose(&mut self) {
        let gathered = self.gathered();
        let told = gathered.iter().filter_map(|i| self.stands[*i].as_ref()?.prepared.clone());
        let block = match self.prepared.clone().into_iter().chain(told).max_by_key(|(round, _)| *round) {
            Some((_, block)) => block,
            None => Block {
                number: self.height(),
                hash: String::new(),
                parent: self.head.hash.clone(),
                time_ms: unix_ms(SystemTime::now()).max(self.head.time_ms + 1),
                author: self.address().to_owned(),
                round: self.round,
                committers: Vec::new(),
                version: self.node.config.version.clone(),
                next: self.network().named(self.height()),
            }
            .seal(),
        };
        let vote = Vote { height: self.height(), round: self.round, hash: block.hash.clone() };
        if self.sign("prepare", &vote) {
            self.prepares.insert(self.chain.me);
            self.proposal = Some(block.clone());
            self.tell_all(&Message::Propose { round: self.round, block, parent: self.head.clone() });
        }
    }

    /// The proposer's next step, as soon as there are votes enough.
    fn count(&mut self) {
        let Some(mut block) = self.proposal.clone() else { return };
        let set = self.set();
        let vote = Vote { height: self.height(), round: self.round, hash: block.hash.clone() };
        let announced = self.prepared.as_ref().is_some_and(|(round, _)| *round == self.round);
        if !announced && self.prepares.len() >= quorum(set.len()) && self.sign("commit", &vote) {
            self.prepared = Some((self.round, block.clone()));
            self.commits.insert(self.chain.me);
            self.tell_all(&Message::Prepared(vote));
        }
        if self.commits.len() < quorum(set.len()) {
            return;
        }
        let since = *self.enough_since.get_or_insert_with(Instant::now);
        if self.commits.len() == set.len() || since.elapsed() >= self.patience() {
            block.round = self.round;
            block.committers =
                set.iter().filter(|i| self.commits.contains(i)).map(|i| self.member(*i).to_owned()).collect();
            // First to the others: who is killed now has not kept it for itself.
            self.tell_all(&Message::Blocks(vec![block.clone()]));
            self.append(block);
        }
    }

    fn member(&self, index: usize) -> &str {
        &self.network().members[index].address
    }

    // ---- What it hears

    fn receive(&mut self, letter: Letter) {
        let from = letter.from;
        if from >= self.stands.len() || from == self.chain.me {
            return;
        }
        locked(&self.chain.shared).heard[from] = Some(Instant::now());
        match letter.message {
            Message::Stand(stand) => self.heard_of(from, stand),
            Message::Propose { round, block, parent } => {
                self.take_in(from, vec![parent]);
                self.proposed(from, round, block);
            }
            Message::Prepared(vote) => {
                let block = self.proposal.clone().filter(|block| block.hash == vote.hash);
                if let Some(block) = block.filter(|_| from == self.proposer() && self.is_here(&vote) && self.signs())
                    && self.sign("commit", &vote)
                {
                    self.prepared = Some((vote.round, block));
                    self.send(from, Message::Commit(vote));
                }
            }
            Message::Prepare(vote) if self.is_mine(&vote) => {
                self.prepares.insert(from);
            }
            Message::Commit(vote) if self.is_mine(&vote) => {
                self.commits.insert(from);
            }
            Message::Prepare(_) | Message::Commit(_) => {}
            Message::Blocks(blocks) => self.take_in(from, blocks),
            Message::Ask(number) => {
                let shared = locked(&self.chain.shared);
                let wanted: Vec<Block> =
                    shared.blocks.iter().skip(number.max(1) as usize).take(BATCH).cloned().collect();
                drop(shared);
                self.send(from, Message::Blocks(wanted));
            }
        }
    }

    /// Whether a vote is for this height and round.
    fn is_here(&self, vote: &Vote) -> bool {
        (vote.height, vote.round) == (self.height(), self.round)
    }

    /// Whether it is for what this node proposes.
    fn is_mine(&self, vote: &Vote) -> bool {
        let proposal = self.proposal.as_ref().is_some_and(|block| block.hash == vote.hash);
        proposal && self.is_here(vote) && self.proposer() == self.chain.me
    }

    fn heard_of(&mut self, from: usize, stand: Stand) {
        let ahead = stand.head > self.head.number;
        self.stands[from] = Some(stand);
        if ahead {
            self.ask(from, self.height());
            return;
        }
        if !self.signs() {
            return;
        }
        // Somebody who is up is there, when more stand there than may fail.
        let set = self.set();
        let stands = set.iter().filter_map(|i| self.stands[*i].as_ref()).filter(|s| s.head == self.head.number);
        let mut rounds: Vec<u64> = stands.map(|stand| stand.round).collect();
        rounds.sort_unstable_by_key(|round| std::cmp::Reverse(*round));
        if let Some(round) = rounds.get(slack(set.len())).filter(|round| **round > self.round) {
            self.enter(*round);
        }
    }

    fn proposed(&mut self, from: usize, round: u64, block: Block) {
        if !self.signs() || block.parent != self.head.hash || round < self.round {
            return;
        }
        if self.network().index(&self.network().proposer(&self.head, round)) != Some(from) {
            return;
        }
        // Who proposes has the word of a quorum for this round.
        if round > self.round {
            self.enter(round);
        }
        let vote = Vote { height: self.height(), round, hash: block.hash.clone() };
        if self.sign("prepare", &vote) {
            self.proposal = Some(block);
            self.send(from, Message::Prepare(vote));
        }
    }

    fn ask(&mut self, whom: usize, number: u64) {
        let now = Instant::now();
        if number <= self.node.config.halt_at && self.asked.is_none_or(|at| now >= at + GLANCE) {
            self.asked = Some(now);
            self.send(whom, Message::Ask(number));
        }
    }

    /// Decided blocks: those that fit are taken, for others is asked.
    fn take_in(&mut self, from: usize, blocks: Vec<Block>) {
        let full = blocks.len() == BATCH;
        for block in blocks {
            if block.number < self.height() || block.number > self.node.config.halt_at {
                continue;
            }
            if block.number > self.height() {
                self.ask(from, self.height());
            } else if block.parent == self.head.hash {
                self.append(block);
            } else {
                self.give_up();
            }
        }
        if full {
            self.asked = None;
            self.ask(from, self.height());
        }
    }

    fn append(&mut self, block: Block) {
        let config = &self.node.config;
        let line = format!("{}\n", serde_json::to_string(&block).unwrap_or_default());
        let opened = OpenOptions::new().append(true).open(config.instance.join(ledger::CHAIN));
        if let Err(e) = opened.and_then(|mut file| file.write_all(line.as_bytes())) {
            fatal(&format!("Failed to write the chain: {e}"));
        }
        locked(&self.chain.shared).blocks.push(block.clone());
        info("Imported new chain segment", format_args!("number={} hash={}", block.number, block.hash));
        self.now_at(block);
    }

    /// A decided block that nobody else has: those who signed it came back without memory of it, and decided another one.
    fn give_up(&mut self) {
        let mut shared = locked(&self.chain.shared);
        if shared.blocks.len() < 2 {
            return;
        }
        shared.blocks.pop();
        if let Err(e) = rewrite(&self.node.config, &shared.blocks) {
            fatal(&format!("Failed to write the chain: {e}"));
        }
        let head = shared.blocks[shared.blocks.len() - 1].clone();
        drop(shared);
        warn(
            "Two blocks were decided at one height",
            format_args!("number={} hash={}", self.height() - 1, self.head.hash),
        );
        self.node.journal.write("reorg", self.head.number);
        self.asked = None;
        self.now_at(head);
    }

    fn now_at(&mut self, head: Block) {
        let mut state = locked(&self.node.state);
        (state.head, state.head_time) = (head.number, UNIX_EPOCH + Duration::from_millis(head.time_ms));
        if let Err(e) = self.node.save(&state) {
            fatal(&format!("Failed to write the head: {e}"));
        }
        drop(state);
        self.head = head;
        self.new_height();
        if self.node.config.die_at.is_some_and(|(at, _)| self.head.number >= at) {
            self.node.die(self.node.config.die_at.map_or(1, |(_, code)| code));
        }
    }
}
