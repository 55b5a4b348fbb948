//! `archive_command` and `restore_command`: which program PostgreSQL would really run, and with which configuration.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use walkeep_common::config::{Config, Flags};
use walkeep_common::postgres::postmaster::PostmasterPid;

/// The words of a command as the shell would see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// One program, called straight away.
    Program {
        /// Variables set for it alone.
        variables: Vec<(String, String)>,
        /// The program and its arguments.
        words: Vec<String>,
    },
    /// More than that: pipes, conditions, expansions. Only trying tells what it does.
    Script,
}

impl Command {
    /// Takes a command apart as `sh` does, as far as it is a call of one program.
    pub(super) fn parse(text: &str) -> Self {
        let Some(mut words) = words(text) else { return Self::Script };
        let is_assignment = |word: &String| {
            let name = word.split('=').next().unwrap_or_default();
            word.contains('=') && !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let count = words.iter().take_while(|word| is_assignment(word)).count();
        let rest = words.split_off(count);
        let variables = words.iter().filter_map(|word| word.split_once('='));
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        if rest.is_empty() { Self::Script } else { Self::Program { variables, words: rest } }
    }
}

/// Nothing where the shell would do more than to call a program.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => word.get_or_insert_default().push(characters.next()?),
            (_, '$' | '`') => return None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                let _ = word.get_or_insert_default();
                quote = Some(c);
            }
            (None, '|' | '&' | ';' | '<' | '>' | '(' | ')' | '\n' | '*' | '?' | '[' | '#' | '~' | '{' | '!') => {
                return None;
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// Where the shell looks when there is no PATH, as Debian starts PostgreSQL (dash, src/var.c; bash has the same).
const SHELLS_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where and with which variables PostgreSQL runs a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// Its working directory.
    pub(super) data_directory: PathBuf,
    /// Its environment; none where this user may not see it.
    pub(super) variables: Option<HashMap<String, String>>,
}

impl Surroundings {
    /// Those of the server that runs on this data directory.
    pub(super) fn of_server(data_directory: &Path) -> Self {
        let environment = PostmasterPid::read(data_directory)
            .and_then(|postmaster| std::fs::read(format!("/proc/{}/environ", postmaster.pid)).ok());
        Self {
            data_directory: data_directory.to_owned(),
            variables: environment.map(|bytes| variables(&String::from_utf8_lossy(&bytes))),
        }
    }

    /// A variable as a command with these assignments sees it.
    fn variable(&self, assigned: &[(String, String)], name: &str) -> Option<String> {
        let assigned = assigned.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        assigned.or_else(|| match &self.variables {
            Some(variables) => variables.get(name).cloned(),
            None => std::env::var(name).ok(),
        })
    }

    /// The file the shell would run for this word, if there is one.
    pub(super) fn locate(&self, assigned: &[(String, String)], program: &str) -> Option<PathBuf> {
        let is_program =
            |path: &PathBuf| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
        if program.contains('/') {
            return Some(self.data_directory.join(program)).filter(is_program);
        }
        let path = self.variable(assigned, "PATH").unwrap_or_else(|| SHELLS_PATH.to_owned());
        let candidates =
            std::env::split_paths(&path).map(|directory| self.data_directory.join(directory).join(program));
        candidates.into_iter().find(is_program)
    }

    /// The configuration the program would find.
    ///
    /// # Errors
    /// As [`Config::resolve`].
    pub(super) fn configuration(
        &self,
        assigned: &[(String, String)],
        arguments: &[String],
    ) -> walkeep_common::error::Result<Config> {
        let mut config = flags(arguments);
        // A relative path is one below the data directory.
        config.config = config.config.map(|path| self.data_directory.join(path));
        Config::resolve(&config, |name| self.variable(assigned, name))
    }
}

