//! `basebackup restore`.

pub mod args;
pub mod plan;
pub mod tablespaces;
pub mod target;
pub mod time;
