//! The node's RPC: where a head comes from, what is taken for none, and whose it is.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{Home, free_port, mocknode, until};

/// What the status says is wrong with the node's RPC, once it was asked.
fn rpc_error(status: &Value) -> Option<String> {
    let text = status["health"]["checks"]["rpc_endpoint"]["error"].as_str()?;
    (!text.is_empty() && text != "not asked yet" && text != "the node does not run").then(|| text.to_owned())
}

#[track_caller]
fn until_asked(home: &Home) -> Value {
    home.until_status("the node was asked in vain", |s| s["state"] == "running" && rpc_error(s).is_some())
}

#[track_caller]
fn until_blocks_are_seen(home: &Home) {
    let first = home.until_status("a head is known", |s| s["head_known"] == true)["height"].as_u64().unwrap();
    home.until_status("it rises", |s| s["height"].as_u64() > Some(first));
}

// ---- where ---------------------------------------------------------------------------------------------------

#[test]
fn the_head_is_told_over_the_ipc_socket_that_the_arguments_name() {
    let home = Home::new();
    let elsewhere = home.dir.join("x.ipc");
    for more in [&[][..], &["--ipcpath", "own.ipc"], &["--ipcpath", elsewhere.to_str().unwrap()]] {
        let mut visor = home.supervise(&[], more);
        until_blocks_are_seen(&home);
        visor.stop();
    }
}

#[test]
fn the_head_is_told_over_http_at_the_port_of_the_arguments() {
    let home = Home::new();
    let port = free_port().to_string();
    let mut visor = home.supervise(&[], &["--ipcdisable", "--http", "--http.port", &port]);
    until_blocks_are_seen(&home);
    home.until_log(&format!("127.0.0.1:{port}"));
    visor.stop();
}

