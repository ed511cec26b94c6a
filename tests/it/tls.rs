//! https, for RPC and for downloads: which servers are talked to, and which are refused. The server is `openssl s_server`;
//! where openssl is missing, nothing is tested.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::download::{installed, prepare_command, refused, sum};
use crate::support::{Home, free_port, said, until};
use crate::web::{Page, Proxy, Server as Web};

/// A reply to the first request of a connection, and the head that it tells.
const REPLY: &str = r#"{"jsonrpc":"2.0","id":1,"result":"0x1388"}"#;
const HEAD: &str = "head 5000";

/// A certificate authority of the test's own in the home's directory; `None` without openssl.
struct Authority<'a>(&'a Path);

impl Authority<'_> {
    fn new(dir: &Path) -> Option<Authority<'_>> {
        if Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped: openssl is missing");
            return None;
        }
        fs::write(dir.join("openssl.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").unwrap();
        let authority = Authority(dir);
        authority.certificate("ca", "ec", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        Some(authority)
    }

    /// Makes `name.pem` and `name.key`.
    fn certificate(&self, name: &str, key: &str, more: &[&str]) {
        let (kind, option) = match key {
            "ec" => ("ec", "ec_paramgen_curve:P-256"),
            "ec384" => ("ec", "ec_paramgen_curve:P-384"),
            "rsa" => ("rsa", "rsa_keygen_bits:2048"),
            _ => panic!("no such key: {key}"),
        };
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-config", "openssl.cnf", "-nodes", "-days", "2", "-subj"]);
        command.arg(format!("/CN={name}")).args(["-newkey", kind, "-pkeyopt", option]).args(more);
        command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
        let made = command.current_dir(self.0).stdin(Stdio::null()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// One of a server, signed by the authority.
    fn server(&self, name: &str, key: &str, host: &str) {
        let host = format!("subjectAltName=DNS:{host}");
        self.certificate(name, key, &["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", &host]);
    }
}

impl Authority<'_> {
    /// One of localhost, signed by the authority, that is valid between these times.
    fn dated(&self, name: &str, from: &str, to: &str) {
        let config = "[ca]\ndefault_ca = own\n[own]\ndatabase = index\nserial = serial\nnew_certs_dir = .\ndefault_md = sha256\n\
                      policy = any\nunique_subject = no\n[any]\ncommonName = supplied\n[server]\nsubjectAltName = DNS:localhost\n";
        fs::write(self.0.join("ca.cnf"), config).unwrap();
        fs::write(self.0.join("index"), "").unwrap();
        fs::write(self.0.join("serial"), "0A\n").unwrap();
        let request = format!(
            "openssl req -new -config openssl.cnf -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=localhost \
             -keyout {name}.key -out {name}.csr && openssl ca -batch -config ca.cnf -extensions server -cert ca.pem \
             -keyfile ca.key -startdate {from} -enddate {to} -in {name}.csr -out {name}.pem -notext"
        );
        let made = Command::new("sh").args(["-c", &request]).current_dir(self.0).stdin(Stdio::null()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
}

/// An https server that answers each connection's first request.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn new(dir: &Path, certificate: &str, more: &[&str]) -> Server {
        let port = free_port();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{port}")]).args(more);
        command.args(["-cert", &format!("{certificate}.pem"), "-key", &format!("{certificate}.key")]);
        command.current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        std::thread::spawn(move || answer(to, from));
        Server { child, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What clients send comes from the one end, and what goes to the other they receive.
fn answer(mut to: ChildStdin, mut from: ChildStdout) {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut chunk) {
        seen.extend_from_slice(&chunk[..n]);
        if String::from_utf8_lossy(&seen).contains("eth_blockNumber") {
            seen.clear();
            let _ = write!(to, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{REPLY}", REPLY.len());
            let _ = to.flush();
        }
    }
}

/// Asks the server, trusting the authority, until the status says this: not the node, but somebody who could be heard.
#[track_caller]
fn says(home: &Home, server: &Server, part: &str) {
    let address = format!("rpc_address=https://localhost:{}", server.port);
    let quick = ["--set", "height_poll_interval=200ms", "--set", "health_check_interval=200ms", "--set", &address];
    let node = home.node_args();
    let words: Vec<&str> = node.iter().map(String::as_str).collect();
    let mut command = home.command(&[&quick[..], &["run"], &words, &["--no-rpc"]].concat());
    command.env("SSL_CERT_FILE", home.dir.join("ca.pem"));
    let mut visor = home.spawn(command);
    home.until_status(&format!("it says {part:?}"), |status| {
        let error = status["health"]["checks"]["rpc_endpoint"]["error"].as_str();
        // What else it could say, it says at once; a server that is not up yet is asked again.
        error.is_some_and(|error| error.contains(part) || (error.contains(HEAD) && panic!("it was trusted: {error}")))
    });
    visor.stop();
}

#[test]
fn https_is_spoken_with_every_sort_of_server_that_is_common() {
    let home = Home::new();
    let Some(authority) = Authority::new(&home.dir) else { return };
    for key in ["ec", "ec384", "rsa"] {
        authority.server(key, key, "localhost");
    }
    for (certificate, more) in [
        ("ec", &["-tls1_3"][..]),
        ("rsa", &["-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256", "-groups", "P-256"]),
        ("ec384", &["-tls1_3", "-groups", "P-384"]),
        ("ec", &["-tls1_2", "-groups", "P-256"]),
        ("rsa", &["-tls1_2"]),
        ("rsa", &["-tls1_2", "-sigalgs", "RSA+SHA256", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]),
    ] {
        says(&home, &Server::new(&home.dir, certificate, more), HEAD);
    }
}

#[test]
fn a_server_whose_certificate_is_wrong_is_refused() {
    let home = Home::new();
    let Some(authority) = Authority::new(&home.dir) else { return };
    authority.certificate("own", "ec", &["-addext", "subjectAltName=DNS:localhost"]);
    says(&home, &Server::new(&home.dir, "own", &[]), "UnknownIssuer");
    authority.server("other", "rsa", "elsewhere.example");
    says(&home, &Server::new(&home.dir, "other", &[]), "not valid for name");
}

/// An https server of the files in this directory.
struct Files {
    child: Child,
    port: u16,
}

impl Files {
    fn new(dir: &Path, certificate: &str) -> Files {
        let port = free_port();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-HTTP", "-accept", &format!("127.0.0.1:{port}")]);
        command.args(["-cert", &format!("{certificate}.pem"), "-key", &format!("{certificate}.key")]);
        command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        until("openssl listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        Files { child, port }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}/{path}", self.port)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `openssl s_server -HTTP` sends as it is: head and body.
fn reply(dir: &Path, path: &str, status: &str, header: &str, body: &str) {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\n{header}content-length: {length}\r\nconnection: close\r\n\r\n{body}");
    fs::write(dir.join(path), text).unwrap();
}

#[test]
fn a_release_comes_over_https_only_from_who_is_trusted_and_is_who_was_asked() {
    const SCRIPT: &str = "#!/bin/sh\necho v2.0.0\n";
    let home = Home::new();
    let Some(authority) = Authority::new(&home.dir) else { return };
    authority.server("good", "ec", "localhost");
    authority.server("other", "ec", "elsewhere.example");
    authority.certificate("own", "ec", &["-addext", "subjectAltName=DNS:localhost"]);
    // As openssl makes them unless it is told otherwise.
    let as_authority = "basicConstraints=critical,CA:TRUE";
    authority.certificate("alone", "ec", &["-addext", "subjectAltName=DNS:localhost", "-addext", as_authority]);
    authority.dated("old", "20200101000000Z", "20210101000000Z");
    authority.dated("new", "20900101000000Z", "20910101000000Z");
    let once = &["--set", "unsafe_skip_backup=true", "--set", "download_retries=0"];
    let command = |url: &str| {
        let mut command = prepare_command(&home, once, url, &sum(SCRIPT));
        command.env("SSL_CERT_FILE", home.dir.join("ca.pem"));
        command
    };
    reply(&home.dir, "file", "200 OK", "", SCRIPT);
    for (certificate, why) in [
        ("other", "not valid for name"),
        ("own", "from nobody that this host trusts (UnknownIssuer)"),
        ("alone", "is one of an authority, as self-signed ones mostly are"),
        ("old", "its certificate expired at 2021-01-01T00:00:00Z; this host's clock says"),
        ("new", "its certificate is valid from 2090-01-01T00:00:00Z on; this host's clock says"),
    ] {
        let files = Files::new(&home.dir, certificate);
        refused(&home, said(command(&files.url("file"))), &files.url("file"), why);
    }
    let files = Files::new(&home.dir, "good");
    let web = Web::with(Page::new(SCRIPT));
    for (path, to) in [("to-http", web.url("/file")), ("to-file", "file:///etc/hostname".to_owned())] {
        reply(&home.dir, path, "302 Found", &format!("location: {to}\r\n"), "");
    }
    refused(
        &home,
        said(command(&files.url("to-http"))),
        &files.url("to-http"),
        "from https to http, which is not followed",
    );
    refused(&home, said(command(&files.url("to-file"))), &files.url("to-file"), "it redirects to");
    assert_eq!(web.asked("/file").len(), 0);
    let mut nobody = command(&files.url("file"));
    nobody.env("SSL_CERT_FILE", home.dir.join("missing.pem"));
    refused(&home, said(nobody), &files.url("file"), "names no certificates that can be read");
    // From http to https is a way that is gone.
    web.page("/up", Page::redirect("302 Found", &files.url("file")));
    let proxy = Proxy::new();
    for (url, through) in [(files.url("file"), false), (web.url("/up"), false), (files.url("file"), true)] {
        let mut command = command(&url);
        if through {
            command.env("HTTPS_PROXY", format!("http://127.0.0.1:{}", proxy.port));
        }
        said(command).code(0);
        installed(&home, "v2", SCRIPT);
        fs::remove_dir_all(home.own("upgrades/v2")).unwrap();
    }
    assert!(proxy.asked()[0].starts_with(&format!("CONNECT localhost:{} ", files.port)), "{:?}", proxy.asked());
}
