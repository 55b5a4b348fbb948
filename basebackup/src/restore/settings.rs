//! PostgreSQL's configuration files: settings taken out and added, everything else kept byte for byte.
//!
//! Mirrors src/backend/utils/misc/guc-file.l as far as lines need to be told apart: a setting never spans lines.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::configuration::syntax::{setting_name, value_of};

/// What recovery and archiving of the restored server depend on: whatever the backup says of it is of another time.
const OF_RECOVERY: [&str; 11] = [
    "archive_cleanup_command",
    "ignore_invalid_pages",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "restore_command",
    "standby_mode",
    "trigger_file",
];

/// The settings that say where recovery ends. PostgreSQL refuses to start with more than one.
pub const TARGETS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

/// Begins the lines that were added, and in a later restore those to take out.
const COMMENT: &str = "# Added by basebackup restore";

fn is_of_recovery(name: &str) -> bool {
    name.starts_with("recovery_target") || OF_RECOVERY.contains(&name)
}

/// The contents without the settings of recovery.
pub fn without_recovery(contents: &[u8]) -> Vec<u8> {
    without(contents, is_of_recovery)
}

/// The contents without some settings.
pub fn without(contents: &[u8], is_unwanted: impl Fn(&str) -> bool) -> Vec<u8> {
    let lines = contents.split_inclusive(|&b| b == b'\n').filter(|line| {
        !line.starts_with(COMMENT.as_bytes()) && !setting_name(line).is_some_and(|name| is_unwanted(&name))
    });
    lines.flatten().copied().collect()
}

/// Begins a line that says where another data directory is.
const TAKEN_OUT: &[u8] = b"# Taken out by basebackup restore: ";

/// `postgresql.conf` without the line that says where the data directory is; nothing if there is none. It counts for more than
/// `-D`, so whoever starts a server on a copy would start the one that was copied.
pub fn without_data_directory(contents: &[u8]) -> Option<Vec<u8>> {
    let is_wanted = |line: &[u8]| setting_name(line).is_none_or(|name| name != "data_directory");
    if contents.split(|&b| b == b'\n').all(is_wanted) {
        return None;
    }
    let lines = contents.split_inclusive(|&b| b == b'\n');
    Some(lines.flat_map(|line| [if is_wanted(line) { b"" } else { TAKEN_OUT }, line]).flatten().copied().collect())
}

/// What makes configuration files that came from the data directory `old` keep to the one at `new`: files in the old one that
/// they name, and the file for the process's number, which is the old server's. The first of them counts most.
pub fn moved_files(contents: &[&[u8]], old: &Path, new: &Path) -> Vec<(String, String)> {
    let value_of = |name: &str| contents.iter().find_map(|contents| value_of(contents, name));
    let moved = |name: &str| {
        let value = value_of(name)?;
        let below = Path::new(OsStr::from_bytes(&value)).strip_prefix(old).ok()?.to_owned();
        Some((name.to_owned(), new.join(below).to_str()?.to_owned()))
    };
    let mut settings: Vec<(String, String)> = ["hba_file", "ident_file"].into_iter().filter_map(moved).collect();
    if value_of("external_pid_file").is_some_and(|value| !value.is_empty()) {
        settings.push(("external_pid_file".to_owned(), String::new()));
    }
    settings
}

/// The contents of a configuration file with all settings of recovery taken out, those in `added` replaced, and
/// `added` put at the end.
pub fn rewrite(contents: &[u8], added: &[(String, String)]) -> Vec<u8> {
    let mut rewritten = without(contents, |name| is_of_recovery(name) || added.iter().any(|(added, _)| added == name));
    if !rewritten.is_empty() && !rewritten.ends_with(b"\n") {
        rewritten.push(b'\n');
    }
    rewritten.extend_from_slice(COMMENT.as_bytes());
    rewritten.push(b'\n');
    for (name, value) in added {
        rewritten.extend_from_slice(setting(name, value).as_bytes());
    }
    rewritten
}

/// A line that sets something.
pub fn setting(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", quoted(value))
}

