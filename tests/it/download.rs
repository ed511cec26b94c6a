//! Downloads: what is fetched, from where, how it goes on after a fault, and what is refused. `upgrade prepare` and the
//! supervisor fetch by the same job; most is tried with the first, which is quicker.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

use crate::crash::strace;
use crate::support::{Home, Said, Visor, free_port, kill, mocknode, said, tmpfs, under, until};
use crate::tarball::Tar;
use crate::web::{Page, Proxy, Server};

/// A release that is quickly had: a script, which is a program too.
const SCRIPT: &str = "#!/bin/sh\necho v2.0.0\nexit 0\n";

/// The key of this machine in a list of binaries.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };

/// No backup, so that the checks after a download need no data.
const PLAIN: &[&str] = &["--set", "unsafe_skip_backup=true"];

/// The same, and nothing is tried twice.
const ONCE: &[&str] = &["--set", "unsafe_skip_backup=true", "--set", "download_retries=0"];

/// The supervisor fetches.
const FETCHES: &[&str] = &["--set", "unsafe_skip_backup=true", "--set", "allow_download_binaries=true"];

/// The same, and a try is one request.
const FETCHES_ONCE: &[&str] =
    &["--set", "unsafe_skip_backup=true", "--set", "allow_download_binaries=true", "--set", "download_retries=0"];

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The checksum of a file as a plan says it.
pub fn sum(bytes: impl AsRef<[u8]>) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes.as_ref())))
}

/// A script that is this large.
fn large(bytes: usize) -> Vec<u8> {
    let mut file = SCRIPT.as_bytes().to_vec();
    // Nothing repeats, so that a part that is put in the wrong place is found.
    file.extend((file.len()..bytes).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8));
    file
}

/// Runs `upgrade prepare v2` for this URL.
pub fn prepare(home: &Home, ours: &[&str], url: &str, sum: &str) -> Said {
    said(prepare_command(home, ours, url, sum))
}

pub fn prepare_command(home: &Home, ours: &[&str], url: &str, sum: &str) -> Command {
    let sum: &[&str] = if sum.is_empty() { &[] } else { &["--checksum", sum] };
    home.command(&[ours, &["upgrade", "prepare", "v2", "--url", url], sum].concat())
}

/// The names in a directory; none where there is no such.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The parts of downloads that wait to go on.
fn parts(home: &Home) -> Vec<PathBuf> {
    names(&home.own("staging")).iter().map(|name| home.own("staging").join(name)).collect()
}

/// The binary of a release is this, and nothing is left of how it came there.
#[track_caller]
pub fn installed(home: &Home, name: &str, content: impl AsRef<[u8]>) {
    let binary = home.own("upgrades").join(name).join("bin/node");
    assert!(fs::read(&binary).unwrap() == content.as_ref(), "{} is another", binary.display());
    assert_eq!(fs::metadata(&binary).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(parts(home), Vec::<PathBuf>::new());
}

/// A download that fails with one line that says this, and leaves nothing.
#[track_caller]
pub fn refused(home: &Home, said: Said, url: &str, part: &str) {
    let said = said.code(1).one_error(part);
    let shown = url.split('?').next().unwrap().replace("user:secret@", "");
    assert!(said.err.contains(&shown), "it does not name {shown}: {}", said.err);
    assert!(!said.err.contains("secret"), "{}", said.err);
    assert_eq!(said.out, "");
    assert_eq!(names(&home.own("upgrades")), Vec::<String>::new());
    assert_eq!(parts(home), Vec::<PathBuf>::new(), "after {}", said.err);
}

/// Writes a plan whose release can be fetched from there.
fn plan(home: &Home, name: &str, height: u64, url: &str, sum: &str) {
    let info = json!({"binaries": {"any": url}, "checksum": sum});
    home.put(
        &format!("upgrades/{height}/upgrade-info.json"),
        json!({"name": name, "height": height, "info": info}).to_string(),
    );
}

/// A supervisor whose node has stood still at block 39.
fn standing<'a>(home: &'a Home, ours: &[&str]) -> Visor<'a> {
    let visor = home.supervise(ours, &["--start-head", "35", "--halt-at", "39"]);
    home.until_status("it stands at 39", |s| s["head_known"] == true && s["height"] == 39);
    visor
}

/// What the status says of a plan.
fn note(status: &Value, name: &str) -> String {
    let plans = status["plans"].as_array().unwrap();
    plans.iter().find(|p| p["name"] == name).map(|p| p["note"].as_str().unwrap().to_owned()).unwrap_or_default()
}

/// Waits until the server was asked for this so often.
#[track_caller]
fn until_asked(server: &Server, path: &str, times: usize) {
    until(&format!("{path} is asked for {times} times"), || (server.asked(path).len() >= times).then_some(()));
}

/// Starts a command whose end is waited for later.
fn begin(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
fn end(child: Child) -> Said {
    use std::os::unix::process::ExitStatusExt;
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap());
    Said { code, out: text(output.stdout), err: text(output.stderr) }
}

// ---- what is fetched -------------------------------------------------------------------------------------------

/// How many warnings there are of what these tests are about.
fn warnings(home: &Home) -> usize {
    let expected = ["UNSAFE_SKIP_BACKUP", "this node is a validator"];
    home.log().lines().filter(|line| line.contains("WARN") && !expected.iter().any(|part| line.contains(part))).count()
}

#[test]
fn a_binary_is_fetched_and_installed_for_everybody_and_for_the_homes_owner() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(home.root(), Some(1234), Some(1235)).unwrap();
    }
    let command = prepare_command(&home, PLAIN, &server.secret_url("/file"), &sum(SCRIPT));
    // Whoever runs it: a release is for all who may run the node.
    let said = said(under(&["sh", "-c", "umask 077; exec \"$0\" \"$@\""], &command)).code(0);
    assert!(said.err.contains(&format!("release v2 is there: {}B from {}", SCRIPT.len(), server.url("/file"))));
    assert!(!said.err.contains("secret"), "{}", said.err);
    installed(&home, "v2", SCRIPT);
    for (path, mode) in [("", 0o755), ("bin", 0o755), ("bin/node", 0o755)] {
        let meta = fs::metadata(home.own("upgrades/v2").join(path)).unwrap();
        assert_eq!(meta.mode() & 0o7777, mode, "{path:?}");
        assert!(!root || (meta.uid(), meta.gid()) == (1234, 1235), "{path:?}");
    }
    assert_eq!(fs::metadata(home.own("staging")).unwrap().mode() & 0o7777, 0o700);
    // The name and the word in the URL are for the server, and only for it.
    let asked = server.asked("/file");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    assert_eq!(asked[0].path, "/file?token=secret");
    assert!(asked[0].header("user-agent").unwrap().starts_with("wemixvisor/"));
    // Once there, it is not fetched again.
    home.run(&[PLAIN, &["upgrade", "prepare", "v2"]].concat()).code(0);
    prepare(&home, PLAIN, &server.url("/file"), &sum(SCRIPT)).code(4).one_error("is there already");
    assert_eq!(server.asked("/file").len(), 1);
}

