//! Points in time: the stamps that geth writes, in its three formats, and what an operator types.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::config::duration;
use crate::error::{Error, Result};

/// How far a stamp without a year may lie in the future: clocks differ, and so do the ideas of what is local time.
const AHEAD: SignedDuration = SignedDuration::from_hours(24);

/// How many years back a stamp without one is looked for: the 29th of February is rare.
const YEARS: i16 = 8;

/// What is needed to understand a time that does not say all of itself.
pub struct Clock {
    now: Timestamp,
    zone: TimeZone,
}

impl Clock {
    /// The clock and the time zone of this machine.
    pub fn new() -> Clock {
        Clock { now: Timestamp::now(), zone: TimeZone::system() }
    }

    /// The stamp of a line, if it has one.
    pub fn of_line(&self, line: &str) -> Option<Timestamp> {
        match line.as_bytes().first()? {
            b'{' => whole(text_after(line, "\"t\":\"")?.split('"').next()?),
            b't' => whole(line.strip_prefix("t=")?.split(' ').next()?.trim_matches('"')),
            // Not geth's, but of many others and ours.
            b'0'..=b'9' => whole(line.split(' ').next()?),
            _ => self.without_year(line),
        }
    }

    /// `INFO [11-26|04:15:34.088] …`, local time: of the years in which that is not in the future, the latest.
    fn without_year(&self, line: &str) -> Option<Timestamp> {
        let (level, rest) = line.split_at_checked(line.bytes().take(6).position(|byte| byte == b'[')?)?;
        let level = level.trim_end_matches(' ');
        let (stamp, _) = rest.get(1..)?.split_at_checked(rest.bytes().take(32).position(|byte| byte == b']')? - 1)?;
        if level.is_empty() || !level.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        let (date, time) = stamp.split_once('|')?;
        let this_year = self.now.to_zoned(self.zone.clone()).year();
        let latest = self.now.checked_add(AHEAD).ok()?;
        let years = (this_year - YEARS..=this_year + 1).rev();
        years.filter_map(|year| self.local(&format!("{year:04}-{date}T{time}"))).find(|stamp| *stamp <= latest)
    }

    fn local(&self, text: &str) -> Option<Timestamp> {
        let time: DateTime = text.parse().ok()?;
        Some(time.to_zoned(self.zone.clone()).ok()?.timestamp())
    }

    /// What an operator typed behind this option.
    pub fn typed(&self, option: &str, text: &str) -> Result<Timestamp> {
        let ago = || {
            let ago = duration(text).ok().and_then(|ago| SignedDuration::try_from(ago).ok())?;
            self.now.checked_sub(ago).ok()
        };
        whole(text).or_else(|| self.local(text)).or_else(ago).ok_or_else(|| {
            Error::usage(format!(
                "{option}: {text:?} is no time: give one such as 2026-11-26T04:15:00Z, \"2026-11-26 04:15\" (local), or 10m (ago)"
            ))
        })
    }
}

