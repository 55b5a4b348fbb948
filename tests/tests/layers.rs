//! Dependencies point one way: this is read from the sources, so that nobody has to remember it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The Rust files below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// A source file without its comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The modules in the numbered list of the library's documentation, lowest first.
fn documented_order(library: &str) -> Vec<String> {
    let numbered = |line: &str| line.starts_with("//! ") && line[4..].starts_with(|c: char| c.is_ascii_digit());
    let lines = library.lines().filter(|line| numbered(line));
    let names = lines.flat_map(|line| line.split("[`").skip(1)).map(|rest| rest.split("`]").next().unwrap());
    names.map(str::to_owned).collect()
}

/// The modules of the crate that code names: after `crate::`, and in `use crate::{…}`.
fn used_modules(code: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut used = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            used.push(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                c if depth == 0 && start && c.is_alphanumeric() => {
                    used.push(word(&list[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    used
}

#[test]
fn modules_of_the_library_only_use_what_is_below_them() {
    let source = workspace().join("common/src");
    let library = fs::read_to_string(source.join("lib.rs")).unwrap();
    let order = documented_order(&library);
    let mut declared: Vec<_> =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mut documented: Vec<_> = order.iter().map(String::as_str).collect();
    declared.sort_unstable();
    documented.sort_unstable();
    assert_eq!(declared, documented, "every module has its place in the list at the top of lib.rs");

    let mut seen = 0;
    for (layer, module) in order.iter().enumerate() {
        let (file, directory) = (source.join(format!("{module}.rs")), source.join(module));
        let files = if file.exists() { vec![file] } else { sources(&directory) };
        for file in files {
            for used in used_modules(&code(&file)) {
                let allowed = order[..=layer].contains(&used);
                assert!(allowed, "{} uses {used}, which is not below {module}", file.display());
                seen += usize::from(used != *module);
            }
        }
    }
    assert!(seen > 50, "only {seen} uses were found: the search is broken");
}

#[test]
fn the_search_finds_every_way_of_naming_a_module() {
    let code = "use crate::error::Error;\nuse crate::{lsn::Lsn, wal::{name::Name, segment},\n store};\n\
                let x = crate::retry::retry();";
    assert_eq!(used_modules(code), ["error", "lsn", "wal", "store", "retry"]);
}

/// The names a manifest lists as dependencies of the program or library itself; its tests may need more.
fn dependencies(package: &str) -> Vec<String> {
    let manifest = fs::read_to_string(workspace().join(package).join("Cargo.toml")).unwrap();
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if let Some(name) = line.split(['.', ' ', '=']).next().filter(|name| inside && !name.is_empty()) {
            names.push(name.to_owned());
        }
    }
    names
}

#[test]
fn programs_depend_on_the_library_and_never_on_each_other() {
    let programs = ["archive-push", "archive-get", "basebackup"];
    for program in programs {
        let dependencies = dependencies(program);
        assert!(dependencies.contains(&"walkeep-common".to_owned()), "{program}: {dependencies:?}");
        for other in programs.iter().chain(&["walkeep-tests"]) {
            assert!(!dependencies.contains(&(*other).to_owned()), "{program} depends on {other}");
        }
    }
    let common = dependencies("common");
    assert!(!common.is_empty() && common.iter().all(|name| !programs.contains(&name.as_str())), "{common:?}");
}

/// Crates that may be replaced one day are named in one place each.
#[test]
fn a_replaceable_crate_is_named_in_one_module_only() {
    let only_in: BTreeMap<&str, &str> = BTreeMap::from([("backoff", "common/src/retry.rs")]);
    for (crate_name, place) in only_in {
        for package in ["common", "archive-push", "archive-get", "basebackup"] {
            for file in sources(&workspace().join(package).join("src")) {
                let names_it = code(&file).contains(&format!("{crate_name}::"));
                assert_eq!(names_it, file == workspace().join(place), "{crate_name} in {}", file.display());
            }
        }
    }
}
