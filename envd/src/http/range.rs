//! The part of a file that a caller asks for: `Range`, with one range of bytes (RFC 9110, 14.2).

use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use chrono::{DateTime, Utc};
use http::{HeaderMap, header};

/// What to answer to a `Range`.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// The whole file: nothing else was asked for, or nothing that is understood.
    Whole,
    /// These bytes of it, at least one.
    Of(Range<u64>),
    /// Nothing: there is no byte of what was asked for.
    Outside,
}

/// Which version of a file it is; another one after each write.
#[derive(Debug, PartialEq, Eq)]
pub struct Version {
    /// As `ETag` has it, with its quotes.
    pub tag: String,
    /// As `Last-Modified` has it.
    pub modified: String,
}

impl Version {
    /// That of an open file.
    pub fn of(meta: &Metadata) -> Self {
        let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
        let modified = DateTime::<Utc>::from_timestamp(seconds, 0).unwrap_or_default();
        Self {
            tag: format!("\"{:x}-{seconds:x}-{nanos:x}-{:x}\"", meta.ino(), meta.size()),
            modified: modified.format("%a, %d %b %Y %H:%M:%S GMT").to_string(),
        }
    }

    /// Whether a download that began with what `If-Range` says goes on with this one.
    fn continues(&self, headers: &HeaderMap) -> bool {
        let condition = headers.get(header::IF_RANGE).map(|value| value.as_bytes());
        // A second is too coarse a clock to go by, which the standard allows to be strict about.
        condition.is_none_or(|tag| tag == self.tag.as_bytes())
    }
}

/// Which part of a file of `length` bytes is asked for. Several ranges, and what is no range of
/// bytes, are ignored as the standard has it.
pub fn part(headers: &HeaderMap, length: u64, version: &Version) -> Part {
    let mut values = headers.get_all(header::RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Part::Whole };
    let range = value.to_str().ok().and_then(|value| value.trim().strip_prefix("bytes="));
    match range.and_then(|range| within(range, length)) {
        Some(part) if version.continues(headers) => part,
        Some(_) | None => Part::Whole,
    }
}

fn within(range: &str, length: u64) -> Option<Part> {
    let (first, last) = range.trim().split_once('-')?;
    let range = match (number(first)?, number(last)?) {
        (None, None) => return None,
        (None, Some(suffix)) => length.saturating_sub(suffix)..length,
        (Some(first), None) => first..length,
        (Some(first), Some(last)) if last < first => return None,
        (Some(first), Some(last)) => first..last.saturating_add(1).min(length),
    };
    Some(if range.start < range.end { Part::Of(range) } else { Part::Outside })
}

/// A number, or nothing at all; `None` for what is neither. What no file can have is as much as the
/// largest that one can.
fn number(text: &str) -> Option<Option<u64>> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((!text.is_empty()).then(|| text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn version() -> Version {
        Version { tag: "\"v1\"".to_owned(), modified: String::new() }
    }

    fn ask(range: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(range))])
    }

    #[test]
    fn one_range_is_cut_to_the_file() {
        for (range, expected) in [
            ("bytes=0-0", Part::Of(0..1)),
            ("bytes=2-", Part::Of(2..10)),
            ("bytes=2-4", Part::Of(2..5)),
            ("bytes=2-99", Part::Of(2..10)),
            ("bytes=9-18446744073709551615", Part::Of(9..10)),
            ("bytes=-3", Part::Of(7..10)),
            ("bytes=-99", Part::Of(0..10)),
            ("bytes=10-", Part::Outside),
            ("bytes=10-20", Part::Outside),
            ("bytes=99999999999999999999999-", Part::Outside),
            ("bytes=-0", Part::Outside),
        ] {
            assert_eq!(part(&ask(range), 10, &version()), expected, "{range}");
        }
    }

    #[test]
    fn what_is_no_single_range_of_bytes_is_ignored() {
        for range in
            ["bytes=-", "bytes=4-2", "bytes=a-b", "bytes=+1-2", "bytes=0-1,3-4", "lines=1-2", ""]
        {
            assert_eq!(part(&ask(range), 10, &version()), Part::Whole, "{range}");
        }
        let mut twice = ask("bytes=0-1");
        twice.append(header::RANGE, HeaderValue::from_static("bytes=3-4"));
        assert_eq!(part(&twice, 10, &version()), Part::Whole);
        assert_eq!(part(&HeaderMap::new(), 10, &version()), Part::Whole);
    }

    #[test]
    fn another_version_is_sent_as_a_whole() {
        let mut headers = ask("bytes=5-");
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"v1\""));
        assert_eq!(part(&headers, 10, &version()), Part::Of(5..10));
        headers.insert(header::IF_RANGE, HeaderValue::from_static("\"v0\""));
        assert_eq!(part(&headers, 10, &version()), Part::Whole);
    }
}
