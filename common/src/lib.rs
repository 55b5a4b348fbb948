//! What at least two of Walkeep's programs use.

pub mod error;
pub mod lsn;
pub mod postgres;
pub mod wal;
