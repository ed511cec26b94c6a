//! What a fuzzer may do with the program: one function for each kind of bytes that come from elsewhere, with what must hold
//! whatever they are. `cargo test` replays what `fixtures/fuzz/<target>` has for each.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "these are tests")]

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{Cursor, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::Sha256;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport};

use crate::config::{self, Sources};
use crate::error::Code;
use crate::home::{Home, Name, Release};
use crate::job::fetch::{self, archive, web};
use crate::job::look::Survey;
use crate::job::{Line, Report, rpc};
use crate::journal::{self, Journal, Known, Record, Stage};
use crate::manifest;
use crate::plan::{self, Plan};
use crate::source::{Checksum, Hasher, Link, Place, Source};
use crate::supervise::control::{Control, Happening, Reply, Request};

/// A target: what it is called, and what it does with its input.
type Target = (&'static str, fn(&[u8]));

/// All targets. Each has a binary in `Cargo.toml` beside this file.
pub const TARGETS: &[Target] = &[
    ("archive", archive),
    ("config", config),
    ("control", control),
    ("http", http),
    ("journal", journal),
    ("manifest", manifest),
    ("plan", plan),
    ("rpc", rpc),
    ("source", source),
];

/// Gives an input to the target of this name; panics when something does not hold.
pub fn run(target: &str, input: &[u8]) {
    let (_, function) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    function(input);
}

/// A plan file.
fn plan(input: &[u8]) {
    let plans = match plan::parse(input) {
        Ok(plans) => plans,
        Err(why) => return for_a_line(&why),
    };
    let text = serde_json::to_vec(&plans).unwrap();
    assert_eq!(plan::parse(&text).as_ref(), Ok(&plans), "what was read is written and read again as the same");
    for plan in &plans {
        named(&plan.name);
        plan.batch.iter().for_each(named);
        assert!(plan.height >= 1 && i64::try_from(plan.height).is_ok());
        let digest = plan.digest();
        assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(again(plan).digest(), digest, "it does not become another plan by being written down");
        if let Some(text) = plan.description() {
            assert!(text.chars().count() <= 200);
            for_a_line(&text);
        }
        plan.info_text();
        wanted(&plan.info);
        again(&reported(plan));
    }
}

/// The deepest that a plan ever lies in a message: the journal of its upgrade, as a worker reports it.
fn reported(plan: &Plan) -> Line {
    let (id, release) = ("x-1".to_owned(), Release::Upgrade(plan.name.clone()));
    let mut journal = Journal::new(id, plan.name.clone(), Stage::Stop, Release::Genesis, release, 1);
    journal.plan = Some(plan.clone());
    again(&journal);
    Line::Done(Report::Surveyed(Box::new(Survey {
        current: Ok(Release::Genesis),
        brought: None,
        journal: Ok(Some(journal)),
        plans: Vec::new(),
        errors: Vec::new(),
        restoring: false,
        last: None,
        committed: None,
        machine: None,
        known: Known::default(),
        known_error: None,
        record: None,
        watch: Vec::new(),
        watchable: false,
    })))
}

/// What says where a release is: the `info` of a plan, an index, or two lines, a URL and the checksum beside it.
fn source(input: &[u8]) {
    match Source::of_index(input) {
        Ok(link) => linked(&link),
        Err(why) => for_a_line(&why),
    }
    if let Ok(info) = serde_json::from_slice(input) {
        wanted(&info);
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    wanted(&Value::String(text.to_owned()));
    let (url, beside) = text.split_once('\n').map_or((text, None), |(url, beside)| (url, Some(beside)));
    match Link::parse(url, beside) {
        Ok(link) => linked(&link),
        Err(why) => for_a_line(&why),
    }
    match Checksum::parse(text) {
        Ok(sum) => assert_eq!(Checksum::parse(&sum.to_string()), Ok(again(&sum))),
        Err(why) => for_a_line(&why),
    }
}

fn wanted(info: &Value) {
    match Source::of(info) {
        Ok(Some(source)) => linked(again(&source).link()),
        Ok(None) => {}
        Err(why) => for_a_line(&why),
    }
}

fn linked(link: &Link) {
    let shown = link.to_string();
    for_a_line(&shown);
    let sum = link.checksum.as_ref().map(ToString::to_string);
    match &link.place {
        Place::File(path) => assert!(path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0)),
        Place::Web(url) => {
            assert!(url.starts_with("http://") || url.starts_with("https://"), "{url}");
            assert!(!url.contains(|c: char| c.is_control() || c.is_whitespace() || c == '#'), "{url}");
            assert!(!shown.contains('?'), "{shown}");
            let query = url.split_once('?').map_or("", |(_, query)| query);
            assert!(query.split('&').all(|part| !part.starts_with("checksum=")), "{url}");
            assert_eq!(Link::parse(url, sum.as_deref()).as_ref(), Ok(link));
        }
    }
    assert_eq!(link.trusted(false).is_ok(), sum.is_some());
    assert!(link.trusted(true).is_ok());
}

/// An archive. Its first byte says of what follows: `r` the archive itself, `t` the tar in it, `c` the tar in it with the sums
/// of its headers still to be made.
fn archive(input: &[u8]) {
    let Some((kind, content)) = input.split_first() else { return };
    let packed = match kind {
        b'r' => content.to_vec(),
        b't' => gzip(content),
        b'c' => gzip(&summed(content)),
        _ => return,
    };
    let folder = Folder::new("archive");
    let mut file = File::options().read(true).write(true).create_new(true).open(folder.0.join("it")).unwrap();
    file.write_all(&packed).unwrap();
    let _ = archive::is_one(&mut file).unwrap();
    file.rewind().unwrap();
    let into = folder.0.join("a/b/c/d/into");
    fs::create_dir_all(into.parent().unwrap()).unwrap();
    // As who fetches it does: nothing is written of what is too much.
    let unpacked = match archive::survey(&mut file) {
        Ok(_) => archive::unpack(&mut file, &into, "geth"),
        Err(e) => return for_a_line(&e.to_string()),
    };
    let mut above = folder.0.clone();
    for (name, beside) in [("a", 2), ("b", 1), ("c", 1), ("d", 1), ("into", usize::from(into.exists()))] {
        assert_eq!(fs::read_dir(&above).unwrap().count(), beside, "nothing comes to lie outside");
        above.push(name);
    }
    match unpacked {
        Ok(()) => assert!(fs::symlink_metadata(into.join("bin/geth")).unwrap().is_file()),
        Err(archive::Fault::Archive(why)) => for_a_line(&why),
        Err(archive::Fault::Disk(e)) => for_a_line(&e.message),
    }
    if into.exists() {
        let bytes = harmless(&into);
        assert!(bytes <= (1 << 20) + 200 * packed.len() as u64 + (64 << 10), "{bytes} of {}", packed.len());
    }
}

/// The bytes of all files below; there is nothing but plain files and directories.
fn harmless(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(!meta.file_type().is_socket() && (meta.is_dir() || meta.is_file()), "{path:?}");
        let mode = meta.mode() & 0o7777;
        if meta.is_dir() {
            assert_eq!(mode, 0o755, "{path:?}");
            bytes += harmless(&path);
        } else {
            assert!(matches!(mode, 0o755 | 0o644) && meta.nlink() == 1, "{path:?}: {mode:o}");
            bytes += meta.len();
        }
    }
    bytes
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    packed.write_all(content).unwrap();
    packed.finish().unwrap()
}

