//! Manual pages and completions of the programs, from the definitions that parse their command lines.

use std::error::Error;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::roff;

const SEE_ALSO: &str = "\
.BR archive\\-push (1),
.BR archive\\-get (1),
.BR basebackup (1),
.BR walkeep.toml (5),
.BR walkeep\\-repository (7)
";

fn programs() -> [Command; 3] {
    [archive_push::args::Args::command(), archive_get::args::Args::command(), basebackup::args::Cli::command()]
}

/// The pages of section 1, by path: one for each program and each of its commands.
pub(crate) fn pages(date: &str) -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for mut program in programs() {
        program = program.disable_help_subcommand(true);
        program.build();
        let commands = program.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
        pages.extend(commands.map(|command| page(command, date)));
        pages.push(page(program, date));
    }
    pages
}

fn page(command: Command, date: &str) -> (String, String) {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let has_commands = command.has_subcommands();
    let epilogue = command.get_after_help().map(ToString::to_string);
    let man = Man::new(command).title(name.to_uppercase()).date(date).source(roff::source()).manual("Walkeep");
    let mut text = Vec::new();
    // Writing into memory does not fail.
    let _ = man.render_title(&mut text);
    let _ = man.render_name_section(&mut text);
    let _ = man.render_synopsis_section(&mut text);
    let _ = man.render_description_section(&mut text);
    let _ = man.render_options_section(&mut text);
    if has_commands {
        let _ = man.render_subcommands_section(&mut text);
    }
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if let Some(epilogue) = epilogue {
        text.push_str(&paragraphs(&epilogue));
    }
    text.push_str(".SH SEE ALSO\n");
    text.push_str(SEE_ALSO);
    (roff::path(&name, 1), roff::refilled(&text))
}

/// The paragraphs below the help: each has a heading and lines that stand as they are.
fn paragraphs(epilogue: &str) -> String {
    let section = |paragraph: &str| {
        let (heading, rest) =
            paragraph.split_once(":\n").or_else(|| paragraph.split_once(": ")).unwrap_or(("Notes", paragraph));
        format!(".SH {}\n{}", roff::escaped(&heading.to_uppercase()), roff::verbatim(rest))
    };
    epilogue.split("\n\n").map(section).collect()
}

/// The completions, by path.
pub(crate) fn completions() -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let mut files = Vec::new();
    for mut program in programs() {
        let name = program.get_name().to_owned();
        for (shell, path) in [
            (Shell::Bash, format!("bash/{name}")),
            (Shell::Zsh, format!("zsh/_{name}")),
            (Shell::Fish, format!("fish/{name}.fish")),
        ] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut program, &name, &mut text);
            files.push((format!("completions/{path}"), String::from_utf8(text)?));
        }
    }
    Ok(files)
}
