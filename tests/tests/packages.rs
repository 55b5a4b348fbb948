//! The packages: what distributions ask of them, and what happens to a host that installs, upgrades and purges one.
//!
//! They are made of the programs as the tests have them; what is tested is content and scripts. A clean Debian needs root's
//! rights, by sudo where that asks for no password; without them those tests say so and end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walkeep_tests::run::{Run, tool};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::{binaries, user};

use crate::site::Shared;

/// Both packages, and those before these.
struct Packages(Scratch);

static PACKAGES: Shared<Packages> = Shared::new();

impl Packages {
    fn build() -> Self {
        let scratch = Scratch::new("packages");
        for revision in ["1", "2"] {
            let build = Run::new(packaging("build-packages.sh")).arg(binaries::built()).arg(scratch.path());
            // Packing well takes longer than anything else here.
            let build = build.arg(revision).env("DPKG_DEB_COMPRESSOR_TYPE", "gzip").envs(&own_environment());
            build.as_caller().timeout(Duration::from_secs(600)).finish().expect_code(0);
        }
        Self(scratch)
    }

    fn deb(&self, revision: u32) -> PathBuf {
        self.find(&format!("-{revision}_{}.deb", tool("dpkg", ["--print-architecture"])))
    }

    fn rpm(&self, revision: u32) -> PathBuf {
        self.find(&format!("-{revision}.{}.rpm", std::env::consts::ARCH))
    }

    fn find(&self, end: &str) -> PathBuf {
        let mut paths = self.0.path().read_dir().unwrap().map(|entry| entry.unwrap().path());
        paths.find(|path| path.to_str().unwrap().ends_with(end)).unwrap_or_else(|| panic!("no package ends in {end}"))
    }

    /// The files of the .deb.
    fn unpacked(&self) -> Scratch {
        let content = Scratch::new("package-content");
        Run::new("dpkg-deb").arg("-x").arg(self.deb(2)).arg(content.path()).as_caller().finish().expect_code(0);
        content
    }
}

fn packaging(name: &str) -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name)).unwrap()
}

/// What cargo and git need to be what they are to whoever runs the tests.
fn own_environment() -> Vec<(String, String)> {
    let names = ["PATH", "HOME", "USER", "CARGO", "CARGO_HOME", "RUSTUP_HOME", "WALKEEP_TEST_TOOLS", "XDG_CACHE_HOME"];
    names.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect()
}

/// What to put before a command to run it as root; nothing where that cannot be.
fn as_root() -> Option<Vec<&'static str>> {
    if user::is_root() {
        return Some(Vec::new());
    }
    let asked = Run::new("sh").args(["-c", "sudo -n true"]).finish();
    asked.status.success().then(|| vec!["sudo", "-n", "--preserve-env=WALKEEP_TEST_TOOLS"])
}

#[test]
fn lintian_has_nothing_to_say_that_is_not_answered() {
    let packages = PACKAGES.get(Packages::build);
    let said = Run::new("lintian").args(["--fail-on", "error,warning"]).arg(packages.deb(2)).finish();
    assert!(said.code() == 0 && said.stdout.is_empty(), "{said}");
}

#[test]
fn rpmlint_has_nothing_to_say_that_is_not_answered() {
    let packages = PACKAGES.get(Packages::build);
    let said = Run::new("rpmlint").arg("--config").arg(packaging("rpm/rpmlint.toml")).arg(packages.rpm(2)).finish();
    assert!(said.code() == 0 && said.stdout.contains("0 errors, 0 warnings"), "{said}");
}

