//! `basebackup take`.

mod packs;
