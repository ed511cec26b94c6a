//! One file of a web server: where redirects may lead, what a reply must say, and what is wrong when it does not.

use std::net::IpAddr;
use std::time::Duration;

use ureq::config::Config;
use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::{Proxy, ProxyBuilder, ProxyProtocol};

use crate::error::printable;
use crate::job::tls;
use crate::source::{Link, Place, percent_decoded, short};

/// How long a connection, TLS included, may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long nothing may come.
pub const SILENCE: Duration = Duration::from_secs(30);

/// How many redirects are followed.
const REDIRECTS: u32 = 5;

/// How much is taken of where a redirect leads, and of other headers.
const LOCATION_MAX: usize = 8 << 10;
const LINE_MAX: usize = 200;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It may work when it is tried again soon.
    Passing(String),
    /// It will not, as long as nothing changes.
    Lasting(String),
    /// The rest of the file is not to be had like that; the whole may be.
    NoPart(String),
}

impl Fault {
    /// The same with something behind it.
    fn with(self, more: &str) -> Fault {
        match self {
            Fault::Passing(why) => Fault::Passing(why + more),
            Fault::Lasting(why) => Fault::Lasting(why + more),
            Fault::NoPart(why) => Fault::NoPart(why + more),
        }
    }
}

/// The beginning of a reply.
pub struct Reply {
    /// The first byte that its body holds, counted from 0.
    pub from: u64,
    /// How long the whole file is, where the server says so.
    pub total: Option<u64>,
    /// Why what comes may be something else than the file for once, if it may: then a wrong checksum is no last word.
    pub doubt: Option<&'static str>,
    /// What the server calls this very content.
    pub tag: Option<String>,
    /// The rest.
    pub body: ureq::BodyReader<'static>,
}

/// Who asks web servers.
pub struct Web {
    http: ureq::Agent,
    https: ureq::Agent,
}

impl Web {
    /// One with the proxies and the certificates of this host.
    pub fn new() -> Result<Web, Fault> {
        Ok(Web { http: Web::config(false)?.into(), https: Web::config(true)?.into() })
    }

    /// One that this agent, with [`Web::config`], asks for in any case.
    #[cfg(any(test, fuzzing))]
    pub fn over(agent: ureq::Agent) -> Web {
        Web { http: agent.clone(), https: agent }
    }

    /// How URLs of http, or of https, are asked for.
    pub fn config(https: bool) -> Result<Config, Fault> {
        let config = ureq::Agent::config_builder()
            .timeout_resolve(Some(CONNECT_TIME))
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .max_redirects(0)
            .http_status_as_error(false)
            .https_only(https)
            .tls_config(tls::config().map_err(Fault::Lasting)?)
            .proxy(proxy(https).map_err(Fault::Lasting)?)
            .user_agent(concat!("wemixvisor/", env!("CARGO_PKG_VERSION")));
        Ok(config.build())
    }

    /// Asks for a file from a byte on; `tag`: only if the content is still the one of this name.
    pub fn get(&self, url: &str, from: u64, tag: Option<&str>) -> Result<Reply, Fault> {
        let mut url = url.to_owned();
        let mut shown = String::new();
        for _ in 0..=REDIRECTS {
            let elsewhere = |fault: Fault| fault.with(&shown);
            let reply = self.ask(&url, from, tag).map_err(elsewhere)?;
            let location = text(reply.headers(), "location", LOCATION_MAX).filter(|_| redirects(reply.status()));
            match location {
                None => return judge(reply, from).map_err(elsewhere),
                Some(location) => url = follow(&url, &location).map_err(Fault::Lasting)?,
            }
            shown = format!(" (at {}, where it redirects to)", Place::Web(url.clone()));
        }
        Err(Fault::Lasting(format!("more than {REDIRECTS} redirects")))
    }

    fn ask(&self, url: &str, from: u64, tag: Option<&str>) -> Result<Response<ureq::Body>, Fault> {
        let agent = if url.starts_with("https:") { &self.https } else { &self.http };
        let mut request = agent.get(url);
        if let Some(login) = login(url) {
            request = request.header("authorization", login);
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
            if let Some(tag) = tag {
                request = request.header("if-range", tag);
            }
        }
        request.call().map_err(|e| fault(&e))
    }
}

