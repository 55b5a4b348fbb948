//! Names of users and groups of this host.

use crate::accounts::{Accounts, name};
use crate::pack::member::Owner;

/// The owner with these numbers and the names they have on this host.
pub(super) fn named(accounts: &Accounts, uid: u32, gid: u32) -> Owner {
    let text = |name: Option<&str>| name.unwrap_or_default().to_owned();
    Owner { uid, gid, user: text(name(&accounts.users, uid)), group: text(name(&accounts.groups, gid)) }
}
