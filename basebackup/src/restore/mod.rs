//! `basebackup restore`.

pub mod args;
pub mod plan;
pub mod recovery;
pub mod root;
pub mod settings;
pub mod tablespaces;
pub mod target;
pub mod time;
