//! What is kept of the backups: the settings of `[retention]`.

use std::collections::BTreeMap;

use super::file::RetentionFileSettings;
use super::resolved;
use crate::error::Result;

/// More than anybody means: a typing error.
const MOST: u32 = 100_000;

/// What `basebackup expire` keeps: all that any of these keeps. None of them set is no policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// The newest so many backups, with all WAL since the oldest of them.
    pub keep_full: Option<u32>,
    /// Every moment of the last so many days.
    pub keep_days: Option<u32>,
    /// The newest backup of each of the last so many days that have one.
    pub keep_daily: Option<u32>,
    /// The newest backup of each of the last so many weeks that have one.
    pub keep_weekly: Option<u32>,
    /// The newest backup of each of the last so many months that have one.
    pub keep_monthly: Option<u32>,
    /// The newest backup of each of the last so many years that have one.
    pub keep_yearly: Option<u32>,
}

impl Retention {
    /// From the environment and the file.
    ///
    /// # Errors
    /// `Usage`, naming the setting.
    pub(super) fn resolve(
        file: RetentionFileSettings,
        pick: &impl Fn(&'static str, Option<String>) -> Option<(String, String)>,
    ) -> Result<Self> {
        let number = |variable, from_file, setting: &str| resolved(pick(variable, from_file), setting, parse_count);
        Ok(Self {
            keep_full: number("WALKEEP_RETENTION_KEEP_FULL", file.keep_full, "retention.keep_full")?,
            keep_days: number("WALKEEP_RETENTION_KEEP_DAYS", file.keep_days, "retention.keep_days")?,
            keep_daily: number("WALKEEP_RETENTION_KEEP_DAILY", file.keep_daily, "retention.keep_daily")?,
            keep_weekly: number("WALKEEP_RETENTION_KEEP_WEEKLY", file.keep_weekly, "retention.keep_weekly")?,
            keep_monthly: number("WALKEEP_RETENTION_KEEP_MONTHLY", file.keep_monthly, "retention.keep_monthly")?,
            keep_yearly: number("WALKEEP_RETENTION_KEEP_YEARLY", file.keep_yearly, "retention.keep_yearly")?,
        })
    }

    /// These settings, and where they say nothing those of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            keep_full: self.keep_full.or(other.keep_full),
            keep_days: self.keep_days.or(other.keep_days),
            keep_daily: self.keep_daily.or(other.keep_daily),
            keep_weekly: self.keep_weekly.or(other.keep_weekly),
            keep_monthly: self.keep_monthly.or(other.keep_monthly),
            keep_yearly: self.keep_yearly.or(other.keep_yearly),
        }
    }

    /// What is set, by the names of the keys.
    pub fn settings(&self) -> BTreeMap<String, u32> {
        let keys = super::file::RETENTION_KEYS.into_iter().map(str::to_owned);
        let values =
            [self.keep_full, self.keep_days, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        keys.zip(values).filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// Whether nothing is said: then nothing may be removed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads how many are kept: at least one, for a policy that keeps none is a mistake.
///
/// # Errors
/// What was expected.
pub fn parse_count(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("expected a number from 1 to {MOST}"))
}
