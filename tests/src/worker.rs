//! The processes in the background that push ahead, seen from outside.

use std::path::Path;

/// The processes that push ahead for a data directory.
pub fn of(data: &Path) -> Vec<i32> {
    let data = std::fs::canonicalize(data).expect("the data directory");
    processes()
        .filter(|process| {
            let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let mut words = line.split(|&byte| byte == 0);
            words.any(|word| word == b"--push-ahead") && words.any(|word| word == data.as_os_str().as_encoded_bytes())
        })
        .collect()
}

/// Every process there is.
pub fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process's name, and the fields of `/proc/PID/stat` behind it: state, parent, group, session, …
pub fn status(process: i32) -> Option<(String, Vec<String>)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
    Some((name.to_owned(), rest.split_whitespace().map(str::to_owned).collect()))
}

/// Whether a process has ended.
pub fn is_gone(process: i32) -> bool {
    status(process).is_none_or(|(_, fields)| fields.first().is_some_and(|state| state == "Z"))
}
