//! The command line of `archive-push`, where its manual page and completions are made from it. The program is `main.rs`.

pub mod args;