/// What a reply's status and headers say of its body.
fn judge(reply: Response<ureq::Body>, from: u64) -> Result<Reply, Fault> {
    let (status, headers) = (reply.status(), reply.headers());
    let length = || headers.get("content-length")?.to_str().ok()?.parse::<u64>().ok();
    let (from, total) = match status {
        StatusCode::OK => (0, length()),
        StatusCode::PARTIAL_CONTENT => {
            let range = text(headers, "content-range", LINE_MAX).unwrap_or_default();
            content_range(&range, length())
                .filter(|(first, _)| *first == from)
                .ok_or_else(|| Fault::NoPart(format!("it sends {range:?} when asked for all from byte {from} on")))?
        }
        StatusCode::RANGE_NOT_SATISFIABLE => return Err(Fault::NoPart(words(status))),
        _ => return Err(refused(status)),
    };
    // A weak name is for content that means the same; here it must be the same.
    let tag = text(headers, "etag", LINE_MAX).filter(|tag| !tag.starts_with("W/"));
    let tag = tag.or_else(|| text(headers, "last-modified", LINE_MAX));
    let says = |name: &str, part: &str| {
        text(headers, name, LINE_MAX).is_some_and(|value| value.to_ascii_lowercase().contains(part))
    };
    let doubt = if says("content-type", "html") {
        // Hardly ever a release, and often an excuse.
        Some("a web page came in its place")
    } else if total.is_none() && !says("transfer-encoding", "chunked") {
        Some("it is cut short, or something else: the server does not say how long it is")
    } else {
        None
    };
    Ok(Reply { from, total, doubt, tag, body: reply.into_body().into_reader() })
}

fn redirects(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect leads (RFC 3986, 5.2). What was asked for by https is only ever taken by https.
fn follow(url: &str, location: &str) -> Result<String, String> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = path.split('?').next().unwrap_or_default();
    let origin = format!("{scheme}://{authority}");
    // A colon before any slash ends a scheme.
    let absolute = location.split(['/', '?']).next().is_some_and(|start| start.contains(':'));
    let next = if absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{origin}{location}")
    } else if location.starts_with('?') || location.is_empty() {
        format!("{origin}{path}{location}")
    } else {
        let (mut above, _) = path.rsplit_once('/').unwrap_or_default();
        let mut below = location;
        while let Some((step, rest)) = below.split_once('/').filter(|(step, _)| matches!(*step, "." | "..")) {
            if step == ".." {
                above = above.rsplit_once('/').unwrap_or_default().0;
            }
            below = rest;
        }
        format!("{origin}{above}/{below}")
    };
    // Without what stands behind `?`: a checksum in it is none of ours.
    match Link::parse(next.split('?').next().unwrap_or_default(), None).map(|link| link.place) {
        Ok(Place::Web(web)) if web.starts_with("https:") || scheme != "https" => {
            let said = next.split_once("://").map_or("", |(_, rest)| rest);
            Ok(format!("{}://{said}", web.split("://").next().unwrap_or_default()))
        }
        Ok(Place::Web(_)) => Err("it redirects from https to http, which is not followed".to_owned()),
        Ok(Place::File(_)) | Err(_) => {
            Err(format!("it redirects to {:?}, which is not followed: only http and https are", brief(&next)))
        }
    }
}

fn text(headers: &HeaderMap, name: &str, most: usize) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.chars().take(most).collect())
}

/// The first byte and the whole length in `bytes 100-199/200`; the length may be `*`. What contradicts itself says nothing.
pub fn content_range(text: &str, length: Option<u64>) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
    let to_the_end = total.is_none_or(|total| last.checked_add(1) == Some(total));
    let as_long = length.is_none_or(|length| first.checked_add(length) == last.checked_add(1));
    (first <= last && to_the_end && as_long).then_some((first, total))
}

/// The name and the password in a URL, as a server wants them (RFC 7617). They are not sent on to where it redirects.
fn login(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let (said, _) = rest.split(['/', '?']).next()?.rsplit_once('@')?;
    let (name, password) = said.split_once(':').unwrap_or((said, ""));
    let meant = |part: &str| percent_decoded(part).unwrap_or_else(|| part.to_owned());
    Some(format!("Basic {}", base64(format!("{}:{}", meant(name), meant(password)).as_bytes())))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, n| bits << 8 | usize::from(three.get(n).copied().unwrap_or(0)));
        for n in 0..4 {
            let digit = DIGITS.get(bits >> (18 - 6 * n) & 63).copied().unwrap_or(b'=');
            text.push(char::from(if n > three.len() { b'=' } else { digit }));
        }
    }
    text
}

fn words(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(words) => format!("status {} {words}", status.as_u16()),
        None => format!("status {}", status.as_u16()),
    }
}

fn refused(status: StatusCode) -> Fault {
    let why = words(status);
    let passing = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::TOO_EARLY);
    if passing { Fault::Passing(why) } else { Fault::Lasting(why) }
}

/// What an error of a request means.
#[expect(clippy::wildcard_enum_match_arm, reason = "the library's list grows, and what is new may pass")]
pub fn fault(error: &ureq::Error) -> Fault {
    if let Some(why) = tls::explain(error) {
        return Fault::Lasting(why);
    }
    match error {
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            Fault::Lasting(format!("it leads to no address of the web ({})", brief(&error.to_string())))
        }
        ureq::Error::Timeout(_) => Fault::Passing(format!("nothing comes ({})", brief(&error.to_string()))),
        _ => Fault::Passing(brief(error.to_string().trim_start_matches("io: "))),
    }
}

/// What came from elsewhere, for a line; where a server redirects to may hold a token.
fn brief(text: &str) -> String {
    printable(&short(text))
}