/// A tar with the sum that each header needs to be taken for one.
fn summed(content: &[u8]) -> Vec<u8> {
    let mut tar = content.to_vec();
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + 512) {
        if header.iter().any(|byte| *byte != 0) {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let size = std::str::from_utf8(&header[124..136]).unwrap_or_default();
        let size = usize::from_str_radix(size.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at = at.saturating_add(512).saturating_add(size.div_ceil(512).saturating_mul(512)).min(tar.len());
    }
    tar
}

/// What a web server sends. The bits of the first byte say what is asked for; a byte 0x1e ends a connection.
fn http(input: &[u8]) {
    static CONFIGS: OnceLock<[ureq::config::Config; 2]> = OnceLock::new();
    let Some((how, sent)) = input.split_first() else { return };
    let urls = ["http://example.org/geth", "https://example.org/geth"];
    let https = usize::from(how & 1);
    let config = &CONFIGS.get_or_init(|| urls.map(|url| web::Web::config(url.starts_with("https:")).unwrap()))[https];
    let begun: &[u8] = if how & 2 == 0 { b"" } else { b"abc" };
    let tag = (how & 4 != 0).then_some("\"x\"");
    let sum = |bytes: &[u8]| {
        let mut hasher = Hasher::Sha256(Sha256::default());
        hasher.update(bytes);
        hasher.sum()
    };
    let checksum = (how & 8 != 0).then(|| sum(b"abcdef"));
    let wire = || Wire(Arc::new(Mutex::new(sent.split(|byte| *byte == 0x1e).map(<[u8]>::to_vec).collect())));
    let web = |wire: Wire| web::Web::over(ureq::Agent::with_parts(config.clone(), wire, Nowhere));

    let folder = Folder::new("http");
    let home = Home::new(&folder.0, "geth");
    let link = Link { place: Place::Web(urls[https].to_owned()), checksum: checksum.clone() };
    let spec = fetch::Spec { release: Release::Genesis, source: Source::Binary(link), retries: 0, skip_checksum: true };
    match fetch::try_once(&home, &spec, &web(wire()), begun, tag) {
        Ok((bytes, wrong)) => {
            assert!(bytes.len() <= begun.len() + sent.len(), "nothing comes of itself");
            if let Some(checksum) = checksum {
                let told = wrong.as_ref().unwrap_or(&checksum);
                assert_eq!(&sum(&bytes), told, "the sum is that of what lies there");
            } else {
                assert_eq!(wrong, None);
            }
        }
        Err(e) => for_a_line(&e.message),
    }

    match web(wire()).get(urls[https], begun.len() as u64, tag) {
        Ok(reply) => {
            assert!(reply.from == 0 || reply.from == begun.len() as u64);
            assert!(reply.total.is_none_or(|total| total >= reply.from));
            let mut body = Vec::new();
            if reply.body.take(1 << 20).read_to_end(&mut body).is_ok() {
                assert!(body.len() <= sent.len());
            }
        }
        Err(web::Fault::Passing(why) | web::Fault::Lasting(why) | web::Fault::NoPart(why)) => for_a_line(&why),
    }

    let Ok(range) = std::str::from_utf8(sent) else { return };
    let length = (how & 16 != 0).then_some(u64::from(how >> 5));
    if let Some((first, total)) = web::content_range(range, length) {
        let (said, whole) = range.strip_prefix("bytes ").unwrap().split_once('/').unwrap();
        let last: u64 = said.split_once('-').unwrap().1.parse().unwrap();
        assert!(first <= last && last < u64::MAX);
        assert!(total.is_none_or(|total| total == last + 1) && total.is_none() == (whole == "*"));
        assert!(length.is_none_or(|length| length == last - first + 1));
    }
}

/// The replies of a server, a connection each.
#[derive(Debug)]
struct Wire(Arc<Mutex<VecDeque<Vec<u8>>>>);

impl Connector for Wire {
    type Out = Connection;

    fn connect(&self, to: &ConnectionDetails, _: Option<()>) -> Result<Option<Connection>, ureq::Error> {
        let reply = self.0.lock().unwrap().pop_front().ok_or(ureq::Error::ConnectionFailed)?;
        let buffers = LazyBuffers::new(16 << 10, 16 << 10);
        Ok(Some(Connection { buffers, tls: to.needs_tls(), reply: Cursor::new(reply) }))
    }
}

/// A connection over which all was said already.
#[derive(Debug)]
struct Connection {
    buffers: LazyBuffers,
    tls: bool,
    reply: Cursor<Vec<u8>>,
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, _: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let read = self.reply.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        self.tls
    }
}