#[test]
fn info_says_where_from_in_every_way_that_is_allowed() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    let (short, long) = (hex(&Sha256::digest(SCRIPT)), hex(&Sha512::digest(SCRIPT)));
    let url = server.url("/file");
    let file = home.dir.join("a release");
    fs::write(&file, SCRIPT).unwrap();
    let spaced = file.to_str().unwrap().replace(' ', "%20");
    let plain = home.dir.join("release");
    fs::write(&plain, SCRIPT).unwrap();
    let index = json!({"binaries": {"any": format!("{url}?checksum=sha512:{long}")}}).to_string();
    server.page("/index.json", Page::new(index.as_str()));
    let listed = home.dir.join("index.json");
    fs::write(&listed, &index).unwrap();
    let any = |url: String| json!({"binaries": {"any": url}});
    let infos = [
        any(format!("{url}?checksum=sha256:{short}")),
        any(format!("{url}?checksum=SHA256:{}", short.to_uppercase())),
        any(format!("{url}?checksum={short}")),
        any(format!("{url}?checksum=sha512:{long}")),
        any(format!("{url}?a=b&checksum={long}&c=d#part")),
        json!({"binaries": {"any": url}, "checksum": format!("sha256:{short}")}),
        json!({"binaries": {"any": url}, "checksum": long.to_uppercase(), "description": "text"}),
        json!(json!({"binaries": {"any": url}, "checksum": short}).to_string()),
        // This machine's own, whatever is said of others.
        json!({"binaries": {PLATFORM: url, "any": "http://127.0.0.1:1/", "linux/riscv64": 7, "": "?"}, "checksum": short}),
        json!(format!("{}?checksum={}", server.url("/index.json"), sum(&index))),
        json!(format!("file:{}?checksum={}", listed.display(), sum(&index))),
        any(format!("file://{spaced}?checksum={short}")),
        any(format!("file:{}?checksum={short}", plain.display())),
        any(format!("{}?checksum={short}", plain.display())),
    ];
    for (n, info) in infos.iter().enumerate() {
        let (name, height) = (format!("v{n}"), 1000 + n);
        home.put(
            &format!("upgrades/{height}/upgrade-info.json"),
            json!({"name": name, "height": height, "info": info}).to_string(),
        );
        let said = home.run(&[PLAIN, &["upgrade", "prepare", &name]].concat());
        assert_eq!(said.code, 0, "{info}: {}", said.err);
        installed(&home, &name, SCRIPT);
    }
    assert_eq!(server.asked("/index.json").len(), 1);
    // Words are words.
    home.put(
        "upgrades/2000/upgrade-info.json",
        r#"{"name": "words", "height": 2000, "info": "see https://example.org"}"#,
    );
    home.run(&["upgrade", "prepare", "words"]).code(1).one_error("no plan says from where to fetch it: give --url");
}

#[test]
fn what_nobody_vouches_for_is_not_fetched() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    let url = server.secret_url("/file");
    for path in ["/bare.json", "/good.json"] {
        server.page(path, Page::new(json!({"binaries": {"any": server.url("/file")}}).to_string()));
    }
    let index = json!({"binaries": {"any": server.url("/file")}}).to_string();
    let about = |n: u64, info: Value| {
        home.put(
            &format!("upgrades/{n}/upgrade-info.json"),
            json!({"name": format!("v{n}"), "height": n, "info": info}).to_string(),
        );
        let said = home.run(&[PLAIN, &["upgrade", "prepare", &format!("v{n}")]].concat());
        assert!(!said.err.contains("secret"), "{}", said.err);
        assert!(!home.own(&format!("upgrades/v{n}")).exists());
        said
    };
    about(100, json!({"binaries": {"any": url}})).code(2).one_error("has no checksum");
    about(101, json!(server.url("/bare.json"))).code(2).one_error("has no checksum");
    assert_eq!(server.asked("/bare.json").len(), 0);
    about(102, json!(format!("{}?checksum={}", server.url("/good.json"), sum(&index))))
        .code(2)
        .one_error("has no checksum");
    about(103, json!(format!("{}?checksum={}", server.url("/good.json"), sum("x"))))
        .code(1)
        .one_error("is not what it should be");
    about(104, json!({"binaries": {"any": url}, "checksum": "md5:abc"})).code(1).one_error("is no checksum");
    about(105, json!({"binaries": {"any": format!("{url}&checksum={}", sum(SCRIPT))}, "checksum": sum("x")}))
        .code(1)
        .one_error("contradict");
    about(106, json!({"binaries": {"any": "ftp://user:secret@host/x?secret#secret"}}))
        .code(1)
        .one_error("give http, https or file");
    about(107, json!({"binaries": {"any": "http://user:secret@host:port/x#secret"}})).code(1).one_error("port");
    about(108, json!({"binaries": {"plan9/mips": url}})).code(1).one_error("neither");
    prepare(&home, PLAIN, &url, "").code(2).one_error("has no checksum");
    assert_eq!(server.asked("/file").len(), 0);
    // Unless the operator wants it so; then a resumed part could not be told from another file.
    server.pages("/file", vec![Page::new(large(1 << 20)).ranges().cut(1 << 19), Page::new(SCRIPT).ranges()]);
    prepare(&home, &[PLAIN, &["--set", "unsafe_skip_checksum=true"]].concat(), &url, "").code(0);
    installed(&home, "v2", SCRIPT);
}

#[test]
fn redirects_are_followed_five_times_and_only_within_the_web() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    let other = Server::with(Page::new(SCRIPT));
    server.page("/a", Page::redirect("301 Moved Permanently", "/deep/b"));
    server.page("/deep/b", Page::redirect("302 Found", "c"));
    server.page("/deep/c", Page::redirect("307 Temporary Redirect", "../d"));
    server.page("/d", Page::redirect("308 Permanent Redirect", &server.url("/e")));
    server.page("/e", Page::redirect("302 Found", &other.url("/file")));
    prepare(&home, ONCE, &server.secret_url("/a"), &sum(SCRIPT)).code(0);
    installed(&home, "v2", SCRIPT);
    // The name and the word are not for another server.
    assert_eq!(other.asked("/file")[0].header("authorization"), None);
    fs::remove_dir_all(home.own("upgrades/v2")).unwrap();
    server.page("/round", Page::redirect("302 Found", "/round"));
    server.page("/disk", Page::redirect("302 Found", "file:///etc/hostname"));
    server.page("/other", Page::redirect("302 Found", "ftp://127.0.0.1/x"));
    server.page("/gone", Page::redirect("303 See Other", "/away?token=secret"));
    server.page("/away", Page::status("410 Gone"));
    server.page("/nowhere", Page::status("302 Found"));
    server.page("/odd", Page::redirect("302 Found", "http://[::"));
    for (path, why) in [
        ("/round", "more than 5 redirects"),
        ("/disk", "it redirects to \"file:///etc/hostname\", which is not followed"),
        ("/other", "it redirects to \"ftp://127.0.0.1/x\", which is not followed"),
        ("/gone", "status 410 Gone (at http://127.0.0.1:"),
        ("/nowhere", "status 302"),
        ("/odd", "which is not followed"),
    ] {
        let url = server.secret_url(path);
        let ours = if path == "/round" { PLAIN } else { ONCE };
        refused(&home, prepare(&home, ours, &url, &sum(SCRIPT)), &url, why);
    }
    assert_eq!(server.asked("/round").len(), 6, "and not tried again");
}

