//! The recovery settings of the restored server.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use walkeep_common::config::{Config, is_variable};
use walkeep_common::error::{Error, Kind, Result};
use walkeep_common::repository::backup::Backup;
use walkeep_common::wal::segment::SegmentName;

use super::plan::{Plan, RecoveryTimeline};
use super::target::{Bound, Role, Target};

/// The program that fetches WAL.
const ARCHIVE_GET: &str = "archive-get";

/// What else recovery obeys, switched off: `postgresql.conf` is of another time, and these would still hold.
const NEUTRAL: [(&str, &str); 5] = [
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("recovery_min_apply_delay", "0"),
    ("primary_conninfo", ""),
    ("primary_slot_name", ""),
];

/// Whether the restored server archives its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archiving {
    /// As configured: it is the same server, in its own place.
    SamePlace,
    /// As configured: it was asked for, by --keep-archiving or by Patroni.
    Kept,
    /// Off: what another server in another place archives would get in the way of the first one's.
    Off,
}

impl Archiving {
    /// Decides by whether the backup goes where it was taken.
    pub fn decide(same_place: bool, keep: bool) -> Self {
        if same_place {
            Self::SamePlace
        } else if keep {
            Self::Kept
        } else {
            Self::Off
        }
    }

    /// What it is, and why.
    pub fn to_text(self, backup: &Backup) -> String {
        match self {
            Self::SamePlace => "as configured: host and data directory are those of the backup".to_owned(),
            Self::Kept => "as configured, into the same archive as the server of the backup".to_owned(),
            Self::Off => format!(
                "off: this is not \"{}\" on host \"{}\", where the backup was taken (--keep-archiving leaves it on)",
                backup.data_directory, backup.host
            ),
        }
    }
}

/// The file whose presence makes the server recover.
pub fn signal_file(role: &Role) -> &'static str {
    match role {
        Role::Primary => "recovery.signal",
        Role::Standby { .. } => "standby.signal",
    }
}

/// Whether a tablespace lies in the data directory itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InPlace {
    /// At least one.
    Some,
    /// None.
    None,
}

/// Everything that is written into `postgresql.auto.conf`, in order. A restore that is not whole has empty pages where WAL
/// expects others.
pub fn settings(
    plan: &Plan,
    restore_command: String,
    archiving: Archiving,
    in_place: InPlace,
    is_whole: bool,
) -> Vec<(String, String)> {
    let mut settings = vec![("restore_command", restore_command)];
    let request = &plan.request;
    let timeline = match plan.timeline {
        RecoveryTimeline::Number(timeline) => timeline.to_string(),
        RecoveryTimeline::Latest => "latest".to_owned(),
    };
    settings.push(("recovery_target_timeline", timeline));
    if let Some(target) = request.target.setting() {
        settings.push(target);
        if !matches!(request.target, Target::Immediate | Target::Name(_)) {
            let inclusive = if request.bound == Bound::Inclusive { "on" } else { "off" };
            settings.push(("recovery_target_inclusive", inclusive.to_owned()));
        }
        settings.push(("recovery_target_action", request.action.unwrap_or_default().as_str().to_owned()));
    }
    if let Role::Standby { primary_conninfo, slot } = &request.role {
        settings.extend(primary_conninfo.clone().map(|conninfo| ("primary_conninfo", conninfo)));
        settings.extend(slot.clone().map(|slot| ("primary_slot_name", slot)));
    }
    if archiving == Archiving::Off {
        settings.push(("archive_mode", "off".to_owned()));
        if request.role == Role::Primary {
            // It has the subscriptions of the first one, and would take over their slots.
            settings.push(("max_logical_replication_workers", "0".to_owned()));
        }
    }
    if !is_whole {
        settings.push(("ignore_invalid_pages", "on".to_owned()));
    }
    if in_place == InPlace::Some {
        // Without it recovery panics over such a tablespace (`CheckTablespaceDirectory`).
        settings.push(("allow_in_place_tablespaces", "on".to_owned()));
    }
    for (name, neutral) in NEUTRAL {
        if settings.iter().all(|(set, _)| *set != name) {
            settings.push((name, neutral.to_owned()));
        }
    }
    settings.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The command that fetches WAL from this archive, and from nowhere else.
pub fn restore_command(
    program: &Path,
    config: &Config,
    system_identifier: u64,
    last_segment: Option<SegmentName>,
) -> Result<String> {
    let flags = config.flags();
    let mut words = vec![text(program)?];
    if let Some(file) = &flags.config {
        words.extend(["--config".to_owned(), text(file)?]);
    }
    words.extend(flags.repository.into_iter().flat_map(|url| ["--repository".to_owned(), url]));
    words.extend(flags.cluster.into_iter().flat_map(|cluster| ["--cluster".to_owned(), cluster]));
    words.extend(["--system-identifier".to_owned(), system_identifier.to_string()]);
    if let Some(last) = last_segment {
        words.extend(["--last-segment".to_owned(), format!("{}/{last}", last.timeline)]);
    }
    // PostgreSQL replaces what follows a percent sign before the shell sees the command.
    let words: Vec<String> = words.iter().map(|word| shell_quoted(word).replace('%', "%%")).collect();
    Ok(format!("{} %f %p", words.join(" ")))
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    text.map(str::to_owned).ok_or_else(|| {
        Error::new(Kind::Usage, format!("path \"{}\" cannot be written into restore_command", path.display()))
    })
}

fn shell_quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '%' | '=' | '+' | ',');
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Finds `archive-get`: beside this program, else on the search path.
///
/// # Errors
/// `Usage` if there is none.
pub fn find_archive_get(own: Option<&Path>, search_path: Option<&OsStr>) -> Result<PathBuf> {
    let beside = own.and_then(Path::parent).map(Path::to_owned);
    let searched = search_path.into_iter().flat_map(std::env::split_paths).filter(|directory| directory.is_absolute());
    let mut candidates = beside.into_iter().chain(searched).map(|directory| directory.join(ARCHIVE_GET));
    candidates.find(|candidate| candidate.is_file()).ok_or_else(|| {
        Error::new(Kind::Usage, "the program \"archive-get\" is neither beside this one nor on the search path")
            .hint("The restored server fetches its WAL with it: install it on this host.")
    })
}

