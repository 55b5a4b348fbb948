//! Users and groups by name and number, from the files where packages put them.

use std::fs;

/// The accounts of this host.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// `/etc/passwd`
    pub users: String,
    /// `/etc/group`
    pub groups: String,
}

impl Accounts {
    /// Reads both files; one that cannot be read has no accounts.
    pub fn read() -> Self {
        let text = |file| fs::read_to_string(file).unwrap_or_default();
        Self { users: text("/etc/passwd"), groups: text("/etc/group") }
    }
}

/// Names and numbers in one of the files.
fn entries(accounts: &str) -> impl Iterator<Item = (&str, u32)> {
    accounts.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?.parse().ok()?))
    })
}

/// The name of the account with this number.
pub fn name(accounts: &str, number: u32) -> Option<&str> {
    entries(accounts).find(|(_, found)| *found == number).map(|(name, _)| name)
}

/// The number of the account with this name, else this number if an account has it.
pub fn number(accounts: &str, wanted: Option<&str>, number: u32) -> Option<u32> {
    let named = entries(accounts).find(|(name, _)| Some(*name) == wanted);
    named.or_else(|| entries(accounts).find(|(_, found)| *found == number)).map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name_and_by_number() {
        let users = "root:x:0:0::/:\nbroken\npostgres:x:104:110::/:\n";
        assert_eq!((name(users, 104), name(users, 7)), (Some("postgres"), None));
        assert_eq!(number(users, Some("postgres"), 26), Some(104));
        assert_eq!((number(users, Some("pg"), 104), number(users, None, 26)), (Some(104), None));
    }
}