#[test]
fn a_proxy_is_used_where_the_environment_names_one() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    let proxy = Proxy::new();
    let address = format!("http://127.0.0.1:{}", proxy.port);
    let with_word = format!("http://user:secret@127.0.0.1:{}", proxy.port);
    let mut through = 0;
    for (variables, used) in [
        (vec![("http_proxy", address.as_str())], true),
        (vec![("HTTP_PROXY", &with_word)], true),
        (vec![("ALL_PROXY", &address)], true),
        (vec![("HTTPS_PROXY", &address)], false),
        (vec![("http_proxy", &address), ("NO_PROXY", "example.org, 127.0.0.1")], false),
        (vec![("http_proxy", &address), ("no_proxy", "*")], false),
        (vec![("http_proxy", &address), ("NO_PROXY", "example.org")], true),
        (vec![("http_proxy", "")], false),
    ] {
        let mut command = prepare_command(&home, ONCE, &server.url("/file"), &sum(SCRIPT));
        command.envs(variables.iter().copied());
        said(command).code(0);
        through += usize::from(used);
        assert_eq!(proxy.asked().len(), through, "{variables:?}");
        fs::remove_dir_all(home.own("upgrades/v2")).unwrap();
    }
    let asked = proxy.asked();
    assert!(asked[0].starts_with(&format!("CONNECT 127.0.0.1:{} ", server.port)), "{}", asked[0]);
    assert!(asked[1].to_lowercase().contains("proxy-authorization: basic dxnlcjpzzwnyzxq="), "{}", asked[1]);
    let mut command = prepare_command(&home, ONCE, &server.url("/file"), &sum(SCRIPT));
    command.env("ALL_PROXY", "socks5://user:secret@127.0.0.1:1");
    refused(&home, said(command), &server.url("/file"), "ALL_PROXY names no proxy that can be used");
    let mut command = prepare_command(&home, ONCE, &server.url("/file"), &sum(SCRIPT));
    command.env("http_proxy", "ftp://user:secret@here");
    refused(&home, said(command), &server.url("/file"), "http_proxy names no proxy that can be used");
    let mut command = prepare_command(&home, ONCE, &server.url("/file"), &sum(SCRIPT));
    command.env("http_proxy", format!("http://user:secret@127.0.0.1:{}", free_port()));
    refused(&home, said(command), &server.url("/file"), "refused");
}

// ---- what was cut short ----------------------------------------------------------------------------------------

#[test]
fn what_was_cut_short_goes_on_where_it_stopped() {
    let home = Home::new();
    let file = large(300_000);
    let whole = || Page::new(large(300_000));
    let server = Server::new();
    let get = |pages: Vec<Page>| {
        let before = server.asked("/file").len();
        let mut all = vec![Page::status("500 Internal Server Error"); before];
        all.extend(pages);
        server.pages("/file", all);
        prepare(&home, PLAIN, &server.url("/file"), &sum(&file)).code(0);
        installed(&home, "v2", &file);
        fs::remove_dir_all(home.own("upgrades/v2")).unwrap();
        server.asked("/file")[before..].iter().map(|request| request.from()).collect::<Vec<_>>()
    };
    // In one run, by the content's own name.
    let named = || whole().ranges().header("etag: \"one\"");
    assert_eq!(get(vec![named().cut(200_000), named()]), [None, Some(200_000)]);
    assert_eq!(server.asked("/file")[1].header("if-range"), Some("\"one\""));
    // A server that knows nothing of parts begins anew, and may break once more.
    assert_eq!(get(vec![whole().cut(200_000), whole()]), [None, Some(200_000)]);
    // One that says other than it was asked, or nothing of what it sends, is asked for the whole.
    let odd = |range: &str| Page::new(&file[200_000..]).header(range).with_status("206 Partial Content");
    for range in [
        "content-range: bytes 100000-299999/300000",
        "content-range: bytes 200000-299999/300001",
        "content-range: bytes 200000-299998/299999",
        "content-range: rubbish",
        "x: y",
    ] {
        assert_eq!(get(vec![whole().cut(200_000), odd(range), whole()]), [None, Some(200_000), None], "{range}");
    }
    let other_part = Page::new(&file[100_000..]).header("content-range: bytes 100000-299999/300000");
    let other_part = other_part.with_status("206 Partial Content");
    assert_eq!(get(vec![whole().cut(200_000), other_part, whole()]), [None, Some(200_000), None]);
    assert_eq!(
        get(vec![whole().cut(200_000), Page::status("416 Range Not Satisfiable"), whole()]),
        [None, Some(200_000), None]
    );
    // The rest of another file: found by the checksum, and fetched once more from the beginning.
    let other = Page::new(vec![7; 300_000]).ranges();
    assert_eq!(get(vec![whole().cut(200_000), other, whole()]), [None, Some(200_000), None]);
    // A server in trouble for a moment; what is there is kept.
    assert_eq!(
        get(vec![whole().ranges().cut(200_000), Page::status("503 Service Unavailable"), whole().ranges()]),
        [None, Some(200_000), Some(200_000)]
    );
}

#[test]
fn what_is_there_is_kept_when_the_next_try_fails_for_good() {
    let home = Home::new();
    let file = large(300_000);
    let server = Server::new();
    let page = || Page::new(large(300_000)).ranges();
    server.pages("/file", vec![page().cut(200_000), Page::status("403 Forbidden"), page()]);
    let url = server.url("/file");
    prepare(&home, ONCE, &url, &sum(&file)).code(1).one_error("ended");
    let kept = || parts(&home).iter().map(|path| fs::metadata(path).unwrap().len()).collect::<Vec<_>>();
    assert_eq!(kept(), [200_000]);
    prepare(&home, ONCE, &url, &sum(&file)).code(1).one_error("status 403 Forbidden");
    assert_eq!(kept(), [200_000]);
    prepare(&home, ONCE, &url, &sum(&file)).code(0);
    installed(&home, "v2", &file);
    assert_eq!(server.asked("/file")[2].from(), Some(200_000));
}

#[test]
fn what_was_killed_goes_on_where_it_stopped() {
    let home = Home::new();
    let file = large(3 << 20);
    let server = Server::with(Page::new(large(3 << 20)).ranges().held(2 << 20));
    let url = server.url("/file");
    let size = || parts(&home).first().map_or(0, |path| fs::metadata(path).unwrap().len());
    // The command.
    let mut child = begin(prepare_command(&home, PLAIN, &url, &sum(&file)));
    until("two thirds are there", || (size() == 2 << 20).then_some(()));
    prepare(&home, PLAIN, &url, &sum(&file)).code(4).one_error("another process fetches");
    child.kill().unwrap();
    child.wait().unwrap();
    // The supervisor: its job dies with it.
    plan(&home, "v2", 1000, &url, &sum(&file));
    let mut visor = home.supervise(FETCHES, &[]);
    until_asked(&server, "/file", 2);
    visor.kill();
    server.go_on();
    let mut visor = home.supervise(FETCHES, &[]);
    home.until_log("release v2 is ready");
    installed(&home, "v2", &file);
    let asked: Vec<_> = server.asked("/file").iter().map(|request| request.from()).collect();
    assert_eq!(asked[..2], [None, Some(2 << 20)]);
    assert!(asked[2..].iter().all(|from| from.is_some()), "{asked:?}");
    // Killed when all was there but this.
    let left = home.own("staging/v2-0123456789abcdef.part");
    fs::write(&left, "left").unwrap();
    home.run(&["upgrade", "check"]).code(0);
    assert_eq!(parts(&home), Vec::<PathBuf>::new());
    visor.stop();
}

// ---- what is refused -------------------------------------------------------------------------------------------

