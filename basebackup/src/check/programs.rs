//! Whether PostgreSQL would call our programs, these very ones, on this repository.

use std::path::PathBuf;

use walkeep_common::config::Config;
use walkeep_common::error::Error;

use super::command::{Command, Surroundings, version};
use super::finding::{Area, Finding};
use crate::session::server::Server;

const AREA: Area = Area::PostgreSQL;
const OURS: &str = env!("CARGO_PKG_VERSION");

/// A setting that has PostgreSQL run a program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    /// Its name, which is the check's too.
    name: &'static str,
    /// Our program for it.
    program: &'static str,
    /// What stands for the file's name and path.
    placeholders: &'static [&'static str],
}

const ARCHIVE: Setting = Setting { name: "archive_command", program: "archive-push", placeholders: &["%p"] };
const RESTORE: Setting = Setting { name: "restore_command", program: "archive-get", placeholders: &["%f", "%p"] };

/// What was found out about a command.
#[derive(Debug)]
struct Facts {
    command: Command,
    /// What PostgreSQL's shell would run.
    located: Option<PathBuf>,
    /// What that calls its version.
    version: Option<String>,
    /// The configuration it would find, where that can be told.
    config: Option<Result<Config, Error>>,
    /// The program beside this one.
    beside: Option<PathBuf>,
}

/// What was found out about the programs.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) findings: Vec<Finding>,
    /// Whether there is a program that could archive.
    pub(super) can_archive: bool,
}

/// Looks at the programs that the server's settings name.
pub(super) async fn judge(
    server: &Server,
    restore_command: &str,
    surroundings: &Surroundings,
    config: &Config,
) -> Programs {
    let (mut findings, mut can_archive) = (Vec::new(), true);
    let settings = &server.settings;
    if server.archives() && !settings.archive_library.is_empty() {
        let text =
            format!("archive_library is \"{}\": PostgreSQL does not run archive_command", settings.archive_library);
        let fix = "ALTER SYSTEM RESET archive_library; SELECT pg_reload_conf();";
        findings.push(Finding::failed(AREA, "archive_library", text, fix));
    } else if server.archives() && !settings.archive_command.is_empty() {
        let facts = Facts::find(ARCHIVE, &settings.archive_command, surroundings).await;
        can_archive = facts.command == Command::Script || facts.located.is_some();
        findings.extend(ARCHIVE.judge(&facts, config));
    }
    if server.in_recovery && restore_command.is_empty() {
        let text = "restore_command is empty: this standby cannot catch up once its primary has removed WAL";
        findings.push(Finding::warning(AREA, RESTORE.name, text, RESTORE.set_to("archive-get", "%f %p")));
    } else if server.in_recovery {
        let facts = Facts::find(RESTORE, restore_command, surroundings).await;
        findings.extend(RESTORE.judge(&facts, config));
    }
    Programs { findings, can_archive }
}

impl Facts {
    async fn find(setting: Setting, text: &str, surroundings: &Surroundings) -> Self {
        let command = Command::parse(text);
        let beside = std::env::current_exe().ok().map(|path| path.with_file_name(setting.program));
        let mut facts =
            Self { command, located: None, version: None, config: None, beside: beside.filter(|path| path.is_file()) };
        let Command::Program { variables, words } = &facts.command else { return facts };
        let Some((program, arguments)) = words.split_first() else { return facts };
        facts.located = surroundings.locate(variables, program);
        if is_called(program, setting.program) {
            if let Some(located) = &facts.located {
                facts.version = version(located, setting.program).await;
            }
            facts.config = surroundings.variables.is_some().then(|| surroundings.configuration(variables, arguments));
        }
        facts
    }
}

impl Setting {
    /// Never repeats a whole command, which may have a password in it.
    fn judge(self, facts: &Facts, config: &Config) -> Vec<Finding> {
        let Self { name, program, .. } = self;
        let beside = facts.beside.as_ref().map_or_else(|| program.to_owned(), |path| path.display().to_string());
        let arguments = self.placeholders.join(" ");
        let fix = self.set_to(&beside, &arguments);
        let Command::Program { variables, words } = &facts.command else {
            let text = format!("{name} is a script: only trying it tells what it does");
            return vec![Finding::note(AREA, name, text)];
        };
        let called = words.first().map_or("", String::as_str);
        let Some(located) = &facts.located else {
            let text = format!("{name} calls \"{called}\", which is not there where PostgreSQL looks for it");
            return vec![Finding::failed(AREA, name, text, fix)];
        };
        if !is_called(called, program) {
            let text = format!("{name} calls \"{}\", not {program}", located.display());
            return vec![Finding::warning(AREA, name, text, fix)];
        }
        let mut findings = Vec::new();
        let missing = self.placeholders.iter().find(|wanted| !words.iter().any(|word| word.contains(*wanted)));
        if let Some(missing) = missing {
            let text = format!("{name} does not say {missing}, which stands for the file");
            findings.push(Finding::failed(AREA, name, text, fix));
        }
        findings.extend(other_version(name, located, facts.version.as_deref()));
        findings.extend(self.other_configuration(facts, config));
        findings.extend(secret(name, variables));
        if findings.is_empty() {
            let text = format!("{name} runs {} {OURS}, the version of this program", located.display());
            findings.push(Finding::passed(AREA, name, text));
        }
        findings
    }

    fn set_to(self, program: &str, arguments: &str) -> String {
        format!("ALTER SYSTEM SET {} = '{program} {arguments}'; SELECT pg_reload_conf();", self.name)
    }

