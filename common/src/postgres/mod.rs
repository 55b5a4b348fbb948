//! Files of a data directory as PostgreSQL writes them. Pure parsers, and the readers that wait out a torn read.

pub mod control;
pub mod label;
pub mod postmaster;
pub mod tablespace_map;