#[test]
fn both_packages_carry_the_same_programs_and_they_run() {
    let packages = PACKAGES.get(Packages::build);
    let content = packages.unpacked();
    let of_rpm = Scratch::new("package-rpm");
    let unpack = r#"rpm2cpio "$1" | (cd "$2" && cpio --quiet -idm)"#;
    Run::new("sh").args(["-ec", unpack, "sh"]).arg(packages.rpm(2)).arg(of_rpm.path()).finish().expect_code(0);
    for program in ["archive-push", "archive-get", "basebackup"] {
        let programs = [content.path(), of_rpm.path()].map(|root| root.join("usr/bin").join(program));
        assert_eq!(fs::read(&programs[0]).unwrap(), fs::read(&programs[1]).unwrap(), "{program}");
        let expected = format!("{program} {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(tool(&programs[1], ["--version"]), expected);
    }
}

#[test]
fn mandoc_has_nothing_to_say_of_the_manual_pages() {
    let content = PACKAGES.get(Packages::build).unpacked();
    let mut pages = 0;
    for section in content.path().join("usr/share/man").read_dir().unwrap() {
        for page in section.unwrap().path().read_dir().unwrap() {
            let page = page.unwrap().path();
            let said = Run::new("mandoc").args(["-T", "lint"]).arg(&page).finish();
            assert!(said.code() == 0 && said.stdout.is_empty() && said.stderr.is_empty(), "{said}");
            pages += 1;
        }
    }
    assert!(pages > 10, "only {pages} manual pages");
}

/// A page for each command, completions for each shell.
#[test]
fn every_command_has_a_manual_page_and_is_completed() {
    let content = PACKAGES.get(Packages::build).unpacked();
    let share = content.path().join("usr/share");
    let help = tool(binaries::basebackup(), ["--help"]);
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<_> =
        names.map(|line| line.split_whitespace().next().unwrap()).filter(|name| *name != "help").collect();
    assert!(names.len() >= 6, "{names:?}");
    let shells = ["bash-completion/completions/basebackup", "zsh/vendor-completions/_basebackup"];
    let shells = shells.into_iter().chain(["fish/vendor_completions.d/basebackup.fish"]);
    let completions: Vec<_> = shells.map(|path| fs::read_to_string(share.join(path)).unwrap()).collect();
    for name in names {
        assert!(share.join(format!("man/man1/basebackup-{name}.1.gz")).is_file(), "{name} has no manual page");
        assert!(completions.iter().all(|completion| completion.contains(name)), "{name} is not completed");
    }
}

#[test]
fn links_in_the_installed_documents_lead_to_what_is_installed() {
    let content = PACKAGES.get(Packages::build).unpacked();
    let directory = content.path().join("usr/share/doc/walkeep");
    let guides = fs::read_dir(directory.join("guides")).unwrap().map(|entry| entry.unwrap().path());
    let mut followed = 0;
    for document in guides.chain([directory.join("README.md"), directory.join("FORMAT.md")]) {
        let text = fs::read_to_string(&document).unwrap();
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.starts_with("http")) {
            let path = link.split('#').next().unwrap();
            let target = document.parent().unwrap().join(path);
            assert!(path.is_empty() || target.exists(), "\"{link}\" in {}", document.display());
            followed += 1;
        }
    }
    assert!(followed > 20, "only {followed} links were found");
}

