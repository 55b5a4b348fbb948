//! Base backups of PostgreSQL: taken, listed, restored, verified, drilled, expired.
//!
//! Each command is a module of its own name; the rest is what they are made of:
//!
//! - [`session`]: the connection to the server and its backup mode.
//! - [`configuration`]: the server's configuration where it lies outside the data directory.
//! - [`files`]: the data directory: what belongs to a backup, pages and their checksums, PostgreSQL's manifest.
//! - [`pack`]: the stored form: tar streams in seekable zstd, and the index of their members.
//! - [`catalog`]: the backups in a repository.
//! - [`output`]: text and JSON on standard output.

pub mod accounts;
pub mod args;
pub mod catalog;
pub mod check;
pub mod cluster;
pub mod configuration;
pub mod drill;
pub mod expire;
pub mod files;
mod interrupt;
pub mod list;
mod meter;
pub mod output;
pub mod pack;
pub mod pins;
pub mod restore;
pub mod session;
pub mod show;
pub mod status;
pub mod take;
pub mod verify;
