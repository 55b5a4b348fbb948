//! The scenario tests: the programs as processes, against real servers.
#![expect(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive_get;
mod archive_push;
mod backfill;
mod harness;
mod read_ahead;
mod recovery;
mod samples;
mod store_faults;
mod wal_records;