/// The proxy that the environment names for these URLs; it is asked to connect through.
fn proxy(https: bool) -> Result<Option<Proxy>, String> {
    let of_scheme = if https { ["HTTPS_PROXY", "https_proxy"] } else { ["http_proxy", "HTTP_PROXY"] };
    let said = |name: &&str| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
    let Some(name) = of_scheme.into_iter().chain(["ALL_PROXY", "all_proxy"]).find(|name| said(name)) else {
        return Ok(None);
    };
    let value = std::env::var(name).unwrap_or_default();
    // Its value may hold a password.
    let wrong = |_| format!("{name} names no proxy that can be used: give http://HOST:PORT");
    let proxy = Proxy::new(value.trim()).map_err(wrong)?;
    if !matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) {
        return Err(wrong(ureq::Error::InvalidProxyUrl));
    }
    let mut built = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    if let Some(user) = proxy.username() {
        built = built.username(user);
    }
    if let Some(password) = proxy.password() {
        built = built.password(password);
    }
    let except = ["NO_PROXY", "no_proxy"].into_iter().find(|name| said(name));
    let except = except.and_then(|name| std::env::var(name).ok()).unwrap_or_default();
    excepting(built, &except).build().map(Some).map_err(wrong)
}

/// The hosts that are asked without it. A name stands for all below it, too, as it does for curl and Go.
fn excepting(mut proxy: ProxyBuilder, hosts: &str) -> ProxyBuilder {
    for host in hosts.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        proxy = proxy.no_proxy(host);
        let is_name = !host.starts_with(['*', '.']) && !host.ends_with(['*', '.']) && host.parse::<IpAddr>().is_err();
        if is_name {
            proxy = proxy.no_proxy(&format!(".{host}"));
        }
    }
    proxy
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_is_excepted_stands_for_those_below_it() {
        let built = Proxy::builder(ProxyProtocol::Http).host("proxy").port(1);
        let proxy = excepting(built, "corp.example, .other.example,10.0.0.1").build().unwrap();
        for (host, direct) in [
            ("corp.example", true),
            ("releases.corp.example", true),
            ("notcorp.example", false),
            ("a.other.example", true),
            ("10.0.0.1", true),
            ("110.0.0.1", false),
            ("example", false),
        ] {
            assert_eq!(proxy.is_no_proxy(&format!("http://{host}/x").parse().unwrap()), direct, "{host}");
        }
    }

    #[test]
    fn a_redirect_leads_only_where_it_may() {
        for (from, location, to) in [
            ("http://u:p@h:1/a/b?q#f", "/x?y#z", "http://u:p@h:1/x?y"),
            ("http://h/a/b?q/r", "c", "http://h/a/c"),
            ("http://h/a/b/c", "../d", "http://h/a/d"),
            ("http://h/a", "./../../d/../e", "http://h/d/../e"),
            ("http://h", "c", "http://h/c"),
            ("http://h?q/r", "c", "http://h/c"),
            ("http://h/a?q", "?r", "http://h/a?r"),
            ("https://h/a", "//other/x", "https://other/x"),
            ("http://h/a", "HTTPS://other?checksum=1", "https://other?checksum=1"),
            ("https://h/a", "https://other/x:y", "https://other/x:y"),
        ] {
            assert_eq!(follow(from, location).as_deref(), Ok(to), "{from} {location}");
        }
        for (from, location, why) in [
            ("https://h/a", "http://h/a", "from https to http"),
            ("http://h/a", "file:///etc/passwd?t", "\"file:///etc/passwd\", which is not followed"),
            ("http://h/a", "ftp://u:p@h/x", "\"ftp://h/x\", which is not followed"),
            ("http://h/a", "http://", "not followed"),
            ("http://h/a", "//", "not followed"),
            ("http://h/a", "/a b", "not followed"),
        ] {
            let error = follow(from, location).unwrap_err();
            assert!(error.contains(why), "{from} {location}: {error}");
        }
    }

    #[test]
    fn a_login_is_sent_as_servers_want_it() {
        for (url, login) in [
            ("https://Aladdin:open%20sesame@h/x", Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")),
            ("http://u:p@h:80?x@y", Some("Basic dTpw")),
            ("http://token@h", Some("Basic dG9rZW46")),
            ("http://h/@x?u:p@h", None),
        ] {
            assert_eq!(super::login(url).as_deref(), login, "{url}");
        }
    }

    #[test]
    fn a_part_counts_only_when_it_says_what_it_is() {
        assert_eq!(content_range("bytes 5-9/10", Some(5)), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*", None), Some((5, None)));
        for wrong in [
            "",
            "bytes",
            "bytes 5-9",
            "bytes 9-5/10",
            "bytes 5-8/10",
            "bytes -5/10",
            "5-9/10",
            "bytes */10",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(content_range(wrong, Some(5)), None, "{wrong}");
        }
        assert_eq!(content_range("bytes 5-9/10", Some(4)), None, "shorter than it says");
    }
}