/// Within single quotes, as `ALTER SYSTEM` writes it (`escape_single_quotes_ascii`, src/port/quotes.c).
fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

/// The recovery targets that `postgresql.conf` may set: those it names, or all of them if it has other files read.
pub fn recovery_targets(contents: &[u8]) -> Vec<&'static str> {
    let names: BTreeSet<String> = contents.split(|&b| b == b'\n').filter_map(setting_name).collect();
    let has_others_read = ["include", "include_if_exists", "include_dir"].iter().any(|name| names.contains(*name));
    TARGETS.into_iter().filter(|target| has_others_read || names.contains(*target)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_recovery_are_taken_out_and_everything_else_stays() {
        let added = [
            ("restore_command".to_owned(), r"'/a b/archive-get' \x".to_owned()),
            ("archive_mode".to_owned(), "off".to_owned()),
        ];
        let ours =
            "# Added by basebackup restore\nrestore_command = '''/a b/archive-get'' \\\\x'\narchive_mode = 'off'\n";
        for (before, kept) in [
            ("", ""),
            (
                "# Do not edit this file manually!\nwork_mem = '4MB'\n",
                "# Do not edit this file manually!\nwork_mem = '4MB'\n",
            ),
            ("work_mem = 4MB", "work_mem = 4MB\n"),
            ("restore_command = 'cp /a/%f %p'\nport=1\n", "port=1\n"),
            ("  Recovery_Target_Time='x' # why\nRECOVERY_TARGET 'immediate'\nport=1\n", "port=1\n"),
            (
                "primary_conninfo = 'host=a'\nprimary_slot_name=b\narchive_mode=on\narchive_command='x'\n",
                "archive_command='x'\n",
            ),
            ("recovery_prefetch = on\n", "recovery_prefetch = on\n"),
            ("# recovery_target = 'immediate'\n\n", "# recovery_target = 'immediate'\n\n"),
            ("include 'restore_command'\n", "include 'restore_command'\n"),
            ("a.b = '\u{e9}'\r\n", "a.b = '\u{e9}'\r\n"),
        ] {
            let rewritten = rewrite(before.as_bytes(), &added);
            assert_eq!(String::from_utf8(rewritten).unwrap(), format!("{kept}{ours}"), "{before:?}");
        }
        assert_eq!(rewrite(b"\xff = '\xff'\n", &[]), b"\xff = '\xff'\n# Added by basebackup restore\n");
    }

    #[test]
    fn rewriting_twice_is_rewriting_once() {
        let added = [("restore_command".to_owned(), "x".to_owned())];
        let once = rewrite(b"port = 1\n", &added);
        assert_eq!(rewrite(&once, &added), once);
    }

    #[test]
    fn what_leads_to_another_data_directory_is_taken_out_or_moved() {
        let contents = b"port = 1\n Data_Directory '/old'\nhba_file = '/old/etc/hba.conf'\n\
                         ident_file = '/etc/ident.conf'\nexternal_pid_file = '/run/x.pid'\n#data_directory = 'x'\n\xe4";
        let without = without_data_directory(contents).unwrap();
        let expected = String::from_utf8_lossy(contents).replace(" Data", "# Taken out by basebackup restore:  Data");
        assert_eq!(String::from_utf8_lossy(&without), expected);
        assert_eq!(without_data_directory(&without), None);
        let moved = moved_files(&[b"ident_file = '/elsewhere'", contents], Path::new("/old"), Path::new("/new"));
        let expected = [("hba_file", "/new/etc/hba.conf"), ("external_pid_file", "")];
        assert_eq!(moved, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn targets_that_the_main_configuration_may_set_are_found() {
        let found =
            recovery_targets(b"#recovery_target_xid = 1\nrecovery_target_lsn = '0/1'\n recovery_target_action=pause");
        assert_eq!(found, ["recovery_target_lsn"]);
        assert!(recovery_targets(b"#include = 'a'\nincluded.x = 1\n").is_empty());
        for include in ["port = 1\ninclude_dir 'conf.d'\n", " Include_If_Exists = 'a'"] {
            assert_eq!(recovery_targets(include.as_bytes()), TARGETS);
        }
    }
}