#[test]
fn a_download_that_is_not_what_it_should_be_is_refused_with_a_line_and_leaves_nothing() {
    let home = Home::new();
    let server = Server::new();
    let good = sum(SCRIPT);
    let many = 5 << 30;
    let table = [
        ("/other", Page::new("#!/bin/sh\necho other\n"), "is not what it should be: its checksum is sha256:"),
        ("/html", Page::new("<html>log in</html>"), "is not what it should be"),
        ("/short", Page::new(SCRIPT).claims(5), "is not what it should be"),
        ("/long", Page::new(SCRIPT).claims(1000), "ended"),
        ("/page", Page::new("<html>log in</html>").header("content-type: text/html"), "a web page came in its place"),
        ("/empty", Page::new(""), "nothing came"),
        ("/cut-without-length", Page::new(SCRIPT).without_length().cut(5), "does not say how long it is"),
        ("/missing", Page::status("404 Not Found"), "status 404 Not Found"),
        ("/closed", Page::status("403 Forbidden"), "status 403 Forbidden"),
        ("/broken", Page::status("500 Internal Server Error"), "status 500 Internal Server Error"),
        ("/nothing", Page::status("204 No Content"), "status 204 No Content"),
        ("/odd", Page::status("299 Odd"), "status 299"),
        ("/vast", Page::new(SCRIPT).claims(many), "it is 5GiB, more than 4GiB"),
        (
            "/part",
            Page::new(SCRIPT).with_status("206 Partial Content"),
            "it sends \"\" when asked for all from byte 0 on",
        ),
    ];
    for (path, page, why) in table {
        server.page(path, page);
        let url = server.secret_url(path);
        let said = prepare(&home, ONCE, &url, &good);
        if path == "/long" {
            // What came may be the beginning of the right one.
            said.code(1).one_error(why);
            assert_eq!(parts(&home).len(), 1);
            fs::remove_file(&parts(&home)[0]).unwrap();
        } else {
            refused(&home, said, &url, why);
        }
        assert_eq!(server.asked(path).len(), 1, "{path} is not asked for again");
    }
    // Servers that are none.
    let head = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n{SCRIPT}");
    for (path, bytes) in [
        ("/ssh", "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned()),
        ("/escape", "\x1b[2J\x1b[31m\r\n\r\n".to_owned()),
        ("/silent", String::new()),
        ("/half-head", "HTTP/1.1 200 OK\r\ncontent-len".to_owned()),
        ("/endless-head", format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(100_000))),
        ("/minus", head("content-length: -5")),
        ("/beyond", head("content-length: 99999999999999999999")),
        ("/two", head("content-length: 5\r\ncontent-length: 6")),
        ("/chunks", head("transfer-encoding: chunked")),
    ] {
        server.page(path, Page::raw(bytes));
        let url = server.secret_url(path);
        let said = prepare(&home, ONCE, &url, &good);
        assert!(!said.err.contains('\x1b'), "{:?}", said.err);
        refused(&home, said, &url, "cannot fetch");
    }
    server.page("/index", Page::new(vec![b' '; 1 << 16]).endless());
    server.page("/index.html", Page::new("<html>"));
    for (path, content, why) in [("/index", "", "it is larger than 1MiB"), ("/index.html", "<html>", "is not JSON")] {
        let info = format!("{}&checksum={}", server.secret_url(path), sum(content));
        home.put("upgrades/1/upgrade-info.json", json!({"name": "v2", "height": 1, "info": info}).to_string());
        let url = server.secret_url(path);
        refused(&home, home.run(&[ONCE, &["upgrade", "prepare", "v2"]].concat()), &url, why);
    }
    // Never, whatever is set.
    let unsafe_ones = [ONCE, &["--set", "unsafe_skip_checksum=true"]].concat();
    let url = server.secret_url("/other");
    refused(&home, prepare(&home, &unsafe_ones, &url, &good), &url, "is not what it should be");
    let url = format!("http://127.0.0.1:{}/file", free_port());
    refused(&home, prepare(&home, ONCE, &url, &good), &url, "refused");
    let url = "http://nowhere.invalid/file";
    refused(&home, prepare(&home, ONCE, url, &good), url, "nowhere.invalid");
    let url = server.url("/file").replace("http:", "https:");
    refused(&home, prepare(&home, PLAIN, &url, &good), &url, "it does not speak TLS");
    // What is no program, though it is what it should be.
    for (path, content, why) in [
        ("/text", &b"hello"[..], "is neither a program for Linux (ELF) nor a script"),
        ("/page", b"<html>", "is neither a program for Linux (ELF) nor a script"),
        ("/zip", b"PK\x03\x04rest", "is a zip archive, which is not taken: give the binary itself or a .tar.gz"),
        ("/xz", b"\xfd7zXZ\0rest", "is an xz archive, which is not taken: give the binary itself or a .tar.gz"),
        ("/zst", b"\x28\xb5\x2f\xfdrest", "is a zstd archive, which is not taken: give the binary itself or a .tar.gz"),
        ("/bz2", b"BZh91AYrest", "is a bzip2 archive, which is not taken: give the binary itself or a .tar.gz"),
        ("/half", b"\x7fELF\x02\x01\x01", "is cut short"),
    ] {
        server.page(path, Page::new(content));
        let url = server.secret_url(path);
        refused(&home, prepare(&home, ONCE, &url, &sum(content)), &url, why);
    }
    let missing = home.dir.join("missing");
    for (url, why) in [
        (missing.to_str().unwrap(), "No such file"),
        (home.dir.to_str().unwrap(), "not a regular file"),
        ("/dev/null", "not a regular file"),
    ] {
        refused(&home, prepare(&home, ONCE, url, &good), url, why);
    }
}

#[test]
fn what_broke_is_tried_again_as_often_as_the_operator_wants() {
    let home = Home::new();
    let server = Server::new();
    server.pages("/mends", vec![Page::status("500 Internal Server Error"), Page::new(SCRIPT)]);
    let said = prepare(&home, PLAIN, &server.url("/mends"), &sum(SCRIPT)).code(0);
    installed(&home, "v2", SCRIPT);
    let line = said.err.lines().next().unwrap();
    assert!(line.contains("status 500 Internal Server Error; another try in 1 s"), "{}", said.err);
    fs::remove_dir_all(home.own("upgrades/v2")).unwrap();
    server.page("/broken", Page::status("503 Service Unavailable"));
    let url = server.secret_url("/broken");
    let said = prepare(&home, &[PLAIN, &["--set", "download_retries=1"]].concat(), &url, &sum(SCRIPT));
    let last = said.code(1).err.lines().last().unwrap().to_owned();
    assert!(last.contains("status 503 Service Unavailable (tried 2 times)"), "{last}");
    assert_eq!(server.asked("/broken").len(), 2);
}

#[test]
fn an_excuse_is_no_wrong_checksum_and_is_tried_again() {
    let home = Home::new();
    let server = Server::new();
    let page = || Page::new("<html>back soon</html>").header("content-type: text/html; charset=utf-8");
    let index = json!({"binaries": {"any": server.url("/file")}, "checksum": sum(SCRIPT)}).to_string();
    server.page("/file", Page::new(SCRIPT));
    // What ends where the server said so is what the server has.
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nother\r\n0\r\n\r\n";
    server.page("/chunked", Page::raw(chunked));
    let url = server.url("/chunked");
    refused(&home, prepare(&home, PLAIN, &url, &sum(SCRIPT)), &url, "is not what it should be");
    assert_eq!(server.asked("/chunked").len(), 1);
    for (n, (first, then, why)) in [
        (page(), Page::new(SCRIPT), "a web page came in its place"),
        (Page::new(""), Page::new(SCRIPT), "nothing came"),
        (Page::new(SCRIPT).without_length().cut(9), Page::new(SCRIPT), "does not say how long it is"),
        (Page::new("x").header("Content-Type: TEXT/HTML"), Page::new(index.as_str()), "a web page came in its place"),
    ]
    .into_iter()
    .enumerate()
    {
        let (path, is_index) = (format!("/{n}"), n == 3);
        let of = if is_index { sum(&index) } else { sum(SCRIPT) };
        server.pages(&path, vec![first, then]);
        let url = format!("{}?checksum={of}", server.url(&path));
        let info = if is_index { json!(url) } else { json!({"binaries": {"any": url}}) };
        home.put("upgrades/9/upgrade-info.json", json!({"name": "v2", "height": 9, "info": info}).to_string());
        let said = home.run(&[PLAIN, &["upgrade", "prepare", "v2"]].concat()).code(0);
        assert!(said.err.contains(why) && said.err.contains("another try in 1 s"), "{}", said.err);
        assert_eq!(server.asked(&path).len(), 2);
        installed(&home, "v2", SCRIPT);
        fs::remove_dir_all(home.own("upgrades/v2")).unwrap();
    }
}