/// A time that says all of itself.
fn whole(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

fn text_after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    text.split_once(mark).map(|(_, rest)| rest)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn clock(now: &str) -> Clock {
        Clock { now: now.parse().unwrap(), zone: TimeZone::UTC }
    }

    fn at(now: &str, line: &str) -> Option<String> {
        clock(now).of_line(line).map(|stamp| stamp.to_string())
    }

    #[test]
    fn the_three_formats_of_geth_are_understood() {
        let now = "2026-11-26T12:00:00Z";
        for line in [
            "INFO [11-26|04:15:34.088] Imported new chain segment               number=1",
            "ERROR[11-26|04:15:34.088] x",
            "WARN [11-26|04:15:34.088] x",
            "t=2026-11-26T04:15:34.088+0000 lvl=info msg=x",
            "t=2026-11-26T13:15:34.088+0900 lvl=info msg=x",
            "t=\"2026-11-26T04:15:34.088Z\" lvl=info",
            "{\"t\":\"2026-11-26T04:15:34.088Z\",\"lvl\":\"info\",\"msg\":\"x\"}",
            "{\"t\":\"2026-11-26T04:15:34.088000000+00:00\",\"lvl\":\"info\",\"msg\":\"x\"}",
            "{\"lvl\":\"info\",\"msg\":\"\\\"t\\\":\\\"2001-01-01T00:00:00Z\\\"\",\"t\":\"2026-11-26T04:15:34.088Z\"}",
            "2026-11-26T04:15:34.088Z INFO  ours",
        ] {
            assert_eq!(at(now, line).as_deref(), Some("2026-11-26T04:15:34.088Z"), "{line}");
        }
        assert_eq!(at(now, "INFO [11-26|04:15:34] x").as_deref(), Some("2026-11-26T04:15:34Z"));
    }

    #[test]
    fn what_only_looks_like_a_stamp_is_none() {
        let lines = "\n \n[11-26|04:15:34.088]\nINFO [11-26|04:15\nINFO [13-26|04:15:34.088] x\nINFO [11-31|04:15:34.088] x\n\
                     info [11-26|04:15:34.088] x\nINFORMATION [11-26|04:15:34.088] x\nt=\nt=yesterday x\ntime=1\n{\n{\"t\":1}\n\
                     {\"t\":\"\n123 x\nINFO []\nINFO [é-26|04:15:34.088] x\ngoroutine 1 [running]:\nÄÄÄÄÄÄ[11-26|04:15:34.088]\n[]";
        for line in lines.split('\n') {
            assert_eq!(at("2026-11-26T12:00:00Z", line), None, "{line}");
        }
    }

    #[test]
    fn a_stamp_without_a_year_is_of_the_latest_that_is_not_in_the_future() {
        let year = |now, stamp: &str| at(now, &format!("INFO [{stamp}|10:00:00.000] x")).unwrap()[..10].to_owned();
        assert_eq!(year("2027-01-01T00:00:05Z", "12-31"), "2026-12-31");
        assert_eq!(year("2026-11-26T12:00:00Z", "12-31"), "2025-12-31");
        assert_eq!(year("2026-11-26T12:00:00Z", "11-28"), "2025-11-28");
        assert_eq!(year("2026-11-26T12:00:00Z", "01-01"), "2026-01-01");
        // A clock that goes before ours, also at the turn of the year.
        assert_eq!(year("2026-11-26T09:59:00Z", "11-26"), "2026-11-26");
        assert_eq!(year("2026-12-31T23:59:00Z", "01-01"), "2027-01-01");
        assert_eq!(year("2026-11-26T12:00:00Z", "02-29"), "2024-02-29");
    }

    #[test]
    fn what_may_be_typed_for_a_time() {
        let clock = clock("2026-11-26T12:00:00Z");
        let typed = |text| clock.typed("--since", text).map(|stamp| stamp.to_string());
        for (text, meant) in [
            ("2026-11-26T04:15:34Z", "2026-11-26T04:15:34Z"),
            ("2026-11-26T04:15:34.5+09:00", "2026-11-25T19:15:34.5Z"),
            ("2026-11-26", "2026-11-26T00:00:00Z"),
            ("2026-11-26 04:15", "2026-11-26T04:15:00Z"),
            ("2026-11-26 04:15:34", "2026-11-26T04:15:34Z"),
            ("10m", "2026-11-26T11:50:00Z"),
            ("2h", "2026-11-26T10:00:00Z"),
            ("1h30m", "2026-11-26T10:30:00Z"),
            ("0", "2026-11-26T12:00:00Z"),
        ] {
            assert_eq!(typed(text).as_deref(), Ok(meant), "{text}");
        }
        for text in ["", "yesterday", "10", "2026-13-01", "2026-02-30", "26-11-26", "-10m", "2026-11-26 25:00", "10 m"]
        {
            let error = typed(text).unwrap_err();
            assert!(
                error.code == crate::error::Code::Usage && error.message.starts_with("--since: "),
                "{text}: {error}"
            );
        }
    }
}
