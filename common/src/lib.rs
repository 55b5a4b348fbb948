//! What at least two of Walkeep's programs use.
//!
//! Modules only look downwards in this list, from words over formats to effects:
//!
//! 1. [`error`], [`lsn`]: the words everything is written in.
//! 2. [`wal`], [`postgres`]: PostgreSQL's formats. Pure: bytes in, values out.
//! 3. [`wal_object`], [`repository`]: our formats, specified in `FORMAT.md`. Pure.
//! 4. [`config`]: the configuration as meant.
//! 5. [`retry`], [`store`]: objects in an object store, or in a directory. [`host`]: this host, and what it remembers.
//! 6. [`wal_archive`]: the WAL of one cluster in a repository: stored once, fetched verified, holes told from the end.
//! 7. [`cli`]: the process: arguments, messages, time limits, exit codes.

pub mod cli;
pub mod config;
pub mod error;
pub mod host;
pub mod lsn;
pub mod postgres;
pub mod repository;
pub mod retry;
pub mod store;
pub mod wal;
pub mod wal_archive;
pub mod wal_object;
