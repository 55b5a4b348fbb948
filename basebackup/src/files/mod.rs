//! The files of a live data directory: which belong to a base backup, how they are read, and PostgreSQL's list of them.
//!
//! [`scan`](scan::scan) lists what pg_basebackup of the same major would copy, [`read`] delivers the bytes of one file
//! of that list while the server goes on writing, [`page`] tells damaged pages from whole ones, and [`manifest`] writes
//! and reads `backup_manifest`. Nothing here writes to the data directory.

mod access;
pub mod attributes;
pub mod checksum;
pub mod exclude;
pub mod manifest;
pub mod page;
pub mod read;
pub mod relation;
pub mod scan;
pub mod settle;
pub mod tablespace;
mod walk;
