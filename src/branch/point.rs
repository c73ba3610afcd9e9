//! Owns: points in history: their text, and what they mean against what is known of a branch; `captured_until` (correctness.md 5). Pure.
//! Does not own: finding transaction boundaries, which needs rows (`history`).

use std::fmt;
use std::str::FromStr;

use crate::change::ClusterTime;
use crate::fault::{Fault, Result};

/// Where in history, as the user says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// The end of what is committed.
    Head,
    /// After this change (snapped down to the end of a transaction).
    Seq(u64),
    /// The whole second of an RFC 3339 time, in seconds since the epoch by the server's clock.
    Second(u32),
    /// Every change with this cluster time or an earlier one.
    Time(ClusterTime),
}

/// How far to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Up to this change; still to be snapped down to a transaction boundary.
    Seq(u64),
    /// Every change with this cluster time or an earlier one; nothing to snap on a replica set.
    Time(ClusterTime),
}

/// What is known of a branch when a point is resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Highest seq of the committed prefix.
    pub head: u64,
    /// Every change up to this time is committed.
    pub captured_until: ClusterTime,
    /// First seq that is still stored.
    pub retained_from: u64,
}

impl Point {
    /// Checks the point against what is known.
    pub fn resolve(self, known: &Known) -> Result<Bound> {
        match self {
            Self::Head => Ok(Bound::Seq(known.head)),
            Self::Seq(seq) if seq > known.head => {
                Err(Fault::rejected(format!("{self} is not committed yet: the head is seq:{}; wait, or take an earlier point", known.head)))
            }
            Self::Seq(seq) if seq.saturating_add(1) < known.retained_from => {
                Err(Fault::rejected(format!("{self} is no longer stored: history begins at seq:{}", known.retained_from)))
            }
            Self::Seq(seq) => Ok(Bound::Seq(seq)),
            Self::Second(second) => {
                let whole = ClusterTime { t: second, i: u32::MAX };
                // The second is over for us only when a later one has been seen.
                if known.captured_until.t <= second {
                    return Err(not_captured(&self, known));
                }
                Ok(Bound::Time(whole))
            }
            Self::Time(time) => {
                if time > known.captured_until {
                    return Err(not_captured(&self, known));
                }
                Ok(Bound::Time(time))
            }
        }
    }
}

fn not_captured(point: &Point, known: &Known) -> Fault {
    let until = known.captured_until;
    Fault::rejected(format!("{point} has not been captured yet: history is known up to {until}; wait, or take an earlier point"))
}

/// Every change up to this time is committed (correctness.md 5). `position` is the stored checkpoint (time of its token, next seq), `head` and
/// `head_time` the branch's, `next_time` the time of change head + 1 where it is known. `None` when nothing is known yet.
///
/// Token times are exclusive: a stream opened at a token of time T may still deliver changes of time T, hence the step back.
/// It is right in whatever order position and head were read, since either only moves forward.
pub fn captured_until(
    position: Option<(ClusterTime, u64)>,
    head: u64,
    head_time: ClusterTime,
    next_time: Option<ClusterTime>,
) -> Option<ClusterTime> {
    let by_head = (head > 0).then(|| head_time.before());
    let by_position = match position {
        Some((token_time, next_seq)) if head.saturating_add(1) >= next_seq => Some(token_time.before()),
        _ => next_time.map(ClusterTime::before),
    };
    by_head.max(by_position)
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("head"),
            Self::Seq(seq) => write!(f, "seq:{seq}"),
            Self::Second(second) => f.write_str(&rfc3339(i64::from(*second) * 1000)),
            Self::Time(time) => time.fmt(f),
        }
    }
}

impl FromStr for Point {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self> {
        let bad =
            || Fault::config(format!("{text:?} is not a point: use head, seq:N, a time such as 2026-11-23T21:02:52Z, or ts:SECONDS.INC"));
        if text == "head" {
            return Ok(Self::Head);
        }
        if let Some(seq) = text.strip_prefix("seq:") {
            return number(seq).map(Self::Seq).ok_or_else(bad);
        }
        if let Some(time) = text.strip_prefix("ts:") {
            let (t, i) = time.split_once('.').ok_or_else(bad)?;
            let part = |text| number(text).and_then(|n| u32::try_from(n).ok()).ok_or_else(bad);
            return Ok(Self::Time(ClusterTime { t: part(t)?, i: part(i)? }));
        }
        parse_second(text).and_then(|s| u32::try_from(s).ok()).map(Self::Second).ok_or_else(bad)
    }
}

