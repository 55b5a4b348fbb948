//! The scenario tests: the programs as processes, against real servers.
#![expect(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod archive_get;
mod archive_push;
mod archiving;
mod backfill;
mod bad_input;
mod drill;
mod faults;
mod format_recipe;
mod golden;
mod guides;
mod harness;
mod judges;
mod kills;
mod layers;
mod patience;
mod push_ahead;
mod read_ahead;
mod read_ahead_servers;
mod readme;
mod recovery;
mod restore;
mod restore_edges;
mod restore_options;
mod samples;
mod server_configuration;
mod site;
mod soak;
mod store_contract;
mod store_faults;
mod take;
mod take_fidelity;
mod take_life;
mod timelines;
mod verify;
mod wal_records;
