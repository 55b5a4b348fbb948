//! The names PostgreSQL passes to `archive_command` and `restore_command`.

use std::fmt;
use std::str::FromStr;

use super::segment::{SegmentName, Timeline, hexadecimal_u32};

/// One kind of file of a WAL archive (src/include/access/xlog_internal.h: `IsXLogFileName` and its relatives).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// `00000002.history`: where a timeline and its ancestors forked off.
    History(Timeline),
    /// `000000010000000000000005`: a whole segment.
    Segment(SegmentName),
    /// `000000010000000000000007.partial`: the old timeline's last, unfinished segment after a promotion.
    Partial(SegmentName),
    /// `000000010000000000000005.00000028.backup`: where a base backup started; informational.
    Backup {
        /// The segment the backup starts in.
        segment: SegmentName,
        /// The start position's offset within the segment.
        offset: u32,
    },
}

/// The text is not the name of a file of a WAL archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not the name of a WAL segment, timeline history, partial segment or backup history file")]
pub struct InvalidWalFileName(String);

impl WalFileName {
    /// The timeline in the name.
    pub fn timeline(self) -> Timeline {
        match self {
            Self::History(timeline) => timeline,
            Self::Segment(segment) | Self::Partial(segment) | Self::Backup { segment, .. } => segment.timeline,
        }
    }

    /// The segment in the name, if it has one.
    pub fn segment(self) -> Option<SegmentName> {
        match self {
            Self::History(_) => None,
            Self::Segment(segment) | Self::Partial(segment) | Self::Backup { segment, .. } => Some(segment),
        }
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.0),
            Self::Segment(segment) => segment.fmt(f),
            Self::Partial(segment) => write!(f, "{segment}.partial"),
            Self::Backup { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
        }
    }
}

impl FromStr for WalFileName {
    type Err = InvalidWalFileName;

    fn from_str(text: &str) -> Result<Self, InvalidWalFileName> {
        let invalid = || InvalidWalFileName(text.to_owned());
        let segment = |digits: &str| digits.parse::<SegmentName>().map_err(|_| invalid());
        match text.split_once('.') {
            None => Ok(Self::Segment(segment(text)?)),
            Some((digits, "partial")) => Ok(Self::Partial(segment(digits)?)),
            Some((digits, "history")) => {
                let timeline = hexadecimal_u32(digits).filter(|&timeline| timeline > 0).ok_or_else(invalid)?;
                Ok(Self::History(Timeline(timeline)))
            }
            Some((digits, rest)) => {
                let offset = rest.strip_suffix(".backup").and_then(hexadecimal_u32).ok_or_else(invalid)?;
                Ok(Self::Backup { segment: segment(digits)?, offset })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_archive_file_is_read_and_written_the_same() {
        for text in [
            "00000002.history",
            "0000000100000000000000A5",
            "000000010000000000000007.partial",
            "000000010000000000000005.00000028.backup",
        ] {
            assert_eq!(text.parse::<WalFileName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn timelines_in_names_are_hexadecimal() {
        assert_eq!("00000011.history".parse::<WalFileName>().unwrap().timeline(), Timeline(17));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "RECOVERYXLOG",
            "00000000.history",
            "0000002.history",
            "00000002.history.zst",
            "000000010000000000000005.28.backup",
            "000000010000000000000005.backup",
            "../000000010000000000000005",
            "000000010000000000000005.partial.partial",
            "00000001000000000000000g",
            "archive_status",
        ] {
            assert!(text.parse::<WalFileName>().is_err(), "{text:?}");
        }
    }
}
