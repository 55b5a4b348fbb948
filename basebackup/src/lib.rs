//! Takes, lists and restores base backups of PostgreSQL.

pub mod files;
