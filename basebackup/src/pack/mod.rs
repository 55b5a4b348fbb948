//! Packs: the files of a base backup as tar streams in independent zstd frames, and the index of what lies where.
//!
//! A [`writer::PackWriter`] turns members into plain frames, a pool of threads compresses them
//! ([`frames::Compressors`]), and an [`assembler::PackAssembler`] puts them in order again. The way back is a
//! [`reader::PackLayout`]: which stored bytes hold the wanted members, and how to cut these out of them.
//!
//! Pure code: bytes in, values out. `common/FORMAT.md` specifies the format.

pub mod assembler;
pub mod buffers;
pub mod frames;
pub mod index;
mod index_line;
pub mod member;
pub mod reader;
pub mod seek_table;
pub mod tar;
pub mod writer;

#[cfg(test)]
mod tests;