fn variables(environment: &str) -> HashMap<String, String> {
    let pairs = environment.split('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The options both programs share.
fn flags(arguments: &[String]) -> Flags {
    let value = |option: &str| {
        let at = arguments.iter().position(|word| word == option);
        let separate = at.and_then(|at| arguments.get(at + 1)).cloned();
        let joined = arguments.iter().find_map(|word| word.strip_prefix(option)?.strip_prefix('=')).map(str::to_owned);
        separate.or(joined)
    };
    Flags {
        config: value("--config").map(PathBuf::from),
        repository: value("--repository"),
        cluster: value("--cluster"),
    }
}

/// What a program of ours calls its version, if it is one.
pub(super) async fn version(program: &Path, name: &str) -> Option<String> {
    let mut command = std::process::Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(std::time::Duration::from_secs(5), output).await.ok()?.ok()?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.trim().strip_prefix(name)?.strip_prefix(' ').map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(words: &[&str]) -> Command {
        Command::Program { variables: Vec::new(), words: words.iter().map(|&word| word.to_owned()).collect() }
    }

    #[test]
    fn the_call_of_one_program_is_understood_and_nothing_more() {
        for (text, expected) in [
            ("archive-push %p", program(&["archive-push", "%p"])),
            (" archive-push  \"%p\" ", program(&["archive-push", "%p"])),
            ("'/opt/my programs/archive-push' %p", program(&["/opt/my programs/archive-push", "%p"])),
            ("/opt/my\\ programs/archive-push ''", program(&["/opt/my programs/archive-push", ""])),
            ("archive-push --config=/x %p", program(&["archive-push", "--config=/x", "%p"])),
            (
                "A=1 B_2='x y' archive-push %p",
                Command::Program {
                    variables: vec![("A".to_owned(), "1".to_owned()), ("B_2".to_owned(), "x y".to_owned())],
                    words: vec!["archive-push".to_owned(), "%p".to_owned()],
                },
            ),
            ("test ! -f x && archive-push %p", Command::Script),
            ("archive-push %p; true", Command::Script),
            ("archive-push $HOME/x", Command::Script),
            ("archive-push \"$X\"", Command::Script),
            ("archive-push `pwd`", Command::Script),
            ("archive-push 'unclosed", Command::Script),
            ("A=1", Command::Script),
            ("", Command::Script),
        ] {
            assert_eq!(Command::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_program_is_found_as_the_shell_finds_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bin/archive-push");
        std::fs::create_dir(directory.path().join("bin")).unwrap();
        std::fs::write(&path, "").unwrap();
        let surroundings = |path: &str| Surroundings {
            data_directory: directory.path().to_owned(),
            variables: Some([("PATH".to_owned(), path.to_owned())].into()),
        };
        let bin = directory.path().join("bin").display().to_string();
        assert_eq!(surroundings(&bin).locate(&[], "archive-push"), None, "it is not executable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = Some(path.clone());
        assert_eq!(surroundings(&bin).locate(&[], "archive-push"), found);
        assert_eq!(surroundings("/usr/bin").locate(&[], "archive-push"), None);
        assert_eq!(surroundings("/usr/bin").locate(&[("PATH".to_owned(), bin)], "archive-push"), found);
        assert_eq!(surroundings("").locate(&[], "bin/archive-push"), found);
        assert_eq!(surroundings("").locate(&[], path.to_str().unwrap()), found);
        let debian = Surroundings { data_directory: directory.path().to_owned(), variables: Some(HashMap::new()) };
        assert!(debian.locate(&[], "sh").is_some(), "without a PATH the shell has its own");
    }

    #[test]
    fn the_configuration_is_what_the_archiver_would_find() {
        let surroundings = Surroundings {
            data_directory: "/nonexistent".into(),
            variables: Some([("WALKEEP_REPOSITORY".to_owned(), "s3://b/of-environment".to_owned())].into()),
        };
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let repository = |assigned: &[(String, String)], arguments: &[&str]| {
            surroundings.configuration(assigned, &words(arguments)).unwrap().repository.to_string()
        };
        assert_eq!(repository(&[], &["%p"]), "s3://b/of-environment");
        let assigned = [("WALKEEP_REPOSITORY".to_owned(), "s3://b/assigned".to_owned())];
        assert_eq!(repository(&assigned, &["%p"]), "s3://b/assigned");
        for arguments in [&["--repository", "s3://b/flag", "%p"][..], &["--repository=s3://b/flag", "%p"]] {
            assert_eq!(repository(&assigned, arguments), "s3://b/flag");
        }
        assert!(surroundings.configuration(&[], &words(&["--config", "gone.toml"])).is_err());
    }
}