/// Knows every host, and asks nobody.
#[derive(Debug)]
struct Nowhere;

impl Resolver for Nowhere {
    fn resolve(
        &self,
        _: &ureq::http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        addresses.push(([127, 0, 0, 1], 9).into());
        Ok(addresses)
    }
}

/// What a node answers to two calls.
fn rpc(input: &[u8]) {
    let (ours, mut nodes) = UnixStream::pair().unwrap();
    if input.len() > 64 << 10 {
        return;
    }
    nodes.write_all(input).unwrap();
    nodes.shutdown(std::net::Shutdown::Write).unwrap();
    let mut client = rpc::Client::over(ours);
    let first = serde_json::Deserializer::from_slice(input).into_iter::<Value>().next().and_then(Result::ok);
    let told = client.call("eth_blockNumber", json!([]));
    match &told {
        Ok(value) => {
            let reply = first.as_ref().unwrap();
            assert_eq!((reply.get("id"), reply.get("result")), (Some(&json!(1)), Some(value)));
            assert!(reply.get("error").is_none_or(Value::is_null));
        }
        Err(failure) => for_a_line(&failure.to_string()),
    }
    assert_eq!(first.map(|reply| rpc::result(reply, 1)).filter(Result::is_ok), Some(told).filter(Result::is_ok));
    let _ = client.call("net_peerCount", json!([]));
    let mut asked = Vec::new();
    drop(client);
    let _ = nodes.read_to_end(&mut asked);
    assert_eq!(serde_json::Deserializer::from_slice(&asked).into_iter::<Value>().next().unwrap().unwrap()["id"], 1);

    let text = String::from_utf8_lossy(input);
    if let Some(number) = rpc::quantity(&Value::String(text.clone().into_owned())) {
        let digits = text.strip_prefix("0x").unwrap();
        assert!(digits.bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
        assert_eq!(u64::from_str_radix(digits, 16), Ok(number));
    }
}

/// What a client says on the control socket.
fn control(input: &[u8]) {
    let folder = Folder::new("control");
    let path = folder.0.join("s");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let mut control = Control::at(listener, &Home::new(&folder.0, "geth"));
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_nonblocking(true).unwrap();
    let now = Instant::now();
    control.accept(now);
    let mut asked = Vec::new();
    for piece in input.chunks(4 << 10) {
        if client.write_all(piece).is_err() {
            break;
        }
        asked.extend(control.serve(1));
    }
    let _ = client.shutdown(std::net::Shutdown::Write);
    let line = input.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let whole = line.len() < input.len();
    if let [Happening::Asked(1, request)] = asked.as_slice() {
        assert!(whole);
        assert_eq!(&again(request), request);
        match request {
            Request::Cancel { name } => named(name),
            Request::Now { name, release } => {
                named(name);
                named_release(release);
            }
            Request::Revert { to } => to.iter().for_each(named_release),
            Request::Status
            | Request::Metrics
            | Request::Head
            | Request::Stop { .. }
            | Request::Restart { .. }
            | Request::Reload { .. } => {}
        }
        assert_eq!(control.clients().count(), 1, "it waits for its reply");
        control.reply(1, &Reply::error(Code::Refused, "no"));
    } else {
        assert_eq!(asked, [], "one request a connection");
    }
    control.serve(1);
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer);
    assert_eq!(answer.matches('\n').count(), usize::from(whole || input.len() > 64 << 10), "{answer}");
    if !answer.is_empty() {
        let answer: Value = serde_json::from_str(&answer).unwrap();
        for_a_line(answer["error"].as_str().unwrap());
    }
    assert_eq!(control.clients().count(), 0);
}

