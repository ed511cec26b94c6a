//! A file system that keeps no promise but these: what was synced is there after a crash, and a change of one name (or a
//! rename) is whole or not there. Of all else any part may be there: of the unsynced changes of a directory any, in their
//! order, whatever became of those of other directories; of the unsynced writes of a file any, each whole, half, or as
//! zeros. That is weaker than ext4, XFS and btrfs are, so that what holds here holds there.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use super::trace::Act;

/// What stands under a path of an image.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entry {
    /// A directory.
    Dir,
    /// A regular file with this content.
    File(Arc<[u8]>),
    /// A symbolic link.
    Link(String),
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Entry::Dir => f.write_str("a directory"),
            Entry::File(content) => {
                let text: String = String::from_utf8_lossy(content).chars().take(1000).collect();
                write!(f, "{text:?}")
            }
            Entry::Link(target) => write!(f, "-> {target}"),
        }
    }
}

/// What a start after a crash finds, by path relative to the directory.
pub type Image = BTreeMap<String, Entry>;

/// A generator of numbers that a seed repeats (xorshift64*, Vigna 2016).
pub struct Dice(pub u64);

impl Dice {
    /// A number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides
    }
}

/// A change that is not synced, with the number of its act.
#[derive(Clone)]
struct Pending<T> {
    number: usize,
    change: T,
}

/// Names that change together: what each stands for from now on.
type Names = Vec<(String, Option<usize>)>;

#[derive(Clone)]
enum Change {
    Write { at: Option<usize>, data: Vec<u8> },
    Resize(usize),
}

#[derive(Clone)]
enum Node {
    Dir { durable: BTreeMap<String, usize>, now: BTreeMap<String, usize>, pending: Vec<Pending<Names>> },
    File { durable: Vec<u8>, now: Vec<u8>, pending: Vec<Pending<Change>> },
    Link(String),
}

/// The directory under test: what is durable, what is not yet, and what running processes see.
#[derive(Clone)]
pub struct Disk {
    nodes: Vec<Node>,
}

const ROOT: usize = 0;

/// The most ways in which one directory's or file's unsynced changes are taken; beyond, some of them.
const WAYS: usize = 64;

impl Disk {
    /// A disk that holds an image, all of it durable.
    pub fn new(image: &Image) -> Disk {
        let mut disk = Disk { nodes: vec![Disk::dir()] };
        for (path, entry) in image {
            let node = match entry {
                Entry::Dir => Disk::dir(),
                Entry::File(content) => {
                    Node::File { durable: content.to_vec(), now: content.to_vec(), pending: Vec::new() }
                }
                Entry::Link(target) => Node::Link(target.clone()),
            };
            let number = disk.add(node);
            disk.name(0, Path::new(path), Some(number));
        }
        for number in 0..disk.nodes.len() {
            disk.sync(number, usize::MAX);
        }
        disk
    }

    fn dir() -> Node {
        Node::Dir { durable: BTreeMap::new(), now: BTreeMap::new(), pending: Vec::new() }
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let mut at = ROOT;
        for part in path.components() {
            let Component::Normal(name) = part else { panic!("no plain path: {}", path.display()) };
            let Node::Dir { now, .. } = &self.nodes[at] else { return None };
            at = *now.get(name.to_str().unwrap())?;
        }
        Some(at)
    }

    fn file(&mut self, path: &Path) -> (&mut Vec<u8>, &mut Vec<Pending<Change>>) {
        let number = self.find(path).unwrap_or_else(|| panic!("no file {}", path.display()));
        match &mut self.nodes[number] {
            Node::File { now, pending, .. } => (now, pending),
            Node::Dir { .. } | Node::Link(_) => panic!("{} is no file", path.display()),
        }
    }

    /// Lets names of one directory stand for something else.
    fn rename(&mut self, number: usize, dir: &Path, names: Names) {
        let dir_number = self.find(dir).unwrap_or_else(|| panic!("no directory {}", dir.display()));
        let Node::Dir { now, pending, .. } = &mut self.nodes[dir_number] else {
            panic!("{} is no directory", dir.display())
        };
        set(now, &names);
        pending.push(Pending { number, change: names });
    }

    fn name(&mut self, number: usize, path: &Path, node: Option<usize>) {
        self.rename(number, path.parent().unwrap(), vec![(last(path), node)]);
    }

