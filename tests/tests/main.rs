//! The scenario tests: the programs as processes, against real servers.
#![expect(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive_get;
mod archive_push;
mod backfill;
mod harness;
mod kills;
mod recovery;
mod restore;
mod samples;
mod site;
mod store_faults;
mod timelines;
mod wal_records;