    fn other_configuration(self, facts: &Facts, config: &Config) -> Option<Finding> {
        let name = self.name;
        let hint = "Write the configuration into /etc/walkeep/walkeep.toml, where both look for it, and set no WALKEEP_ variables.";
        match facts.config.as_ref()? {
            Err(error) => {
                let text = format!("{} would fail as PostgreSQL runs it: {error}", self.program);
                Some(Finding::failed(AREA, name, text, error.hint_text().unwrap_or(hint)))
            }
            Ok(theirs) if (&theirs.repository, &theirs.cluster) != (&config.repository, &config.cluster) => {
                let text = format!(
                    "{name} works on cluster \"{}\" in {}, and this check on \"{}\" in {}",
                    theirs.cluster, theirs.repository, config.cluster, config.repository
                );
                Some(Finding::failed(AREA, name, text, hint))
            }
            Ok(_) => None,
        }
    }
}

fn is_called(program: &str, wanted: &str) -> bool {
    program.rsplit('/').next() == Some(wanted)
}

fn other_version(name: &'static str, located: &std::path::Path, version: Option<&str>) -> Option<Finding> {
    let (path, fix) = (located.display(), "Install one version of all three programs.");
    match version {
        Some(OURS) => None,
        Some(version) => {
            let text = format!("{name} runs {path} {version}, and this program is {OURS}");
            Some(Finding::warning(AREA, name, text, fix))
        }
        None => Some(Finding::failed(AREA, name, format!("{name} runs {path}, which does not tell its version"), fix)),
    }
}

/// Any role can `SHOW` the setting.
fn secret(name: &'static str, variables: &[(String, String)]) -> Option<Finding> {
    let is_secret = |variable: &str| ["SECRET", "KEY", "TOKEN", "PASSWORD"].iter().any(|word| variable.contains(word));
    let (variable, _) = variables.iter().find(|(variable, _)| is_secret(variable))?;
    let text = format!("{name} sets {variable}, and every role can read that");
    let fix = "Put credentials into the environment of the server or into the file of the store's own tools, and change these.";
    Some(Finding::failed(AREA, name, text, fix))
}

#[cfg(test)]
mod tests {
    use walkeep_common::config::Flags;
    use walkeep_common::error::Kind;

    use super::super::finding::Outcome;
    use super::*;

    fn config(url: &str) -> Config {
        let flags = Flags { repository: Some(url.to_owned()), config: None, cluster: None };
        Config::resolve(&flags, |_| None).unwrap()
    }

    fn facts(command: &str) -> Facts {
        Facts {
            command: Command::parse(command),
            located: Some("/usr/bin/archive-push".into()),
            version: Some(OURS.to_owned()),
            config: Some(Ok(config("s3://b/p"))),
            beside: Some("/opt/archive-push".into()),
        }
    }

    fn outcome(facts: &Facts) -> (Outcome, String) {
        let findings = ARCHIVE.judge(facts, &config("s3://b/p"));
        assert_eq!(findings.len(), 1, "{findings:?}");
        let finding = &findings[0];
        (finding.outcome, format!("{} | {}", finding.text, finding.fix.as_deref().unwrap_or_default()))
    }

    #[test]
    fn what_postgresql_would_run_is_judged() {
        let command = "archive-push %p";
        for (facts, expected, words) in [
            (facts(command), Outcome::Passed, "archive_command runs /usr/bin/archive-push"),
            (facts("/usr/bin/archive-push --config /x %p"), Outcome::Passed, "/usr/bin/archive-push"),
            (facts("archive-push %p || true"), Outcome::Note, "is a script"),
            (
                Facts { located: None, ..facts(command) },
                Outcome::Failed,
                "| ALTER SYSTEM SET archive_command = '/opt/archive-push %p'; SELECT pg_reload_conf();",
            ),
            (
                Facts { located: Some("/bin/true".into()), ..facts("/bin/true") },
                Outcome::Warning,
                "calls \"/bin/true\"",
            ),
            (facts("archive-push"), Outcome::Failed, "does not say %p"),
            (
                Facts { version: Some("0.0.9".to_owned()), ..facts(command) },
                Outcome::Warning,
                "archive-push 0.0.9, and",
            ),
            (Facts { version: None, ..facts(command) }, Outcome::Failed, "does not tell its version"),
            (Facts { config: Some(Ok(config("s3://other/p"))), ..facts(command) }, Outcome::Failed, "in s3://other/p"),
            (Facts { config: None, ..facts(command) }, Outcome::Passed, ""),
            (
                Facts {
                    config: Some(Err(Error::new(Kind::Usage, "no repository").hint("Add one."))),
                    ..facts(command)
                },
                Outcome::Failed,
                "no repository | Add one.",
            ),
            (facts("AWS_SECRET_ACCESS_KEY=hunter2 archive-push %p"), Outcome::Failed, "sets AWS_SECRET_ACCESS_KEY"),
        ] {
            let (outcome, text) = outcome(&facts);
            assert_eq!(outcome, expected, "{text}");
            assert!(text.contains(words) && !text.contains("hunter2"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_library_stands_in_the_way_of_the_command() {
        let mut server = super::super::settings::tests::server();
        server.settings.archive_library = "basic_archive".to_owned();
        let surroundings = Surroundings { data_directory: "/nonexistent".into(), variables: None };
        let programs = judge(&server, "", &surroundings, &config("s3://b/p")).await;
        assert!(programs.findings[0].check == "archive_library" && programs.findings[0].outcome == Outcome::Failed);
        server.in_recovery = true;
        assert_eq!(judge(&server, "", &surroundings, &config("s3://b/p")).await.findings[0].check, "restore_command");
    }
}
