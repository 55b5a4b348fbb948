//! Who the restored files belong to.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Gid, Uid};
use walkeep_common::repository::backup::Owner;

use super::root::FileOwner;
use crate::accounts::{Accounts, number};

/// Who gets the files, and what to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    /// Whom to give the files to; none where they are this process's own.
    pub owner: Option<FileOwner>,
    /// That the recorded owner is not known here.
    pub warning: Option<String>,
}

/// Decides for a process that may give files away: the recorded names, else the recorded numbers, as far as this host
/// has them, else whoever owns the directory around the data directory.
pub fn decide(recorded: &Owner, accounts: &Accounts, surroundings: FileOwner) -> Ownership {
    let uid = number(&accounts.users, recorded.user.as_deref(), recorded.uid);
    let gid = number(&accounts.groups, recorded.group.as_deref(), recorded.gid);
    if let (Some(uid), Some(gid)) = (uid, gid) {
        return Ownership {
            owner: Some(FileOwner { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) }),
            warning: None,
        };
    }
    let name = |name: Option<&str>, id: u32| name.map_or_else(|| id.to_string(), str::to_owned);
    let warning = format!(
        "user \"{}\" or group \"{}\", who owned the backup's files, is not known here: they go to the owner of the \
         directory or of the one above, user {}, group {}",
        name(recorded.user.as_deref(), recorded.uid),
        name(recorded.group.as_deref(), recorded.gid),
        surroundings.uid.as_raw(),
        surroundings.gid.as_raw()
    );
    Ownership { owner: Some(surroundings), warning: Some(warning) }
}

/// The owner of `path`, if it was made for somebody, else of the nearest directory above that exists.
pub fn surroundings(path: &Path) -> FileOwner {
    let own = fs::metadata(path).ok().filter(|metadata| metadata.uid() != 0);
    let found = own.or_else(|| path.ancestors().skip(1).find_map(|directory| fs::metadata(directory).ok()));
    let (uid, gid) = found.map_or((0, 0), |metadata| (metadata.uid(), metadata.gid()));
    FileOwner { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: u32, gid: u32) -> FileOwner {
        FileOwner { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) }
    }

    #[test]
    fn the_name_counts_more_than_the_number_and_an_unknown_owner_is_replaced() {
        let accounts = Accounts {
            users: "root:x:0:0::/:\npostgres:x:104:110::/:\nwww:x:33:33::/:\n".to_owned(),
            groups: "postgres:x:110:\nwww:x:33:\n".to_owned(),
        };
        let recorded = |uid, gid, name: Option<&str>| Owner {
            uid,
            gid,
            user: name.map(str::to_owned),
            group: name.map(str::to_owned),
        };
        for (recorded, expected, warned) in [
            (recorded(26, 26, Some("postgres")), owner(104, 110), false),
            (recorded(33, 33, Some("pg")), owner(33, 33), false),
            (recorded(104, 110, None), owner(104, 110), false),
            (recorded(26, 26, Some("pg")), owner(1, 2), true),
            (recorded(33, 26, None), owner(1, 2), true),
        ] {
            let decided = decide(&recorded, &accounts, owner(1, 2));
            assert_eq!((decided.owner, decided.warning.is_some()), (Some(expected), warned), "{recorded:?}");
        }
    }
}
