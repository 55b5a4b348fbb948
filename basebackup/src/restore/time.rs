//! Times as operators write them: RFC 3339 and PostgreSQL's spellings, with an offset, a zone's name, or neither.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

/// The text does not name one moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTime {
    /// Not a date and a time of day.
    #[error("\"{0}\" is not a time such as \"2026-11-22 10:15:00+02\"")]
    Form(String),
    /// What stands behind the time is neither an offset nor a zone this host knows.
    #[error("\"{0}\" is neither an offset such as +02 nor a time zone such as Europe/Berlin")]
    Zone(String),
    /// The clocks are put back over it.
    #[error("{0} comes twice in time zone {1}, at {2} and at {3}: write the offset")]
    Twice(DateTime, String, Offset, Offset),
    /// The clocks are put forward over it.
    #[error("{0} does not exist in time zone {1}: the clocks are put forward over it")]
    Skipped(DateTime, String),
}

/// A moment, and whose clock it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// When, to the microsecond: PostgreSQL knows no finer times.
    pub time: Timestamp,
    /// The host's zone, where the text had none.
    pub assumed_zone: Option<String>,
}

impl Moment {
    /// Reads a time; one without a zone is meant in `host`'s.
    pub fn parse(text: &str, host: &TimeZone) -> Result<Self, InvalidTime> {
        let form = || InvalidTime::Form(text.to_owned());
        let (date, rest) = text.trim().split_at_checked("2026-11-22".len()).ok_or_else(form)?;
        let date: Date = date.parse().map_err(|_| form())?;
        let rest = rest.trim_start_matches(['T', 't', ' ']);
        let end = rest.find(|c: char| !matches!(c, '0'..='9' | ':' | '.')).unwrap_or(rest.len());
        let (clock, zone) = rest.split_at(end);
        let clock: Time = if clock.is_empty() { Time::midnight() } else { clock.parse().map_err(|_| form())? };
        let local = DateTime::from_parts(date, clock);
        let time = match zone.trim() {
            "" => in_zone(local, host)?,
            zone => in_zone(local, &parse_zone(zone)?)?,
        };
        let time = Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time);
        Ok(Self { time, assumed_zone: zone.trim().is_empty().then(|| name(host)) })
    }
}

/// The moment as `recovery_target_time` takes it, whatever the server's zone.
pub fn to_postgres(time: Timestamp) -> String {
    time.strftime("%F %T.%6f+00").to_string()
}

fn name(zone: &TimeZone) -> String {
    zone.iana_name().map_or_else(|| "of this host".to_owned(), str::to_owned)
}

fn parse_zone(text: &str) -> Result<TimeZone, InvalidTime> {
    if matches!(text, "Z" | "z" | "UTC" | "GMT") {
        return Ok(TimeZone::UTC);
    }
    let invalid = || InvalidTime::Zone(text.to_owned());
    let (sign, digits) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
        (Some(digits), _) => (1, digits),
        (_, Some(digits)) => (-1, digits),
        _ => return TimeZone::get(text).map_err(|_| invalid()),
    };
    let digits: Vec<u8> = digits.bytes().filter(|&b| b != b':').collect();
    if !matches!(digits.len(), 2 | 4 | 6) || !digits.iter().all(u8::is_ascii_digit) {
        return Err(invalid());
    }
    let pairs = digits.chunks(2).map(|pair| pair.iter().fold(0, |number, digit| number * 10 + i32::from(digit - b'0')));
    let seconds: i32 = pairs.zip([3600, 60, 1]).map(|(number, unit)| number * unit).sum();
    Offset::from_seconds(sign * seconds).map(TimeZone::fixed).map_err(|_| invalid())
}

fn in_zone(local: DateTime, zone: &TimeZone) -> Result<Timestamp, InvalidTime> {
    let ambiguous = zone.to_ambiguous_timestamp(local);
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => {
            ambiguous.unambiguous().map_err(|_| InvalidTime::Form(local.to_string()))
        }
        AmbiguousOffset::Fold { before, after } => Err(InvalidTime::Twice(local, name(zone), before, after)),
        AmbiguousOffset::Gap { .. } => Err(InvalidTime::Skipped(local, name(zone))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        TimeZone::get("Europe/Berlin").unwrap()
    }

    #[test]
    fn every_spelling_names_the_same_moment() {
        for text in [
            "2026-11-22T08:15:00Z",
            "2026-11-22T10:15:00+02:00",
            "2026-11-22 10:15:00+02",
            "2026-11-22 10:15:00 +0200",
            "2026-11-22 10:15+02",
            "2026-11-22 02:45:00-05:30",
            "2026-11-22 08:15:00 UTC",
            "2026-11-22 08:15:00.000000 GMT",
            "2026-11-22 09:15:00 Europe/Berlin",
            " 2026-11-22 09:15:00 ",
        ] {
            let moment = Moment::parse(text, &berlin()).unwrap();
            assert_eq!(moment.time.to_string(), "2026-11-22T08:15:00Z", "{text}");
            assert_eq!(moment.assumed_zone.is_some(), text.starts_with(' '), "{text}");
        }
        let midnight = Moment::parse("2026-11-22", &berlin()).unwrap();
        assert_eq!(
            (midnight.time.to_string().as_str(), midnight.assumed_zone.as_deref()),
            ("2026-11-21T23:00:00Z", Some("Europe/Berlin"))
        );
    }

    #[test]
    fn what_is_no_single_moment_is_refused() {
        for text in ["", "now", "2026-11-22 25:00", "2026-13-01 10:00Z", "2026-11-22 10:00:00 CXT", "22.11.2026 10:00"]
        {
            assert!(Moment::parse(text, &berlin()).is_err(), "{text}");
        }
        for text in ["2026-11-22 10:00+2", "2026-11-22 10:00+02:0", "2026-11-22 10:00+99", "2026-11-22 10:00+é"] {
            assert!(matches!(Moment::parse(text, &berlin()), Err(InvalidTime::Zone(_))), "{text}");
        }
        let twice = Moment::parse("2026-10-25 02:30:00", &berlin());
        assert!(matches!(twice, Err(InvalidTime::Twice(..))), "{twice:?}");
        assert!(Moment::parse("2026-10-25 02:30:00+01", &berlin()).is_ok());
        let skipped = Moment::parse("2026-03-29 02:30:00 Europe/Berlin", &TimeZone::UTC);
        assert!(matches!(skipped, Err(InvalidTime::Skipped(..))), "{skipped:?}");
    }

    #[test]
    fn postgresql_gets_microseconds_and_an_offset() {
        let moment = Moment::parse("2026-11-22 10:15:00.1234567+02", &berlin()).unwrap();
        assert_eq!(to_postgres(moment.time), "2026-11-22 08:15:00.123456+00");
    }
}