#[test]
fn a_supervisor_says_what_is_in_the_way_of_a_download_and_when_it_tries_again() {
    let home = Home::new();
    let server = Server::new();
    let broken = || Page::status("503 Service Unavailable");
    server.pages("/file", vec![broken(), broken(), broken(), Page::new(SCRIPT)]);
    plan(&home, "v2", 1000, &server.secret_url("/file"), &sum(SCRIPT));
    let mut visor = home.supervise(FETCHES, &[]);
    home.until_status("it says why", |s| note(s, "v2").contains("status 503 Service Unavailable; another try in 4 s"));
    home.until_log("release v2 is ready");
    let log = home.log();
    for pause in ["1", "2", "4"] {
        assert!(log.contains(&format!("status 503 Service Unavailable; another try in {pause} s")), "{log}");
    }
    assert!(!log.contains("secret"), "{log}");
    visor.stop();
}

#[test]
fn a_release_that_appears_can_be_executed_at_once() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    plan(&home, "v2", 1000, &server.url("/file"), &sum(SCRIPT));
    let mut visor = home.supervise(PLAIN, &[]);
    home.until_log("upgrade v2 is planned");
    // Slow syncs, so that there is much time between the release's name and the end of who brought it.
    let slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:delay_exit=300000"];
    if !strace::available() {
        eprintln!("SKIPPED: strace cannot trace here");
        return;
    }
    said(under(&slow, &home.command(&[PLAIN, &["upgrade", "prepare", "v2"]].concat()))).code(0);
    home.until_log("release v2 is ready");
    assert_eq!(home.logged("busy"), 0, "{}", home.log());
    installed(&home, "v2", SCRIPT);
    visor.stop();
}

#[test]
fn a_slow_index_that_comes_all_the_same_is_taken() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    let mut index = json!({"binaries": {"any": server.url("/file")}, "checksum": sum(SCRIPT)}).to_string();
    // More than half a minute, at about twice the pace that is put up with.
    index.push_str(&" ".repeat(66_000));
    server.page("/index", Page::new(index.as_str()).drips(Duration::from_micros(450)));
    let info = format!("{}?checksum={}", server.url("/index"), sum(&index));
    home.put("upgrades/9/upgrade-info.json", json!({"name": "v2", "height": 9, "info": info}).to_string());
    home.run(&[ONCE, &["upgrade", "prepare", "v2"]].concat()).code(0);
    installed(&home, "v2", SCRIPT);
}

#[test]
fn what_was_cut_short_long_ago_goes_on_where_it_stopped() {
    let home = Home::new();
    let file = large(300_000);
    let server = Server::new();
    let page = || Page::new(large(300_000)).ranges();
    server.pages("/file", vec![page().cut(200_000), page()]);
    let url = server.url("/file");
    prepare(&home, ONCE, &url, &sum(&file)).code(1).one_error("ended");
    let old = std::time::SystemTime::now() - Duration::from_hours(72);
    home.put("staging/v9-0123456789abcdef.part", "old");
    for part in parts(&home) {
        File::options().write(true).open(part).unwrap().set_modified(old).unwrap();
    }
    prepare(&home, ONCE, &url, &sum(&file)).code(0);
    // What nobody goes on with is gone.
    installed(&home, "v2", &file);
    assert_eq!(server.asked("/file")[1].from(), Some(200_000));
}

#[test]
fn a_release_that_somebody_else_brings_meanwhile_is_not_claimed() {
    let home = Home::new();
    let server = Server::with(Page::new(large(1 << 20)).held(1 << 19));
    let fetching = begin(prepare_command(&home, PLAIN, &server.url("/file"), &sum(large(1 << 20))));
    until("half of it is there", || {
        parts(&home).first().is_some_and(|part| fs::metadata(part).unwrap().len() == 1 << 19).then_some(())
    });
    let file = home.dir.join("mine");
    fs::write(&file, SCRIPT).unwrap();
    home.run(&["upgrade", "add", "v2", file.to_str().unwrap()]).code(0);
    server.go_on();
    let said = end(fetching).code(0);
    assert!(said.err.contains("somebody else has brought it") && !said.err.contains("is there: 1MiB"), "{}", said.err);
    installed(&home, "v2", SCRIPT);
}

#[test]
fn a_download_that_hardly_moves_is_given_up_and_all_are_told_how_far_it_is() {
    let home = Home::new();
    let quiet = Home::new();
    let watched = Home::new();
    let server = Server::with(Page::new(SCRIPT).drips(Duration::from_millis(7600)));
    let url = server.secret_url("/file");
    plan(&watched, "v2", 1000, &url, &sum(SCRIPT));
    let mut visor = watched.supervise(FETCHES_ONCE, &[]);
    let loud = begin(prepare_command(&home, ONCE, &url, &sum(SCRIPT)));
    let mute = begin(prepare_command(&quiet, &[ONCE, &["--quiet"]].concat(), &url, &sum(SCRIPT)));
    let status = watched
        .until_status("the first byte is there", |s| s["upgrade"]["progress"] == format!("1B of {}B", SCRIPT.len()));
    assert_eq!(status["upgrade"]["phase"], "staging");
    assert!(status["upgrade"]["waits_for"].as_str().unwrap().contains("its release is being fetched: 1B of"));
    let line = watched.until_log("fetching release v2: ");
    assert!(line.contains(&format!("B of {}B", SCRIPT.len())), "{line}");
    let told = end(loud).code(1);
    assert!(told.err.contains("fetching v2: "), "{}", told.err);
    assert!(told.err.lines().last().unwrap().contains("B came in 30 s"), "{}", told.err);
    assert!(!told.err.contains("secret") && !told.err.contains('\r'), "{}", told.err);
    end(mute).code(1).one_error("B came in 30 s");
    let status = watched.until_status("it is given up", |s| note(s, "v2").contains("B came in 30 s"));
    assert!(note(&status, "v2").contains("another try in"), "{status}");
    assert_eq!(watched.log().matches("secret").count(), 0);
    visor.stop();
}

#[test]
fn a_download_that_has_no_room_ends_before_the_disk_is_full() {
    let home = Home::new();
    let Some(_small) = tmpfs(&home.own("staging"), "8m") else { return };
    let server = Server::new();
    let prepare = |url: &str, sum: &str| prepare(&home, &[ONCE, &["--quiet"]].concat(), url, sum);
    server.page("/endless", Page::new(vec![b'x'; 1 << 20]).endless());
    let url = server.secret_url("/endless");
    refused(&home, prepare(&url, &sum(SCRIPT)), &url, "free at");
    // Twice: as it comes, and as the release that it becomes.
    let file = large(5 << 20);
    server.page("/twice", Page::new(&file[..]));
    let url = server.secret_url("/twice");
    refused(&home, prepare(&url, &sum(&file)), &url, "it needs 10MiB");
    let path = home.dir.join("large");
    fs::write(&path, &file).unwrap();
    let url = path.to_str().unwrap();
    refused(&home, prepare(url, &sum(&file)), url, "it needs 10MiB");
    // A part that cannot be completed is in the node's way.
    let file = large(3 << 20);
    server.pages("/grows", vec![Page::new(&file[..]).cut(2 << 20), Page::new(SCRIPT).claims(5 << 20)]);
    let url = server.secret_url("/grows");
    prepare(&url, &sum(SCRIPT)).code(1).one_error("ended");
    refused(&home, prepare(&url, &sum(SCRIPT)), &url, "make room");
    // What comes out of an archive is known before any of it does.
    let text: Vec<u8> = (0..7 << 18).flat_map(|n: u32| (n % 5000).to_le_bytes()).collect();
    let archive = Tar::new().file("bin/node", 0o755, SCRIPT).file("text", 0o644, text).gz();
    server.page("/archive", Page::new(&archive[..]));
    let url = server.secret_url("/archive");
    refused(&home, prepare(&url, &sum(&archive)), &url, "it needs 7MiB");
}