/// A config.toml.
fn config(input: &[u8]) {
    let folder = Folder::new("config");
    let path = folder.0.join("config.toml");
    fs::write(&path, input).unwrap();
    let env = [("HOME".to_owned(), "/nowhere".to_owned())];
    let read = |flags: &[(String, String)]| {
        let nowhere = Path::new("/nowhere/config.toml");
        config::resolve(&Sources { flags, config_file: Some(path.clone()), env: &env, etc: nowhere })
    };
    match read(&[]) {
        Ok(settings) => {
            settings.warnings.iter().for_each(|line| for_a_line(line));
            assert_eq!(again(&settings), settings);
            let config = settings.config().unwrap();
            assert!(config.home.is_absolute() && !config.name.contains('/'));
            assert!(config.data_backup_dir.is_absolute());
            // Said once more by flags, it means the same.
            let said = settings.values.iter().filter(|said| said.origin != config::Origin::Default);
            let flags: Vec<(String, String)> = said.map(|said| (said.key.clone(), said.value.clone())).collect();
            assert_eq!(read(&flags).unwrap().config().unwrap(), config);
        }
        Err(e) => e.message.lines().for_each(for_a_line),
    }
    // The file that `init` writes for a binary of this name.
    let Ok(name) = std::str::from_utf8(input) else { return };
    let flags = [("DAEMON_NAME".to_owned(), name.to_owned())];
    let sources = |flags, file: Option<&Path>| {
        let config_file = file.map(Path::to_owned);
        config::resolve(&Sources { flags, config_file, env: &env, etc: Path::new("/nowhere/config.toml") })
    };
    if name.is_empty() || sources(&flags, None).is_err() {
        return;
    }
    fs::write(&path, config::file::commented(config::file::INTRO, &[("daemon_name", config::file::literal(name))]))
        .unwrap();
    assert_eq!(sources(&[], Some(&path)).unwrap().get("DAEMON_NAME").value, name);
}