/// Environment variables that this run relied on, and that PostgreSQL does not pass on unless it has them itself.
pub fn relied_on(names: impl Iterator<Item = String>) -> Vec<String> {
    // Written into the command, or of no consequence to it.
    let known = ["CONFIG", "REPOSITORY", "CLUSTER", "RUN_DIRECTORY", "SPOOL_DIRECTORY", "COMPRESSION_LEVEL"];
    let ours =
        |name: &str| is_variable(name) && !name.strip_prefix("WALKEEP_").is_some_and(|name| known.contains(&name));
    let credentials = |name: &str| {
        ["AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION"].contains(&name)
            || name.starts_with("GOOGLE_")
            || name.starts_with("AZURE_")
    };
    let mut names: Vec<String> = names.filter(|name| ours(name) || credentials(name)).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use walkeep_common::config::Flags;

    use super::*;

    fn config(repository: &str) -> Config {
        let flags = Flags { repository: Some(repository.to_owned()), ..Flags::default() };
        Config::resolve(&flags, |_| None).unwrap()
    }

    #[test]
    fn the_command_survives_shell_and_percent_signs() {
        let config = Config { file: Some("/etc/it's/walkeep.toml".into()), ..config("file:///mnt/100% safe") };
        let last = "00000001000000000000000A".parse().unwrap();
        assert_eq!(
            restore_command(Path::new("/opt/my tools/archive-get"), &config, 7, Some(last)).unwrap(),
            "'/opt/my tools/archive-get' --config '/etc/it'\\''s/walkeep.toml' --repository 'file:///mnt/100%% safe' \
             --cluster main --system-identifier 7 --last-segment 1/00000001000000000000000A %f %p"
        );
        assert!(restore_command(Path::new("/a\nb"), &config, 7, None).is_err());
    }

    #[test]
    fn archive_get_is_looked_for_beside_this_program_first() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let own = first.path().join("basebackup");
        let find = || find_archive_get(Some(&own), Some(second.path().as_os_str()));
        assert_eq!(find().unwrap_err().kind(), Kind::Usage);
        std::fs::write(second.path().join("archive-get"), "").unwrap();
        assert_eq!(find().unwrap(), second.path().join("archive-get"));
        std::fs::write(first.path().join("archive-get"), "").unwrap();
        assert_eq!(find().unwrap(), first.path().join("archive-get"));
    }

    #[test]
    fn variables_that_the_command_will_miss_are_named() {
        let names = ["PATH", "WALKEEP_REPOSITORY", "WALKEEP_S3_ENDPOINT", "AWS_ACCESS_KEY_ID"];
        assert_eq!(relied_on(names.into_iter().map(str::to_owned)), ["AWS_ACCESS_KEY_ID", "WALKEEP_S3_ENDPOINT"]);
    }
}
