//! One file of a web server: where redirects may lead, what a reply must say, and what is wrong when it does not.

use std::time::Duration;

use ureq::Proxy;
use ureq::config::Config;
use ureq::http::{HeaderMap, StatusCode};

use crate::error::printable;
use crate::job::tls;

/// How long a connection, TLS included, may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long nothing may come.
pub const SILENCE: Duration = Duration::from_secs(30);

/// How many redirects are followed.
const REDIRECTS: u32 = 5;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It may work when it is tried again soon.
    Passing(String),
    /// It will not, as long as nothing changes.
    Lasting(String),
}

/// The beginning of a reply.
pub struct Reply {
    /// The first byte that its body holds, counted from 0.
    pub from: u64,
    /// How long the whole file is, where the server says so.
    pub total: Option<u64>,
    /// What the server calls this very content.
    pub tag: Option<String>,
    /// The rest.
    pub body: ureq::BodyReader<'static>,
}

/// Who asks web servers.
pub struct Web {
    agent: ureq::Agent,
}

impl Web {
    /// One for this URL. What is asked for by https is only ever taken by https.
    pub fn new(url: &str) -> Result<Web, Fault> {
        Ok(Web { agent: Web::config(url)?.into() })
    }

    /// One that an agent with [`Web::config`] asks for.
    #[cfg(any(test, fuzzing))]
    pub fn over(agent: ureq::Agent) -> Web {
        Web { agent }
    }

    /// How this URL is asked for.
    pub fn config(url: &str) -> Result<Config, Fault> {
        let https = url.starts_with("https:");
        let mut config = ureq::Agent::config_builder()
            .timeout_resolve(Some(CONNECT_TIME))
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .max_redirects(REDIRECTS)
            .max_redirects_will_error(true)
            .http_status_as_error(false)
            .https_only(https)
            .proxy(proxy(https).map_err(Fault::Lasting)?)
            .user_agent(concat!("wemixvisor/", env!("CARGO_PKG_VERSION")));
        // Also an http URL may lead to an https one.
        config = config.tls_config(tls::config().map_err(Fault::Lasting)?);
        Ok(config.build())
    }

    /// Asks for a file from a byte on; `tag`: only if the content is still the one of this name.
    pub fn get(&self, url: &str, from: u64, tag: Option<&str>) -> Result<Reply, Fault> {
        let mut request = self.agent.get(url);
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
            if let Some(tag) = tag {
                request = request.header("if-range", tag);
            }
        }
        let reply = request.call().map_err(|e| fault(&e))?;
        let (status, headers) = (reply.status(), reply.headers());
        let length = || headers.get("content-length")?.to_str().ok()?.parse::<u64>().ok();
        let (from, total) = match status {
            StatusCode::OK => (0, length()),
            StatusCode::PARTIAL_CONTENT => {
                let range = text(headers, "content-range").unwrap_or_default();
                content_range(&range, length()).filter(|(first, _)| *first == from).ok_or_else(|| {
                    Fault::Lasting(format!("it sends {range:?} when asked for all from byte {from} on"))
                })?
            }
            _ => return Err(refused(status)),
        };
        // A weak name is for content that means the same; here it must be the same.
        let tag = text(headers, "etag").filter(|tag| !tag.starts_with("W/")).or_else(|| text(headers, "last-modified"));
        Ok(Reply { from, total, tag, body: reply.into_body().into_reader() })
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.chars().take(200).collect())
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

fn refused(status: StatusCode) -> Fault {
    let why = match status.canonical_reason() {
        Some(words) => format!("status {} {words}", status.as_u16()),
        None => format!("status {}", status.as_u16()),
    };
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
    let lasting = |why: &str| Fault::Lasting(why.to_owned());
    match error {
        ureq::Error::TooManyRedirects => Fault::Lasting(format!("more than {REDIRECTS} redirects")),
        ureq::Error::RequireHttpsOnly(_) => lasting("it redirects from https to something else, which is not followed"),
        ureq::Error::RedirectFailed => lasting("it redirects to nowhere"),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            Fault::Lasting(format!("it leads to no address of the web ({})", printable(&error.to_string())))
        }
        ureq::Error::Timeout(_) => Fault::Passing(format!("nothing comes ({})", printable(&error.to_string()))),
        _ => Fault::Passing(printable(error.to_string().trim_start_matches("io: "))),
    }
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
    let mut built = Proxy::builder(proxy.protocol()).host(proxy.host()).port(proxy.port());
    if let Some(user) = proxy.username() {
        built = built.username(user);
    }
    if let Some(password) = proxy.password() {
        built = built.password(password);
    }
    let except = ["NO_PROXY", "no_proxy"].into_iter().find(|name| said(name));
    let except = except.and_then(|name| std::env::var(name).ok()).unwrap_or_default();
    for host in except.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        built = built.no_proxy(host);
    }
    built.build().map(Some).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

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