    fn sync(&mut self, node: usize, before: usize) {
        match &mut self.nodes[node] {
            Node::Dir { durable, pending, .. } => {
                for change in pending.extract_if(.., |change| change.number < before) {
                    set(durable, &change.change);
                }
            }
            Node::File { durable, pending, .. } => {
                for change in pending.extract_if(.., |change| change.number < before) {
                    apply(durable, &change.change, Part::Whole);
                }
            }
            Node::Link(_) => {}
        }
    }

    /// Carries out an act, the one with this number.
    pub fn act(&mut self, number: usize, act: &Act) {
        match act {
            Act::Open { path, cut } => {
                if self.find(path).is_none() {
                    let node = self.add(Node::File { durable: Vec::new(), now: Vec::new(), pending: Vec::new() });
                    self.name(number, path, Some(node));
                } else if *cut {
                    self.change(number, path, Change::Resize(0));
                }
            }
            Act::Write { path, at, data } => self.change(number, path, Change::Write { at: *at, data: data.clone() }),
            Act::Resize { path, len } => self.change(number, path, Change::Resize(*len)),
            Act::Symlink { path, target } => {
                let node = self.add(Node::Link(target.clone()));
                self.name(number, path, Some(node));
            }
            Act::Mkdir { path } => {
                let node = self.add(Disk::dir());
                self.name(number, path, Some(node));
            }
            // A socket was never opened: it is not known here, and after a crash nobody listens.
            Act::Unlink { path } if self.find(path).is_none() => {}
            Act::Unlink { path } => self.name(number, path, None),
            Act::Rename { from, to } => {
                assert_eq!(from.parent(), to.parent(), "renames between directories are not modelled");
                let node = self.find(from).unwrap_or_else(|| panic!("no {}", from.display()));
                self.rename(number, from.parent().unwrap(), vec![(last(from), None), (last(to), Some(node))]);
            }
            Act::Sync { path, before } => {
                if let Some(node) = self.find(path) {
                    self.sync(node, *before);
                }
            }
            Act::Exec { .. } => {}
        }
    }

    fn change(&mut self, number: usize, path: &Path, change: Change) {
        let (now, pending) = self.file(path);
        apply(now, &change, Part::Whole);
        pending.push(Pending { number, change });
    }

    /// What the processes see.
    pub fn now(&self) -> Image {
        let mut image = Image::new();
        self.draw(
            ROOT,
            "",
            &|number| match &self.nodes[number] {
                Node::Dir { now, .. } => Drawn::Dir(now),
                Node::File { now, .. } => Drawn::File(now.as_slice().into()),
                Node::Link(target) => Drawn::Link(target),
            },
            &mut image,
        );
        image
    }

    /// The images that a crash at this moment may leave: all of them, or `most` of them by the dice; and whether it is all.
    pub fn images(&self, most: usize, dice: &mut Dice) -> (Vec<Image>, bool) {
        // What no name can lead to any more is in no image.
        let mut names = vec![Vec::new(); self.nodes.len()];
        let mut reachable = vec![false; self.nodes.len()];
        reachable[ROOT] = true;
        let mut all = true;
        let mut next = vec![ROOT];
        while let Some(number) = next.pop() {
            let Node::Dir { durable, pending, .. } = &self.nodes[number] else { continue };
            let ways = subsets(durable, pending, dice, &mut all);
            let seen: Vec<usize> = ways.iter().flat_map(|names| names.values().copied()).collect();
            names[number] = ways;
            for child in seen {
                if !std::mem::replace(&mut reachable[child], true) {
                    next.push(child);
                }
            }
        }
        let contents: Vec<Vec<Arc<[u8]>>> = (self.nodes.iter().zip(&reachable))
            .map(|(node, reachable)| match node {
                Node::File { durable, pending, .. } if *reachable => {
                    torn(durable, pending, &mut all).into_iter().map(Arc::from).collect()
                }
                Node::File { .. } | Node::Dir { .. } | Node::Link(_) => Vec::new(),
            })
            .collect();
        let sides: Vec<usize> = names.iter().zip(&contents).map(|(n, c)| n.len().max(c.len()).max(1)).collect();
        let total = sides.iter().try_fold(1_usize, |total, sides| total.checked_mul(*sides));
        let mut images = Vec::new();
        let mut draw = |choice: &[usize]| {
            let mut image = Image::new();
            let chosen = |number: usize| match &self.nodes[number] {
                Node::Dir { .. } => Drawn::Dir(&names[number][choice[number]]),
                Node::File { .. } => Drawn::File(Arc::clone(&contents[number][choice[number]])),
                Node::Link(target) => Drawn::Link(target),
            };
            self.draw(ROOT, "", &chosen, &mut image);
            images.push(image);
        };
        match total.filter(|total| *total <= most) {
            Some(total) => {
                for mut number in 0..total {
                    let mut digit = |sides: &usize| {
                        let digit = number % sides;
                        number /= sides;
                        digit
                    };
                    draw(&sides.iter().map(&mut digit).collect::<Vec<_>>());
                }
            }
            None => {
                all = false;
                draw(&vec![0; sides.len()]);
                for _ in 1..most {
                    draw(&sides.iter().map(|sides| dice.roll(*sides)).collect::<Vec<_>>());
                }
            }
        }
        images.sort();
        images.dedup();
        (images, all)
    }