#[test]
fn whatever_lies_in_staging_is_neither_trusted_nor_in_the_way() {
    let home = Home::new();
    let file = large(300_000);
    let server = Server::with(Page::new(&file[..]).ranges().cut(200_000));
    let url = server.url("/file");
    prepare(&home, ONCE, &url, &sum(&file)).code(1);
    let [part] = &parts(&home)[..] else { panic!("{:?}", parts(&home)) };
    server.page("/file", Page::new(&file[..]).ranges());
    let precious = home.dir.join("precious");
    let again = || {
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        prepare(&home, ONCE, &url, &sum(&file)).code(0);
        installed(&home, "v2", &file);
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        fs::remove_dir_all(home.own("upgrades/v2")).unwrap();
    };
    fs::write(&precious, "precious").unwrap();
    fs::remove_file(part).unwrap();
    symlink(&precious, part).unwrap();
    again();
    fs::hard_link(&precious, part).unwrap();
    again();
    fs::create_dir(part).unwrap();
    fs::write(part.join("x"), "x").unwrap();
    again();
    assert!(Command::new("mkfifo").arg(part).status().unwrap().success());
    again();
    fs::write(part, vec![0; 400_000]).unwrap();
    again();
    // Complete already: nothing is asked for.
    fs::write(part, &file).unwrap();
    let before = server.asked("/file").len();
    again();
    assert_eq!(server.asked("/file").len(), before);
    let tree = part.with_extension("tree");
    symlink(&home.dir, &tree).unwrap();
    again();
    fs::create_dir_all(tree.join("bin/node")).unwrap();
    again();
    fs::write(&tree, "x").unwrap();
    again();
    // Left by others, long ago.
    let old = home.own("staging");
    fs::write(old.join("old.part"), "x").unwrap();
    assert!(Command::new("mkfifo").arg(old.join("old.fifo")).status().unwrap().success());
    fs::create_dir_all(old.join("old.tree/bin")).unwrap();
    symlink(&precious, old.join("old.link")).unwrap();
    for name in ["old.part", "old.fifo", "old.tree", "old.link"] {
        let mut touch = Command::new("touch");
        assert!(touch.args(["-h", "-d", "2020-01-01"]).arg(old.join(name)).status().unwrap().success());
    }
    again();
    // In the place of the directory itself.
    fs::remove_dir(&old).unwrap();
    fs::write(&old, "x").unwrap();
    let said = prepare(&home, ONCE, &url, &sum(&file)).code(4).one_error("is not a directory: move it away");
    assert!(said.err.contains("staging"), "{}", said.err);
    fs::remove_file(&old).unwrap();
    let elsewhere = home.dir.join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, &old).unwrap();
    again();
    fs::remove_file(&old).unwrap();
    let Some(disk) = tmpfs(&old, "1m") else { return };
    let said = prepare(&home, ONCE, &url, &sum(&file)).code(1);
    let said = said.one_error("lies on another file system");
    assert!(said.err.contains("staging"), "{}", said.err);
    let mut mount = Command::new("mount");
    assert!(mount.args(["-o", "remount,ro"]).arg(&disk.0).status().unwrap().success());
    prepare(&home, ONCE, &url, &sum(&file)).code(1).one_error("Read-only file system");
}

#[test]
fn a_large_download_takes_little_memory() {
    let home = Home::new();
    let size = 24 << 20;
    let server = Server::with(Page::new(vec![b'x'; size]).held(size - 1));
    let mut child = begin(prepare_command(&home, ONCE, &server.url("/file"), &sum(SCRIPT)));
    until("nearly all is there", || {
        (parts(&home).iter().any(|path| fs::metadata(path).is_ok_and(|m| m.len() == size as u64 - 1))).then_some(())
    });
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(peak < 20 << 10, "{peak} kB");
}

#[test]
fn a_home_with_a_long_path_gets_its_release() {
    let home = Home::empty();
    let node = home.dir.join("node");
    fs::write(&node, SCRIPT).unwrap();
    let root = home.dir.join("long".repeat(30)).join("home");
    let server = Server::with(Page::new(SCRIPT));
    let run = |args: &[&str]| {
        let mut command = home.command(args);
        command.env("DAEMON_HOME", &root);
        said(command)
    };
    fs::create_dir_all(&root).unwrap();
    run(&["init", node.to_str().unwrap()]).code(0);
    run(&[PLAIN, &["upgrade", "prepare", "v2", "--url", &server.url("/file"), "--checksum", &sum(SCRIPT)]].concat())
        .code(0);
    assert_eq!(fs::read(root.join("wemixvisor/upgrades/v2/bin/node")).unwrap(), SCRIPT.as_bytes());
}

// ---- by the supervisor -----------------------------------------------------------------------------------------

#[test]
fn a_release_is_fetched_while_the_old_one_runs_and_takes_over_at_its_height() {
    let home = Home::new();
    let node = fs::read(mocknode()).unwrap();
    let archive =
        Tar::new().dir("geth-x/").file("geth-x/COPYING", 0o644, "text").file("geth-x/geth", 0o755, &node).gz();
    let server = Server::with(Page::new(&archive[..]).held(4096));
    // What the operator put there beforehand is kept.
    let release = home.own("upgrades/v2");
    fs::create_dir_all(&release).unwrap();
    fs::write(release.join("mock-flags"), "--halt-at 1000000").unwrap();
    fs::write(release.join("pre-upgrade"), "#!/bin/sh\necho the hook ran\n").unwrap();
    fs::set_permissions(release.join("pre-upgrade"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(release.join("node-args"), "%{args}\n--verbosity\n3\n").unwrap();
    plan(&home, "v2", 40, &server.secret_url("/file"), &sum(&archive));
    let mut visor = home.supervise(FETCHES, &["--start-head", "20", "--halt-at", "39"]);
    home.until_status("some of it is there", |s| {
        s["upgrade"]["phase"] == "staging" && s["upgrade"]["progress"].is_string()
    });
    let status = home.until_status("the height is there", |s| s["height"] == 39);
    assert_eq!((status["state"].as_str(), status["release"].as_str()), (Some("running"), Some("genesis")));
    home.until_log("upgrade v2 is due but waits, the old release runs on: its release is being fetched");
    server.go_on();
    home.until_finished("v2", "committed");
    assert_eq!(home.current(), "v2");
    installed(&home, "v2", &node);
    assert!(home.logged("the hook ran") >= 1);
    assert_eq!(names(&release), ["bin", "fetched.json", "mock-flags", "node-args", "pre-upgrade", "upgrade-info.json"]);
    let args = home.status()["args"].to_string();
    assert!(args.contains("--verbosity"), "{args}");
    home.until_log("release v2 is there: ");
    assert_eq!(home.logged("fetching release v2 from"), 1);
    // One that runs is never replaced.
    server.page("/other", Page::new(SCRIPT));
    plan(&home, "v2", 40, &server.url("/other"), &sum(SCRIPT));
    home.run(&[PLAIN, &["upgrade", "prepare", "v2"]].concat()).code(4).one_error("v2 is in use and is not replaced");
    installed(&home, "v2", &node);
    assert_eq!(home.log().matches("secret").count(), 0);
    visor.stop();
}

#[test]
fn a_supervisor_that_may_not_fetch_says_what_to_do() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    plan(&home, "v2", 1000, &server.secret_url("/file"), &sum(SCRIPT));
    let mut visor = home.supervise(PLAIN, &[]);
    let told = |text: &str| {
        text.contains("set DAEMON_ALLOW_DOWNLOAD_BINARIES=true, or `wemixvisor upgrade prepare v2` fetches it from")
            && text.contains(&server.url("/file"))
            && !text.contains("secret")
    };
    home.until_status("the status tells", |s| told(&note(s, "v2")));
    assert!(told(&home.run(&["status"]).out), "{}", home.run(&["status"]).out);
    assert!(told(&home.run(&["upgrade", "list"]).out), "{}", home.run(&["upgrade", "list"]).out);
    assert_eq!(server.asked("/file").len(), 0);
    // Fetched by the operator, it is found at once.
    home.run(&[PLAIN, &["upgrade", "prepare"]].concat()).code(0);
    home.until_log("release v2 is ready");
    visor.stop();
}

#[test]
fn one_that_cannot_be_fetched_holds_up_no_other_and_is_mended_by_a_later_try() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    server.pages("/later", vec![Page::status("404 Not Found"), Page::new(SCRIPT)]);
    plan(&home, "v2", 1000, &server.secret_url("/later"), &sum(SCRIPT));
    plan(&home, "v3", 2000, &server.url("/file"), &sum(SCRIPT));
    let mut visor = home.supervise(FETCHES, &[]);
    home.until_log("release v3 is ready");
    let line = home.until_log("status 404");
    assert!(line.contains("it is tried again") && line.contains(&server.url("/later")), "{line}");
    assert_eq!(server.asked("/later").len(), 1);
    assert!(note(&home.status(), "v2").contains("another try in"), "{}", home.status());
    home.until_log("release v2 is ready");
    assert_eq!(server.asked("/later").len(), 2);
    assert_eq!(home.log().matches("secret").count(), 0);
    visor.stop();
}

