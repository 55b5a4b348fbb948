//! Runs the programs against real PostgreSQL servers and real object stores.
//!
//! | module | is |
//! | --- | --- |
//! | [`binaries`] | where the three programs are |
//! | [`run`] | one run of a program, with everything it said |
//! | [`cluster`] | a real PostgreSQL of any major |
//! | [`ceph`], [`emulator`] | object stores that follow the protocol, and some that do not |
//! | [`repository`] | a repository in a directory or a bucket, its configuration, and its objects by hand |
//! | [`worker`] | the processes in the background that push ahead |
//! | [`proxy`] | faults between a program and its store, on purpose and counted |
//! | [`dice`] | random moments, with a seed to repeat them |
//!
//! A test starts the servers it needs, on free ports and in its own directories, and they end with it, also when the test
//! process is killed. Started as root, everything of PostgreSQL runs as the user `postgres`, since it refuses root. With
//! `WALKEEP_KEEP=1` the directories stay for inspection. Whatever can go wrong here fails the test, by a panic that says
//! what was seen.
#![expect(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "a harness reports by failing the test")]

pub mod binaries;
pub mod ceph;
pub mod cluster;
pub mod daemon;
pub mod dice;
pub mod emulator;
pub mod proxy;
pub mod repository;
pub mod run;
pub mod scratch;
pub mod user;
pub mod wait;
pub mod worker;