#[test]
fn the_configuration_that_is_installed_sets_nothing_and_names_every_setting() {
    let file = fs::read_to_string(packaging("walkeep.toml")).unwrap();
    assert!(file.lines().all(|line| line.is_empty() || line.starts_with('#')), "something is set");
    let settings: Vec<_> = file.lines().filter_map(|line| line.strip_prefix('#')?.split_once(" = ")).collect();
    let settings: Vec<_> = settings.into_iter().map(|(name, _)| name).filter(|name| !name.starts_with(' ')).collect();

    let readme = fs::read_to_string(packaging("../README.md")).unwrap();
    let table = readme.split("\n## Configuration\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let documented: Vec<_> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let missing: Vec<_> = documented.iter().filter(|name| !settings.contains(name)).collect();
    assert!(missing.is_empty() && settings.len() >= documented.len(), "not in walkeep.toml: {missing:?}");

    // With every "#" before a setting away, all are accepted.
    let scratch = Scratch::new("package-settings");
    let repository = scratch.create_private("repository");
    let set = file.replace("s3://bucket/prefix\"", &format!("file://{}\"", repository.display()));
    let set: Vec<_> =
        set.lines().map(|line| if line.starts_with("# ") { line } else { line.trim_start_matches('#') }).collect();
    let set = scratch.write("walkeep.toml", set.join("\n"));
    let listed = Run::new(binaries::basebackup()).args(["list", "--config"]).arg(&set).finish();
    assert!(!listed.stderr.contains("walkeep.toml"), "{listed}");
}

/// Whether an SPDX expression can be satisfied with these licences alone.
fn is_satisfied(expression: &str, allowed: &[&str]) -> bool {
    /// Takes what is between two operators, and what comes behind it.
    fn any<'w>(words: &'w [&'w str], allowed: &[&str]) -> (bool, &'w [&'w str]) {
        let (mut satisfied, mut rest) = all(words, allowed);
        while let ["OR", behind @ ..] = rest {
            let (right, after) = all(behind, allowed);
            (satisfied, rest) = (satisfied || right, after);
        }
        (satisfied, rest)
    }
    fn all<'w>(words: &'w [&'w str], allowed: &[&str]) -> (bool, &'w [&'w str]) {
        let (mut satisfied, mut rest) = one(words, allowed);
        while let ["AND", behind @ ..] = rest {
            let (right, after) = one(behind, allowed);
            (satisfied, rest) = (satisfied && right, after);
        }
        (satisfied, rest)
    }
    fn one<'w>(words: &'w [&'w str], allowed: &[&str]) -> (bool, &'w [&'w str]) {
        match words {
            ["(", inside @ ..] => {
                let (satisfied, rest) = any(inside, allowed);
                (satisfied, rest.strip_prefix(&[")"]).unwrap_or_default())
            }
            [license, "WITH", exception, rest @ ..] => {
                (allowed.contains(&format!("{license} WITH {exception}").as_str()), rest)
            }
            [license, rest @ ..] => (allowed.contains(license), rest),
            [] => (false, &[]),
        }
    }
    let spaced = expression.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let (satisfied, rest) = any(&words, allowed);
    satisfied && rest.is_empty()
}

#[test]
fn an_expression_of_licences_is_read_as_spdx_means_it() {
    let allowed = ["MIT", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"];
    for good in ["MIT", "GPL-2.0 OR MIT", "(MIT OR X) AND Unicode-3.0", "Apache-2.0 WITH LLVM-exception OR X"] {
        assert!(is_satisfied(good, &allowed), "{good}");
    }
    for bad in ["X", "MIT AND X", "(MIT OR X) AND Y", "Apache-2.0", "", "MIT X"] {
        assert!(!is_satisfied(bad, &allowed), "{bad}");
    }
}

/// What cargo-deny looks at as well, where it is installed.
#[test]
fn everything_linked_in_is_under_a_licence_that_is_allowed_and_nothing_is_banned() {
    let content = PACKAGES.get(Packages::build).unpacked();
    let bill = fs::read(content.path().join("usr/share/doc/walkeep/walkeep.cdx.json")).unwrap();
    let bill: serde_json::Value = serde_json::from_slice(&bill).unwrap();
    let rules: toml::Table = toml::from_str(&fs::read_to_string(packaging("../deny.toml")).unwrap()).unwrap();
    let allowed: Vec<_> =
        rules["licenses"]["allow"].as_array().unwrap().iter().map(|license| license.as_str().unwrap()).collect();
    let banned: Vec<_> =
        rules["bans"]["deny"].as_array().unwrap().iter().map(|ban| ban["crate"].as_str().unwrap()).collect();
    let components = bill["components"].as_array().unwrap();
    assert!(components.len() > 100, "only {} crates", components.len());
    for component in components {
        let name = component["name"].as_str().unwrap();
        assert!(!banned.contains(&name), "{name} is banned");
        let expression = component["licenses"][0]["expression"].as_str().unwrap_or("none");
        assert!(is_satisfied(expression, &allowed), "{name} is under {expression}");
    }
}

#[test]
fn a_host_without_systemd_installs_archives_upgrades_and_purges_and_keeps_its_repository() {
    try_out("test-deb.sh", |packages| vec!["bookworm".into(), packages.deb(1), packages.deb(2)]);
}

#[test]
fn a_host_with_systemd_installs_archives_upgrades_and_purges_and_keeps_its_repository() {
    try_out("test-deb.sh", |packages| vec!["trixie".into(), packages.deb(1), packages.deb(2)]);
}

#[test]
fn a_host_of_rpm_s_installs_archives_upgrades_and_erases_and_keeps_its_repository() {
    try_out("test-rpm.sh", |packages| vec![packages.rpm(1), packages.rpm(2)]);
}

#[expect(clippy::print_stderr, reason = "a test that does nothing says so")]
fn try_out(script: &str, arguments: impl FnOnce(&Packages) -> Vec<PathBuf>) {
    let Some(as_root) = as_root() else {
        eprintln!("skipped: a clean Debian needs root, or sudo without a password");
        return;
    };
    let packages = PACKAGES.get(Packages::build);
    let trial = Run::new(packaging(script)).args(arguments(&packages));
    let trial = trial.under(as_root).envs(&own_environment()).as_caller().timeout(Duration::from_secs(900)).finish();
    assert!(trial.code() == 0 && trial.stdout.ends_with("passed\n"), "{trial}");
}
