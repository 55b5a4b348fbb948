//! The scenario tests: the programs as processes, against real servers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod wal_records;
