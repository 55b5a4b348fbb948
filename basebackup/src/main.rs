//! `basebackup`: takes, lists and restores base backups of PostgreSQL.

fn main() {}
