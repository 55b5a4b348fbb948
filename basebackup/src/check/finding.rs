//! What was found: one line for each thing that was tested, and the figures beside it.

use serde::Serialize;
use walkeep_common::error::{Error, Kind};

/// What came out of one test, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Passed,
    /// No fault, and worth knowing.
    Note,
    /// It works, and could hurt some day.
    Warning,
    /// WAL or backups are in danger, or it could not be tested whether they are.
    Failed,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// This host: files, users, directories.
    Configuration,
    /// The server and its settings.
    PostgreSQL,
    /// The store.
    Repository,
    /// The way from the server to the store and back.
    Archiving,
    /// Whether what is stored can be recovered from, and was.
    Recovery,
}

impl Area {
    /// As people read it.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::PostgreSQL => "postgresql",
            Self::Repository => "repository",
            Self::Archiving => "archiving",
            Self::Recovery => "recovery",
        }
    }
}

/// One line: what was tested, what came out, and what to type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// The test's name, which stays the same whatever comes out.
    pub check: &'static str,
    /// What came out.
    pub outcome: Outcome,
    /// It in words.
    pub text: String,
    /// What to do about it.
    pub fix: Option<String>,
}

impl Finding {
    pub(super) fn passed(area: Area, check: &'static str, text: impl Into<String>) -> Self {
        Self { area, check, outcome: Outcome::Passed, text: text.into(), fix: None }
    }

    pub(super) fn note(area: Area, check: &'static str, text: impl Into<String>) -> Self {
        Self { outcome: Outcome::Note, ..Self::passed(area, check, text) }
    }

    pub(super) fn warning(area: Area, check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { outcome: Outcome::Warning, fix: Some(fix.into()), ..Self::passed(area, check, text) }
    }

    pub(super) fn failed(area: Area, check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, fix: Some(fix.into()), ..Self::passed(area, check, text) }
    }

    /// A failure in its own words.
    pub(super) fn of_error(area: Area, check: &'static str, error: &Error) -> Self {
        let fix = error.hint_text().unwrap_or(match error.kind() {
            Kind::Damaged | Kind::Conflict => "basebackup verify --all --wal names all damage",
            Kind::Unavailable => "basebackup check tries again; if it lasts, the log of whoever says so has more",
            _ => "Correct what the message says, and run basebackup check again.",
        });
        Self::failed(area, check, error.to_string(), fix)
    }
}

/// A figure for those who draw it, with what is tolerated of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measure {
    /// Its name.
    pub name: &'static str,
    /// The figure.
    pub value: f64,
    /// `s` or `B`, or nothing for a number.
    pub unit: &'static str,
    /// What it is compared with.
    #[serde(flatten)]
    pub limits: Limits,
}

/// Where a figure begins to be bad.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Limits {
    /// From here on it is a warning.
    pub warning: Option<f64>,
    /// From here on it is a failure.
    pub critical: Option<f64>,
    /// Less is worse.
    pub is_minimum: bool,
}

impl Limits {
    /// What a figure must stay below.
    pub(super) const fn below(warning: Option<f64>, critical: Option<f64>) -> Self {
        Self { warning, critical, is_minimum: false }
    }

    /// What a figure must stay above.
    pub(super) const fn above(warning: f64, critical: f64) -> Self {
        Self { warning: Some(warning), critical: Some(critical), is_minimum: true }
    }

    /// How bad this figure is.
    pub(super) fn judge(self, value: f64) -> Outcome {
        let is_beyond = |limit: f64| if self.is_minimum { value < limit } else { value > limit };
        match self {
            Self { critical: Some(limit), .. } if is_beyond(limit) => Outcome::Failed,
            Self { warning: Some(limit), .. } if is_beyond(limit) => Outcome::Warning,
            _ => Outcome::Passed,
        }
    }
}

/// Everything that was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Findings {
    /// In the order of the tests.
    pub findings: Vec<Finding>,
    /// In the same order.
    pub measures: Vec<Measure>,
}

impl Findings {
    pub(super) fn add(&mut self, found: impl IntoIterator<Item = Finding>) {
        self.findings.extend(found);
    }

    pub(super) fn measure(&mut self, name: &'static str, value: f64, unit: &'static str, limits: Limits) {
        self.measures.push(Measure { name, value, unit, limits });
    }

    /// The worst of all outcomes.
    pub fn outcome(&self) -> Outcome {
        self.findings.iter().map(|finding| finding.outcome).max().unwrap_or(Outcome::Passed)
    }

    pub(super) fn of(&self, outcome: Outcome) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.outcome == outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_kept_by_what_is_equal_to_it() {
        let most = Limits::below(Some(10.0), Some(20.0));
        let least = Limits::above(20.0, 10.0);
        for (value, of_most, of_least) in [
            (10.0, Outcome::Passed, Outcome::Warning),
            (10.5, Outcome::Warning, Outcome::Warning),
            (20.0, Outcome::Warning, Outcome::Passed),
            (20.5, Outcome::Failed, Outcome::Passed),
            (9.5, Outcome::Passed, Outcome::Failed),
        ] {
            assert_eq!((most.judge(value), least.judge(value)), (of_most, of_least), "{value}");
        }
        assert_eq!(Limits::default().judge(1e9), Outcome::Passed);
    }

    #[test]
    fn the_whole_is_as_bad_as_the_worst_of_it() {
        let mut findings = Findings::default();
        assert_eq!(findings.outcome(), Outcome::Passed);
        findings.add([Finding::note(Area::PostgreSQL, "x", "x"), Finding::passed(Area::PostgreSQL, "x", "x")]);
        assert_eq!(findings.outcome(), Outcome::Note);
        findings
            .add([Finding::failed(Area::PostgreSQL, "x", "x", "y"), Finding::warning(Area::PostgreSQL, "x", "x", "y")]);
        assert_eq!(findings.outcome(), Outcome::Failed);
    }
}