    fn draw<'a>(&self, number: usize, path: &str, chosen: &impl Fn(usize) -> Drawn<'a>, image: &mut Image) {
        let entry = match chosen(number) {
            Drawn::Dir(names) => {
                for (name, child) in names {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                    self.draw(*child, &path, chosen, image);
                }
                Entry::Dir
            }
            Drawn::File(content) => Entry::File(content),
            Drawn::Link(target) => Entry::Link(target.to_owned()),
        };
        if !path.is_empty() {
            image.insert(path.to_owned(), entry);
        }
    }
}

enum Drawn<'a> {
    Dir(&'a BTreeMap<String, usize>),
    File(Arc<[u8]>),
    Link(&'a str),
}

/// How much of a write is there.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    None,
    Whole,
    Half,
    Zeros,
}

fn last(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn set(dir: &mut BTreeMap<String, usize>, names: &Names) {
    for (name, node) in names {
        match node {
            Some(node) => dir.insert(name.clone(), *node),
            None => dir.remove(name),
        };
    }
}

fn apply(content: &mut Vec<u8>, change: &Change, part: Part) {
    if part == Part::None {
        return;
    }
    match change {
        Change::Resize(len) => content.resize(*len, 0),
        Change::Write { at, data } => {
            let at = at.unwrap_or(content.len());
            let len = if part == Part::Half { data.len() / 2 } else { data.len() };
            if content.len() < at + len {
                content.resize(at + len, 0);
            }
            if part != Part::Zeros {
                content[at..at + len].copy_from_slice(&data[..len]);
            }
        }
    }
}

/// What a directory may hold: any of its unsynced changes, in their order.
fn subsets(
    durable: &BTreeMap<String, usize>,
    pending: &[Pending<Names>],
    dice: &mut Dice,
    all: &mut bool,
) -> Vec<BTreeMap<String, usize>> {
    let with = |takes: &mut dyn FnMut(usize) -> bool| {
        let mut dir = durable.clone();
        for (index, change) in pending.iter().enumerate() {
            if takes(index) {
                set(&mut dir, &change.change);
            }
        }
        dir
    };
    let mut ways: Vec<_> = (0..=pending.len()).map(|taken| with(&mut |index| index < taken)).collect();
    if 1_usize << pending.len().min(32) <= WAYS {
        ways.extend((0..1_usize << pending.len()).map(|mask| with(&mut |index| mask >> index & 1 == 1)));
    } else {
        *all = false;
        ways.extend((0..WAYS).map(|_| with(&mut |_| dice.roll(2) == 1)));
    }
    distinct(ways)
}

/// What a file may hold: any of its unsynced changes, each in any of its parts.
fn torn(durable: &[u8], pending: &[Pending<Change>], all: &mut bool) -> Vec<Vec<u8>> {
    let mut ways = vec![durable.to_vec()];
    for change in pending {
        let parts: &[Part] = match &change.change {
            Change::Write { .. } => &[Part::None, Part::Whole, Part::Half, Part::Zeros],
            Change::Resize(_) => &[Part::None, Part::Whole],
        };
        let step = ways.iter().flat_map(|way| {
            parts.iter().map(|part| {
                let mut content = way.clone();
                apply(&mut content, &change.change, *part);
                content
            })
        });
        ways = distinct(step.collect());
        if ways.len() > WAYS {
            *all = false;
            ways.truncate(WAYS);
        }
    }
    ways
}

/// The same without repetitions, in the same order.
fn distinct<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut some: Vec<T> = Vec::new();
    for one in all {
        if !some.contains(&one) {
            some.push(one);
        }
    }
    some
}
