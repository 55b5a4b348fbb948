//! What the programs are made of: the crates that are linked into them, as a bill of materials, and their licences.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::json;

const PROGRAMS: [&str; 3] = ["archive-push", "archive-get", "basebackup"];

/// What `cargo metadata` says, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Clone, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    license_file: Option<PathBuf>,
    /// None for our own.
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    /// None for one that is linked; else `dev` or `build`.
    kind: Option<String>,
}

/// Cargo.lock: the checksums of the crates.
#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The crates that are linked into the programs, each with those it depends on.
#[derive(Debug)]
pub(crate) struct Linked {
    crates: Vec<(Package, Vec<String>)>,
    checksums: HashMap<(String, String), String>,
}

impl Linked {
    /// Asks cargo; what is not linked (tests, build scripts, other systems) is left out.
    pub(crate) fn read(workspace: &Path) -> Result<Self, Box<dyn Error>> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .current_dir(workspace)
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform"])
            .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
            .output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
        let lock: Lock = toml::from_str(&fs::read_to_string(workspace.join("Cargo.lock"))?)?;
        let checksums = lock.package.into_iter();
        Ok(Self {
            crates: linked(&metadata),
            checksums: checksums.filter_map(|locked| Some(((locked.name, locked.version), locked.checksum?))).collect(),
        })
    }

    /// CycloneDX 1.5, with no time and no serial number in it: the same sources give the same bytes.
    pub(crate) fn bill_of_materials(&self) -> Result<String, Box<dyn Error>> {
        let components = self.crates.iter().map(|(package, _)| {
            let mut component = json!({
                "type": if PROGRAMS.contains(&package.name.as_str()) { "application" } else { "library" },
                "bom-ref": reference(package),
                "name": package.name,
                "version": package.version,
                "purl": reference(package),
            });
            if let Some(license) = &package.license {
                component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
            }
            if let Some(checksum) = self.checksums.get(&(package.name.clone(), package.version.clone())) {
                component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
            }
            component
        });
        let dependencies =
            self.crates.iter().map(|(package, on)| json!({ "ref": reference(package), "dependsOn": on }));
        let bill = json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": {
                "type": "application",
                "name": "walkeep",
                "version": env!("CARGO_PKG_VERSION"),
                "licenses": [{ "expression": env!("CARGO_PKG_LICENSE") }],
            } },
            "components": components.collect::<Vec<_>>(),
            "dependencies": dependencies.collect::<Vec<_>>(),
        });
        Ok(serde_json::to_string_pretty(&bill)? + "\n")
    }

    /// The texts of all licences, each once, below the crates that come with it.
    pub(crate) fn licenses(&self) -> Result<String, Box<dyn Error>> {
        let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut names = Vec::new();
        for (package, _) in self.crates.iter().filter(|(package, _)| package.source.is_some()) {
            let name = format!("{} {}", package.name, package.version);
            for file in license_files(package)? {
                let text = String::from_utf8_lossy(&fs::read(file)?).replace("\r\n", "\n");
                let _ = texts.entry(text.trim().to_owned()).or_default().insert(name.clone());
            }
            names.push(format!("{name}: {}", package.license.as_deref().unwrap_or("see below")));
        }
        let mut out = "The programs of Walkeep are linked with these crates:\n\n".to_owned();
        let _ = writeln!(out, "{}\n\nTheir licences and notices:", names.join("\n"));
        let mut texts: Vec<_> = texts.into_iter().collect();
        texts.sort_by(|a, b| a.1.cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
        for (text, crates) in texts {
            let crates = crates.into_iter().collect::<Vec<_>>().join(", ");
            let _ = write!(out, "\n{}\n{crates}\n\n{text}\n", "-".repeat(100));
        }
        Ok(out)
    }
}

/// What can be reached from the programs through what is linked, sorted by name and version.
fn linked(metadata: &Metadata) -> Vec<(Package, Vec<String>)> {
    let packages: HashMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let nodes: HashMap<&str, &Node> = metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let own = |package: &&Package| package.source.is_none() && PROGRAMS.contains(&package.name.as_str());
    let mut waiting: Vec<&str> = metadata.packages.iter().filter(own).map(|package| package.id.as_str()).collect();
    let mut found: BTreeMap<(&str, &str), (Package, Vec<String>)> = BTreeMap::new();
    while let Some(id) = waiting.pop() {
        let (Some(&package), Some(node)) = (packages.get(id), nodes.get(id)) else { continue };
        if found.contains_key(&(package.name.as_str(), package.version.as_str())) {
            continue;
        }
        let is_linked = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
        let on: Vec<&str> = node.deps.iter().filter(is_linked).map(|dependency| dependency.pkg.as_str()).collect();
        let mut references: Vec<_> = on.iter().filter_map(|id| packages.get(id)).map(|on| reference(on)).collect();
        references.sort();
        references.dedup();
        let _ = found.insert((&package.name, &package.version), (package.clone(), references));
        waiting.extend(on);
    }
    found.into_values().collect()
}

/// A crate's name in the language of bills of materials.
fn reference(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

/// The files of a crate that say under what terms it comes.
fn license_files(package: &Package) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    const BEGINNINGS: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
    let directory = package.manifest_path.parent().ok_or("a manifest without a directory")?;
    let mut files: BTreeSet<PathBuf> = package.license_file.iter().map(|file| directory.join(file)).collect();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if entry.file_type()?.is_file() && BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) {
            let _ = files.insert(entry.path());
        }
    }
    Ok(files.into_iter().collect())
}
