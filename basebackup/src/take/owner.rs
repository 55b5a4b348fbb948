//! Names of users and groups, from the files where packages put them.

use std::fs;

use crate::pack::member::Owner;

/// The owner with these numbers and the names they have on this host.
pub(super) fn named(uid: u32, gid: u32) -> Owner {
    Owner { uid, gid, user: name("/etc/passwd", uid), group: name("/etc/group", gid) }
}

/// The first field of the line whose third is `id`; empty where there is none.
fn name(file: &str, id: u32) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.split(':').nth(2).is_some_and(|field| field.parse() == Ok(id)));
    line.and_then(|line| line.split(':').next()).unwrap_or_default().to_owned()
}