/// Digits only: no sign, no space.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// `YYYY-MM-DDTHH:MM:SS` with `Z` or an offset. A fraction is refused: history knows seconds and increments, and a cut fraction would include what came after.
fn parse_second(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let field = |at: usize, len: usize| text.get(at..at + len).and_then(number).and_then(|n| i64::try_from(n).ok());
    let (year, month, day) = (field(0, 4)?, field(5, 2)?, field(8, 2)?);
    let (hour, minute, second) = (field(11, 2)?, field(14, 2)?, field(17, 2)?);
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| bytes.get(*at) != Some(mark)) || !matches!(bytes.get(10), Some(b'T' | b't' | b' ')) {
        return None;
    }
    if !(1..=12).contains(&month) || day < 1 || day > days_in(year, month) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let offset = match text.get(19..)? {
        "Z" | "z" => 0,
        zone if zone.len() == 6 && zone.as_bytes()[3] == b':' => {
            let (hours, minutes) = (field(20, 2)?, field(23, 2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3600 + minutes * 60;
            match zone.as_bytes()[0] {
                b'+' => seconds,
                b'-' => -seconds,
                _ => return None,
            }
        }
        _ => return None,
    };
    Some(days_from_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01; years of the text form only.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let leaps = |y: i64| y / 4 - y / 100 + y / 400;
    let before_year = if year == 0 { -719_528 } else { (year - 1970) * 365 + leaps(year - 1) - leaps(1969) };
    before_year + (1..month).map(|m| days_in(year, m)).sum::<i64>() + day - 1
}

/// Milliseconds since the epoch as RFC 3339 in UTC, whole seconds; for display.
pub fn rfc3339(ms: i64) -> String {
    let seconds = ms.div_euclid(1000);
    let (mut days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Clamped to years 1..=9999: wall clocks come from outside and the loop below walks years.
    days = days.clamp(days_from_epoch(1, 1, 1), days_from_epoch(9999, 12, 31));
    let mut year = 1970 + days.div_euclid(366);
    while days_from_epoch(year + 1, 1, 1) <= days {
        year += 1;
    }
    while days_from_epoch(year, 1, 1) > days {
        year -= 1;
    }
    let mut day = days - days_from_epoch(year, 1, 1);
    let mut month = 1;
    while day >= days_in(year, month) {
        day -= days_in(year, month);
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z", day + 1, rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;
    use proptest::prelude::*;

    const fn at(t: u32, i: u32) -> ClusterTime {
        ClusterTime { t, i }
    }

    #[test]
    fn points_are_read() {
        let cases = [
            ("head", Point::Head),
            ("seq:0", Point::Seq(0)),
            ("seq:81234", Point::Seq(81234)),
            ("ts:1795467772.11", Point::Time(at(1_795_467_772, 11))),
            ("2026-11-23T21:02:52Z", Point::Second(1_795_467_772)),
            ("2026-11-23T22:02:52+01:00", Point::Second(1_795_467_772)),
            ("2026-11-23t20:32:52-00:30", Point::Second(1_795_467_772)),
            ("2000-02-29T00:00:00Z", Point::Second(951_782_400)),
            ("1970-01-01T00:00:00Z", Point::Second(0)),
        ];
        for (text, point) in cases {
            assert_eq!(text.parse::<Point>().unwrap(), point, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_point_is_a_configuration_error() {
        for text in [
            "",
            "HEAD",
            "seq:",
            "seq:-1",
            "seq:+1",
            "seq: 1",
            "seq:99999999999999999999",
            "ts:1",
            "ts:1.",
            "ts:1.4294967296",
            "now",
            "2026-11-23",
            "2026-11-23T21:02:52",
            "2026-11-23T21:02:52.5Z",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "1969-12-31T23:59:59Z",
            "2026-11-23T21:02:52+1:00",
            "2026-11-23T21:02:52é",
            "9999-01-01T00:00:00Z",
        ] {
            assert_eq!(text.parse::<Point>().unwrap_err().kind, Kind::Config, "{text}");
        }
    }

    #[test]
    fn rule_5_points_are_refused_beyond_what_is_captured() {
        let known = Known { head: 100, captured_until: at(50, 3), retained_from: 1 };
        let cases = [
            (Point::Head, Some(Bound::Seq(100))),
            (Point::Seq(100), Some(Bound::Seq(100))),
            (Point::Seq(101), None),
            (Point::Time(at(50, 3)), Some(Bound::Time(at(50, 3)))),
            (Point::Time(at(50, 4)), None),
            (Point::Second(49), Some(Bound::Time(at(49, u32::MAX)))),
            (Point::Second(50), None), // more changes of second 50 may come
            (Point::Time(at(10, 1)), Some(Bound::Time(at(10, 1)))),
        ];
        for (point, bound) in cases {
            assert_eq!(point.resolve(&known).ok(), bound, "{point}");
        }
        let retained = Known { retained_from: 51, ..known };
        assert!(Point::Seq(49).resolve(&retained).is_err());
        assert!(Point::Seq(50).resolve(&retained).is_ok());
    }

    #[test]
    fn rule_5_token_times_are_exclusive() {
        let cases = [
            // Nothing pending: the token's time minus one increment.
            (Some((at(60, 1), 11)), 10, at(50, 2), None, Some(at(60, 0))),
            // Changes 11.. are queued: only what is before the next change, or before the head's own time.
            (Some((at(60, 1), 15)), 10, at(50, 2), Some(at(55, 4)), Some(at(55, 3))),
            (Some((at(60, 1), 15)), 10, at(50, 2), None, Some(at(50, 1))),
            // The head had moved on when it was read.
            (Some((at(60, 1), 11)), 20, at(70, 2), None, Some(at(70, 1))),
            (None, 0, at(0, 0), None, None),
            (Some((at(60, 1), 1)), 0, at(0, 0), None, Some(at(60, 0))),
            (Some((at(60, 1), 5)), 0, at(0, 0), None, None),
        ];
        for (position, head, head_time, next, expected) in cases {
            assert_eq!(captured_until(position, head, head_time, next), expected, "{position:?} {head} {next:?}");
        }
    }

    proptest! {
        #[test]
        fn seconds_round_trip(second: u32) {
            prop_assert_eq!(Point::Second(second).to_string().parse::<Point>().unwrap(), Point::Second(second));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            let _ = text.parse::<Point>();
        }

        #[test]
        fn every_wall_clock_can_be_shown(ms: i64) {
            prop_assert_eq!(rfc3339(ms).len(), 20);
        }
    }
}
