//! What PostgreSQL puts into a WAL archive: names, sizes, page headers, timeline histories. Pure: bytes in, values out.
//!
//! Mirrors src/include/access/xlog_internal.h and src/backend/access/transam/timeline.c.

pub mod header;
pub mod history;
pub mod name;
pub mod records;
pub mod segment;