#[test]
fn the_head_is_told_at_every_form_of_a_configured_address() {
    let home = Home::new();
    let port = free_port();
    let socket = home.dir.join("x.ipc");
    let http = port.to_string();
    for address in [
        format!("127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{port}/path?query"),
        format!("127.0.0.1:1,/nowhere.ipc,127.0.0.1:{port}"),
        format!("127.0.0.1:1, {}", socket.display()),
    ] {
        let mut words = home.node_args();
        let tail: Vec<&str> = if address.contains("x.ipc") {
            vec!["--ipcpath", socket.to_str().unwrap()]
        } else {
            vec!["--ipcdisable", "--http", "--http.port", &http]
        };
        words.extend(tail.iter().map(|word| (*word).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut visor = home.supervise_with(&["--set", &format!("rpc_address={address}")], &words);
        until_blocks_are_seen(&home);
        visor.stop();
    }
}

#[test]
fn an_address_where_nobody_listens_keeps_the_node_running_without_a_head() {
    let home = Home::new();
    home.release("v2", "");
    home.plan("v2", 1);
    let port = free_port();
    let ours = ["--set", &format!("rpc_address=127.0.0.1:{port},/nowhere/geth.ipc,no-such-host.invalid:1")];
    let mut visor = home.supervise(&ours, &["--no-rpc"]);
    let status = until_asked(&home);
    assert_eq!((status["head_known"].as_bool(), status["restart_count"].as_u64()), (Some(false), Some(0)));
    assert_eq!(status["height"], Value::Null);
    // Every address is named with what is wrong with it.
    let error = rpc_error(&status).unwrap();
    for part in [&port.to_string(), "/nowhere/geth.ipc", "no-such-host.invalid"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    // A node that never answered is not unhealthy for that.
    assert_eq!(status["health"]["healthy"], true, "{status}");
    home.run(&["status", "--check"]).code(0);
    assert_eq!((home.current().as_str(), home.started().len()), ("genesis", 1));
    visor.stop();
}

#[test]
fn rpc_that_comes_late_is_waited_for_and_then_makes_a_plan_due() {
    let home = Home::new();
    home.release("v2", "--halt-at 1000000 --rpc-delay 0");
    home.plan("v2", 40);
    let mut visor = home.supervise(&[], &["--halt-at", "39", "--period", "10ms", "--rpc-delay", "1500ms"]);
    let status = until_asked(&home);
    assert_eq!((status["head_known"].as_bool(), status["health"]["healthy"].as_bool()), (Some(false), Some(true)));
    home.until_finished("v2", "committed");
    assert_eq!(home.started(), ["genesis", "v2"]);
    visor.stop();
}

#[test]
fn rpc_that_goes_away_makes_the_node_unhealthy_until_it_is_back() {
    let home = Home::new();
    // At the usual address, another node of this machine may listen.
    let mut visor = home.supervise(&["--set", "rpc_address=127.0.0.1:1"], &["--halt-at", "20"]);
    home.until_status("it stands at 20", |s| s["head_known"] == true && s["height"] == 20);
    home.run(&["status", "--check"]).code(0);
    let socket = home.datadir().join("geth.ipc");
    let kept = home.datadir().join("kept.ipc");
    fs::rename(&socket, &kept).unwrap();
    let status = home.until_status("it is unhealthy", |s| s["health"]["healthy"] == false);
    assert_eq!(status["state"], "running");
    assert!(rpc_error(&status).unwrap().contains("geth.ipc"), "{status}");
    assert_eq!(home.run(&["status", "--check"]).code, 1);
    assert_eq!(home.run(&["status"]).code, 0);
    fs::rename(&kept, &socket).unwrap();
    home.until_status("it is healthy again", |s| s["health"]["healthy"] == true);
    home.run(&["status", "--check"]).code(0);
    assert_eq!((home.started().len(), home.events("term").len()), (1, 0), "it was left alone");
    visor.stop();
}

#[test]
fn a_node_that_hangs_is_unhealthy_and_status_answers_all_the_same() {
    let home = Home::new();
    let mut visor = home.supervise(&[], &["--hang-after", "800ms"]);
    visor.until_up();
    // Each probe waits for its time to run out; nobody else does.
    let status = home.until_status("it is unhealthy", |s| s["health"]["healthy"] == false);
    assert_eq!((status["state"].as_str(), status["restart_count"].as_u64()), (Some("running"), Some(0)));
    assert_eq!(home.run(&["status", "--check"]).code, 1);
    visor.stop();
}

// ---- what is no head -----------------------------------------------------------------------------------------

/// A node that spoils its answers in this way is left alone and has no head; a good one after it has.
fn spoiled(kind: &str, http: bool) {
    let home = Home::new();
    home.release("v2", "");
    home.plan("v2", 1);
    home.release("genesis", &format!("--rpc-bad {kind}"));
    let port = free_port().to_string();
    let more = if http { vec!["--ipcdisable", "--http", "--http.port", &port] } else { vec![] };
    let mut visor = home.supervise(&[], &more);
    home.until_status("it runs", |s| s["state"] == "running");
    // However long a probe takes, status answers (its client gives up after 5 s).
    for _ in 0..5 {
        home.run(&["status"]).code(0);
    }
    let status = until_asked(&home);
    assert_eq!(
        (&status["head_known"], &status["height"], &status["restart_count"]),
        (&Value::Bool(false), &Value::Null, &0.into())
    );
    assert_eq!(status["health"]["healthy"], true, "it never answered, so it may be without RPC");
    let error = rpc_error(&status).unwrap();
    assert!(error.lines().count() == 1 && error.len() < 1000 && !error.contains(char::is_control), "{error:?}");
    until("the chain goes on", || Some(home.head_on_disk()).filter(|head| *head > 5));
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0), "{kind}");
    // It recovers.
    fs::remove_dir_all(home.root().join("data/upgrades")).unwrap();
    home.until_status("the plan is withdrawn", |s| s["plans"].as_array().unwrap().is_empty());
    home.release("genesis", "");
    home.run(&["restart"]).code(0);
    until_blocks_are_seen(&home);
    assert_eq!(home.started(), ["genesis", "genesis"]);
    visor.stop();
}

#[test]
fn answers_in_html_are_no_head() {
    spoiled("html", true);
}

#[test]
fn answers_in_html_over_ipc_are_no_head() {
    spoiled("html", false);
}

#[test]
fn errors_are_no_head() {
    spoiled("error", false);
}

#[test]
fn answers_to_another_request_are_no_head() {
    spoiled("wrong-id", true);
}

#[test]
fn huge_answers_are_no_head() {
    spoiled("huge", true);
}

#[test]
fn huge_answers_over_ipc_are_no_head() {
    spoiled("huge", false);
}

#[test]
fn slow_answers_are_no_head() {
    spoiled("slow", true);
}

#[test]
fn slow_answers_over_ipc_are_no_head() {
    spoiled("slow", false);
}

#[test]
fn garbage_is_no_head() {
    spoiled("garbage", true);
}

#[test]
fn garbage_over_ipc_is_no_head() {
    spoiled("garbage", false);
}

#[test]
fn null_is_no_head() {
    spoiled("null", false);
}

#[test]
fn a_node_that_does_not_offer_its_head_has_none() {
    spoiled("not-offered", false);
}

#[test]
fn a_node_that_closes_the_connection_has_no_head() {
    spoiled("close", true);
}

#[test]
fn what_a_node_does_not_offer_beside_its_head_makes_it_neither_headless_nor_unhealthy() {
    let home = Home::new();
    for kind in ["not-offered", "error", "null"] {
        let others = "net_peerCount,eth_syncing,eth_getBlockByNumber,web3_clientVersion,eth_chainId,istanbul_nodeAddress,admin_nodeInfo";
        home.release("genesis", &format!("--rpc-bad {kind}:{others}"));
        let mut visor = home.supervise(&[], &[]);
        until_blocks_are_seen(&home);
        home.run(&["status", "--check"]).code(0);
        visor.stop();
    }
}

// ---- whose ---------------------------------------------------------------------------------------------------

/// A node that is not ours.
struct Stranger(Child);

impl Stranger {
    fn new(home: &Home, more: &[&str]) -> Stranger {
        let mut command = Command::new(mocknode());
        let datadir = home.dir.join("stranger");
        command.arg("--datadir").arg(&datadir).args(["--start-head", "5000", "--period", "50ms"]).args(more);
        Stranger(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another node answers at the configured address: it is shown as such and makes nothing due.
#[track_caller]
fn is_foreign(home: &Home, address: &str) {
    home.release("v2", "");
    home.plan("v2", 100);
    let mut visor = home.supervise(&["--set", &format!("rpc_address={address}")], &["--no-rpc"]);
    let shown = |s: &Value| rpc_error(s).filter(|error| error.contains(address) && error.contains("head 5"));
    home.until_status("it is shown as foreign", |s| shown(s).is_some());
    home.until_status("the plan is staged", |s| s["plans"][0]["state"] == "staged");
    // Asked again with all in place: it is still not due.
    let head = home.head_on_disk();
    until("time passes for both", || (home.head_on_disk() > head + 10).then_some(()));
    let status = home.status();
    assert_eq!((&status["head_known"], &status["height"]), (&Value::Bool(false), &Value::Null));
    assert!(shown(&status).is_some(), "{status}");
    assert_eq!(home.log().lines().filter(|l| l.contains("WARN") && l.contains(address)).count(), 1, "told once");
    assert_eq!((home.current().as_str(), home.events("term").len()), ("genesis", 0));
    visor.stop();
    assert!(!fs::read_to_string(home.own("state.json")).unwrap().contains("\"number\""), "it is not remembered");
}

#[test]
fn another_node_at_the_configured_port_is_foreign() {
    let home = Home::new();
    let port = free_port();
    let _stranger = Stranger::new(&home, &["--ipcdisable", "--http", "--http.port", &port.to_string()]);
    is_foreign(&home, &format!("127.0.0.1:{port}"));
}

#[test]
fn another_node_at_the_configured_socket_is_foreign() {
    let home = Home::new();
    let socket = home.dir.join("stranger/geth.ipc");
    let _stranger = Stranger::new(&home, &[]);
    until("it listens", || socket.exists().then_some(()));
    is_foreign(&home, socket.to_str().unwrap());
}

#[test]
fn the_node_itself_is_preferred_to_a_foreign_one() {
    let home = Home::new();
    let port = free_port();
    let own = free_port().to_string();
    let stranger = Stranger::new(&home, &["--ipcdisable", "--http", "--http.port", &port.to_string()]);
    until("it listens", || Path::new(&home.dir.join("stranger/http.port")).exists().then_some(()));
    let ours = ["--set", &format!("rpc_address=127.0.0.1:{port},127.0.0.1:{own}")];
    let mut visor = home.supervise(&ours, &["--ipcdisable", "--http", "--http.port", &own]);
    until_blocks_are_seen(&home);
    assert!(home.status()["height"].as_u64() < Some(5000));
    drop(stranger);
    visor.stop();
}
