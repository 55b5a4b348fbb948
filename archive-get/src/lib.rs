//! The command line of `archive-get`, where its manual page and completions are made from it. The program is `main.rs`.

pub mod args;
