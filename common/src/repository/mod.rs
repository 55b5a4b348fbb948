//! What lies where in a repository, and the JSON objects in it. Pure: values to bytes and back.

pub mod backup;
pub mod expire;
pub mod identity;
pub mod layout;
pub mod seal;