/// What is remembered: a journal, a run record, the last state, lines of history.
fn journal(input: &[u8]) {
    if let Ok(journal) = serde_json::from_slice::<Journal>(input) {
        assert_eq!(again(&journal), journal);
        named(&journal.name);
        named_release(&journal.from);
        named_release(&journal.to);
        journal::next(Some(&journal));
        journal.on_probation();
        journal.way_back();
        journal.phases.total();
        journal::rfc3339(journal.begun);
        assert_eq!(journal.identity.contradiction(&journal.identity), None);
        again(&journal.identity.clone().or(&journal.identity));
    }
    if let Ok(record) = serde_json::from_slice::<Record>(input) {
        assert_eq!(again(&record), record);
        named_release(&record.release);
    }
    if let Ok(known) = serde_json::from_slice::<Known>(input) {
        assert_eq!(again(&known), known);
    }
    let lines = journal::parse_history(&String::from_utf8_lossy(input));
    for line in &lines {
        named(&line.name);
        line.phases.total();
        assert!(!line.result.word().is_empty());
    }
    let text: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
    assert_eq!(journal::parse_history(&text.join("\n")), lines);
}

/// A backup's manifest.
fn manifest(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(path) = manifest::decode(text)
    {
        assert_eq!(manifest::decode(&manifest::encode(&path)), Some(path));
    }
    let shown = manifest::encode(input);
    assert!(!shown.chars().any(char::is_control));
    assert_eq!(manifest::decode(&shown).as_deref(), Some(input));
    let _ = manifest::read_totals(&mut Cursor::new(input));
    let Ok((header, entries)) = all_of(input) else { return };
    header.release.iter().for_each(named_release);
    let mut writer = manifest::Writer::new(Vec::new(), &header).unwrap();
    entries.iter().for_each(|entry| writer.entry(entry).unwrap());
    let (text, totals) = writer.end().unwrap();
    assert_eq!(manifest::read_totals(&mut Cursor::new(&text)).unwrap(), totals);
    assert_eq!(all_of(&text).unwrap(), (header, entries));
}

fn all_of(text: &[u8]) -> crate::error::Result<(manifest::Header, Vec<manifest::Entry>)> {
    let mut reader = manifest::Reader::new(text)?;
    let mut entries = Vec::new();
    while let Some(entry) = reader.next()? {
        entries.push(entry);
    }
    Ok((reader.header().clone(), entries))
}

/// The same, written down and read.
fn again<T: Serialize + DeserializeOwned + PartialEq + Debug>(it: &T) -> T {
    let text = serde_json::to_vec(it).unwrap();
    let read: T = serde_json::from_slice(&text).unwrap();
    assert_eq!(&read, it);
    read
}

/// A name stays in its directory.
fn named(name: &Name) {
    let name = name.as_str();
    assert!(!name.is_empty() && name.len() <= 64 && !name.contains(['/', '\0']) && !name.starts_with('.'), "{name:?}");
    assert!(!name.eq_ignore_ascii_case("genesis") && !name.eq_ignore_ascii_case("current"));
}

fn named_release(release: &Release) {
    match release {
        Release::Genesis => {}
        Release::Upgrade(name) => named(name),
    }
}

/// What an operator is told speaks to no terminal and is of bounded length.
fn for_a_line(text: &str) {
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(text.len() < 64 << 10, "{} bytes", text.len());
}

/// A directory of its own, gone in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(target: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("wemixvisor-fuzz-{target}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::DirBuilder::new().mode(0o700).create(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    fn manifest(name: &str) -> toml_edit::DocumentMut {
        fs::read_to_string(top(name)).unwrap().parse().unwrap()
    }

    fn listed(dir: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    #[test]
    fn every_target_has_a_corpus_and_a_binary() {
        let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        let corpora = listed(&top("fixtures/fuzz"));
        assert_eq!(corpora.iter().map(|dir| dir.file_name().unwrap().to_str().unwrap()).collect::<Vec<_>>(), names);
        let bins = manifest("tests/fuzz/Cargo.toml")["bin"].clone();
        let bins = bins.as_array_of_tables().unwrap();
        assert_eq!(bins.iter().map(|bin| bin["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
        assert!(corpora.iter().all(|dir| listed(dir).len() >= 3));
    }

    #[test]
    fn what_is_fuzzed_is_built_of_what_the_program_is() {
        let (ours, theirs) = (manifest("Cargo.toml"), manifest("tests/fuzz/Cargo.toml"));
        for (name, wanted) in ours["dependencies"].as_table().unwrap() {
            assert_eq!(theirs["dependencies"][name].to_string(), wanted.to_string(), "{name}");
        }
    }

    #[test]
    fn what_was_once_found_stays_mended() {
        for (name, target) in TARGETS {
            for path in listed(&top("fixtures/fuzz").join(name)) {
                let input = fs::read(&path).unwrap();
                if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
                    panic!("{}: {panic:?}", path.display());
                }
            }
        }
    }
}