#[test]
fn a_wrong_checksum_waits_for_the_operator() {
    let home = Home::new();
    let server = Server::with(Page::new("#!/bin/sh\necho other\n"));
    let url = server.secret_url("/file");
    plan(&home, "v2", 40, &url, &sum(SCRIPT));
    let mut visor = standing(&home, FETCHES);
    let line = home.until_log("release v2 cannot be had");
    assert!(line.contains("ERROR") && line.contains("is not what it should be"), "{line}");
    let status = home.until_status("it waits for the operator", |s| {
        note(s, "v2").contains("`wemixvisor upgrade prepare v2` tries again")
    });
    assert_eq!(status["release"], "genesis");
    home.until_log("upgrade v2 is due but waits");
    let check = home.run(&["upgrade", "check"]).code(1);
    assert!(check.out.contains("the supervisor says: ") && check.out.contains("is not what it should be"), "{check:?}");
    // Whatever else happens, it is not asked for again.
    let looked = home.put("upgrades/5000/upgrade-info.json", r#"{"name": "v9", "height": 5000}"#);
    home.until_log("upgrade v9 is planned");
    visor.signal(Signal::HUP);
    fs::remove_file(looked).unwrap();
    home.until_log("the plan for v9 at block 5000 was withdrawn");
    assert_eq!(server.asked("/file").len(), 1);
    assert_eq!(home.logged("cannot be had"), 1);
    assert_eq!(names(&home.own("upgrades")), Vec::<String>::new());
    home.run(&[PLAIN, &["upgrade", "prepare"]].concat()).code(1).one_error("is not what it should be");
    assert_eq!(server.asked("/file").len(), 2);
    // The file is right now: the operator's try brings it, and the upgrade goes its way.
    let script = format!("#!/bin/sh\nexec {} --halt-at 1000000 \"$@\"\n", mocknode().display());
    server.page("/file", Page::new(script.as_str()));
    plan(&home, "v2", 40, &url, &sum(&script));
    home.until_log("upgrade v2 begins");
    assert_eq!(home.log().matches("secret").count(), 0);
    visor.stop();
}

#[test]
fn what_is_no_release_is_not_fetched_again_and_again() {
    let home = Home::new();
    let server = Server::with(Page::new("PK\x03\x04"));
    plan(&home, "v2", 1000, &server.url("/file"), &sum("PK\x03\x04"));
    let mut visor = home.supervise(FETCHES, &[]);
    let line = home.until_log("release v2 cannot be had");
    assert!(line.contains("ERROR") && line.contains("is a zip archive"), "{line}");
    home.until_status("it waits for the operator", |s| {
        note(s, "v2").contains("`wemixvisor upgrade prepare v2` tries again")
    });
    assert_eq!(server.asked("/file").len(), 1);
    visor.stop();
}

#[test]
fn a_plan_that_is_withdrawn_ends_its_download_and_the_next_one_begins() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    server.page("/slow", Page::new(large(1 << 20)).held(1 << 19));
    plan(&home, "v2", 1000, &server.url("/slow"), &sum(large(1 << 20)));
    let mut visor = home.supervise(FETCHES, &[]);
    until_asked(&server, "/slow", 1);
    plan(&home, "v3", 2000, &server.url("/file"), &sum(SCRIPT));
    home.until_log("upgrade v3 is planned");
    home.run(&["upgrade", "cancel", "v2"]).code(0);
    home.until_log("release v3 is ready");
    assert_eq!(warnings(&home), 0, "{}", home.log());
    assert!(!home.own("upgrades/v2").exists());
    assert_eq!(server.asked("/slow").len(), 1);
    visor.stop();
}

#[test]
fn a_release_that_the_operator_brings_meanwhile_wins() {
    let home = Home::new();
    let server = Server::new();
    server.page("/slow", Page::new(large(1 << 20)).held(1 << 19));
    plan(&home, "v2", 1000, &server.url("/slow"), &sum(large(1 << 20)));
    let mut visor = home.supervise(FETCHES, &[]);
    home.until_phase("staging");
    let file = home.dir.join("mine");
    fs::write(&file, SCRIPT).unwrap();
    home.run(&["upgrade", "add", "v2", file.to_str().unwrap()]).code(0);
    home.until_log("release v2 is ready");
    server.go_on();
    visor.stop();
    assert_eq!(fs::read(home.own("upgrades/v2/bin/node")).unwrap(), SCRIPT.as_bytes());
    assert_eq!(server.asked("/slow").len(), 1);
    assert_eq!(home.logged("tried again"), 0, "{}", home.log());
    assert_eq!(warnings(&home), 0, "{}", home.log());
}

