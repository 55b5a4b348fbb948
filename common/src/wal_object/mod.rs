//! One archived WAL file as it is stored: a header, then the file compressed by zstd.
//!
//! `zstd -dc OBJECT` yields the file; the first 4 KiB yield the header. `FORMAT.md` specifies the bytes.

pub mod decode;
pub mod encode;
pub mod header;

#[cfg(test)]
mod tests;