#[test]
fn a_plan_that_wants_another_file_by_now_gets_that_one_and_what_the_operator_put_there_stays() {
    let home = Home::new();
    let server = Server::new();
    let archive = Tar::new()
        .file("bin/node", 0o755, SCRIPT)
        .file("pre-upgrade", 0o755, SCRIPT)
        .file("node-args", 0o644, "--of-the-archive\n")
        .file("share/doc/COPYING", 0o644, "text")
        .gz();
    let other = format!("{SCRIPT}# another build\n");
    server.page("/a", Page::new(&archive[..]));
    server.page("/b", Page::new(other.as_str()));
    let schedule = |ours: &[&str], path: &str, sum: &str| {
        let url = server.url(path);
        let words = ["upgrade", "schedule", "v2", "1000", "--force", "--url", &url, "--checksum", sum];
        home.run(&[ours, PLAIN, &words].concat()).code(0)
    };
    let release = home.own("upgrades/v2");
    // Beforehand and afterwards, beside what is fetched and among it.
    fs::create_dir_all(&release).unwrap();
    fs::write(release.join("node-args"), "%{args}\n").unwrap();
    let mut visor = home.supervise(FETCHES, &[]);
    visor.until_up();
    let said = schedule(FETCHES, "/a", &sum(&archive));
    assert!(said.err.contains("is fetched from") && said.err.contains("/a now"), "{said:?}");
    home.until_log("release v2 is ready");
    home.run(&["upgrade", "check"]).code(0);
    fs::write(release.join("bin/wrapper"), "mine").unwrap();
    let theirs_stays = || {
        assert_eq!(fs::read_to_string(release.join("node-args")).unwrap(), "%{args}\n");
        assert_eq!(names(&release.join("bin")), ["node", "wrapper"]);
    };
    theirs_stays();
    // The same file from elsewhere is the same.
    assert_eq!(schedule(FETCHES, "/c", &sum(&archive)).err, "");
    home.run(&["upgrade", "check"]).code(0);
    // Another one is not, and is fetched.
    let said = schedule(FETCHES, "/b", &sum(&other));
    assert!(said.err.contains("/b now; the release that is there was fetched from"), "{said:?}");
    until("it is ready", || (home.logged("release v2 is ready") == 2).then_some(()));
    assert_eq!(fs::read(release.join("bin/node")).unwrap(), other.as_bytes());
    assert_eq!(names(&release), ["bin", "fetched.json", "node-args"], "what came with the first is gone");
    theirs_stays();
    home.run(&["upgrade", "check"]).code(0);
    assert_eq!((server.asked("/a").len(), server.asked("/b").len(), server.asked("/c").len()), (1, 1, 0));
    visor.stop();
    // Without a supervisor that may, the operator's command does it.
    let said = schedule(&[], "/a", &sum(&archive));
    assert!(said.err.contains("`wemixvisor upgrade prepare v2` fetches it"), "{said:?}");
    let check = home.run(&["upgrade", "check"]).code(1);
    assert!(check.out.contains("NO  it is the one that the plan wants: the release that is there"), "{check:?}");
    let mut visor = home.supervise(&[], &[]);
    home.until_log("release v2 is not ready: the release that is there was fetched from");
    home.run(&[PLAIN, &["upgrade", "prepare"]].concat()).code(0);
    until("it is ready", || (home.logged("release v2 is ready") == 3).then_some(()));
    assert_eq!(names(&release), ["bin", "fetched.json", "node-args", "pre-upgrade", "share"]);
    theirs_stays();
    // What the operator puts there is the operator's word.
    schedule(&[], "/b", &sum(&other));
    home.run(&["upgrade", "check"]).code(1);
    // Also where the clock went back since: the binary is what is replaced.
    let mut touch = Command::new("touch");
    assert!(touch.args(["-d", "2020-01-01"]).arg(release.join("fetched.json")).status().unwrap().success());
    home.run(&[PLAIN, &["upgrade", "prepare"]].concat()).code(0);
    assert_eq!(fs::read(release.join("bin/node")).unwrap(), other.as_bytes());
    let mine = home.put("mine", "#!/bin/sh\necho mine\n");
    home.run(&["upgrade", "add", "v2", mine.to_str().unwrap(), "--force"]).code(0);
    home.run(&["upgrade", "check"]).code(0);
    until("it is ready again", || (home.logged("release v2 is ready") > 3).then_some(()));
    visor.stop();
}

#[test]
fn a_stop_is_answered_at_once_while_a_download_hangs() {
    let home = Home::new();
    let server = Server::new();
    server.page("/slow", Page::new(large(1 << 20)).held(1 << 19));
    plan(&home, "v2", 1000, &server.url("/slow"), &sum(large(1 << 20)));
    let mut visor = home.supervise(FETCHES, &[]);
    visor.until_up();
    home.until_status("some of it is there", |s| {
        s["upgrade"]["phase"] == "staging"
            && s["upgrade"]["progress"].as_str().is_some_and(|text| text.ends_with("KiB of 1MiB"))
    });
    home.run(&["upgrade", "list"]).code(0);
    let began = std::time::Instant::now();
    visor.stop();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(warnings(&home), 0, "{}", home.log());
    until("the job is gone", || File::open(&parts(&home)[0]).unwrap().try_lock().is_ok().then_some(()));
}

#[test]
fn a_job_that_is_killed_is_tried_again() {
    let home = Home::new();
    let server = Server::new();
    let page = || Page::new(large(1 << 20)).ranges();
    server.pages("/file", vec![page().held(1 << 19), page()]);
    plan(&home, "v2", 1000, &server.url("/file"), &sum(large(1 << 20)));
    let mut visor = home.supervise(FETCHES, &[]);
    until("half is there", || {
        parts(&home).iter().any(|path| fs::metadata(path).is_ok_and(|m| m.len() == 1 << 19)).then_some(())
    });
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", visor.pid())).unwrap();
    let part = fs::canonicalize(&parts(&home)[0]).unwrap();
    let holds = |pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        fds.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == part))
    };
    let job = children.split_whitespace().map(|pid| pid.parse().unwrap()).find(holds).unwrap();
    kill(job, Signal::KILL);
    home.until_log("release v2 is ready");
    assert_eq!(server.asked("/file")[1].from(), Some(1 << 19));
    visor.stop();
}

#[test]
fn what_the_operator_changes_during_a_download_counts_at_once() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    server.page("/slow", Page::new(large(1 << 20)).held(1 << 19));
    server.page("/slower", Page::new(large(1 << 20)).held(1 << 19));
    let config = fs::read_to_string(home.own("config.toml")).unwrap();
    let may_fetch = |whether: bool| {
        fs::write(home.own("config.toml"), format!("{config}\ndaemon_allow_download_binaries = {whether}\n")).unwrap();
    };
    may_fetch(true);
    plan(&home, "v2", 1000, &server.url("/slow"), &sum(large(1 << 20)));
    let mut visor = home.supervise(PLAIN, &[]);
    until_asked(&server, "/slow", 1);
    // Another URL is another plan.
    plan(&home, "v2", 1000, &server.url("/slower"), &sum(large(1 << 20)));
    until_asked(&server, "/slower", 1);
    // What may not be fetched any more is not.
    may_fetch(false);
    visor.signal(Signal::HUP);
    home.until_status("it ends", |s| {
        note(s, "v2").contains("may not be fetched: set DAEMON_ALLOW_DOWNLOAD_BINARIES=true")
    });
    assert!(home.status()["upgrade"]["progress"].is_null(), "{}", home.status());
    may_fetch(true);
    visor.signal(Signal::HUP);
    until_asked(&server, "/slower", 2);
    plan(&home, "v2", 1000, &server.url("/file"), &sum(SCRIPT));
    home.until_log("release v2 is ready");
    assert_eq!(warnings(&home), 0, "{}", home.log());
    // Nor is anything left of what began before.
    installed(&home, "v2", SCRIPT);
    assert_eq!((server.asked("/slow").len(), server.asked("/slower").len(), server.asked("/file").len()), (1, 2, 1));
    visor.stop();
}

#[test]
fn what_lies_in_the_place_of_a_release_is_told_and_not_fetched_over() {
    let home = Home::new();
    let server = Server::with(Page::new(SCRIPT));
    fs::create_dir_all(home.own("upgrades/v2/bin")).unwrap();
    symlink("nowhere", home.own("upgrades/v2/bin/node")).unwrap();
    fs::create_dir_all(home.own("upgrades/v3/bin/node")).unwrap();
    fs::write(home.own("upgrades/v4"), "x").unwrap();
    for (n, name) in ["v2", "v3", "v4"].into_iter().enumerate() {
        plan(&home, name, 1000 + n as u64, &server.url("/file"), &sum(SCRIPT));
    }
    // A checksum that nobody gave is asked for, and no server.
    home.put(
        "upgrades/1010/upgrade-info.json",
        json!({"name": "v5", "height": 1010, "info": {"binaries": {"any": server.secret_url("/file")}}}).to_string(),
    );
    let mut visor = home.supervise(FETCHES, &[]);
    for (name, why) in [
        ("v2", "cannot use what is there already"),
        ("v3", "is a directory, not a binary"),
        ("v4", "Not a directory"),
        ("v5", "has no checksum"),
    ] {
        let status = home.until_status(&format!("{name} is told"), |s| note(s, name).contains(why));
        assert!(!note(&status, name).contains("secret"), "{status}");
    }
    assert!(home.log().lines().count() < 60, "{}", home.log());
    assert_eq!(home.logged("v5: "), 1, "{}", home.log());
    assert!(server.asked("/file").len() <= 1);
    visor.stop();
}
