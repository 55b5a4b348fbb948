//! Connection service files.
//!
//! Mirrors `parseServiceInfo` and `parseServiceFile` (src/interfaces/libpq/fe-connect.c).

use std::path::{Path, PathBuf};

use walkeep_common::error::{Error, IoContext as _, Kind, Result};

use super::environment::Environment;

/// One setting of a service.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServiceSetting {
    pub(super) keyword: String,
    pub(super) value: String,
    pub(super) line: usize,
}

/// The settings of a service and the file they are in.
pub(super) fn read(service: &str, environment: &Environment) -> Result<(PathBuf, Vec<ServiceSetting>)> {
    for (path, must_exist) in files(environment) {
        if !must_exist && !path.exists() {
            continue;
        }
        let text = std::fs::read(&path).context("read service file", &path)?;
        if let Some(settings) = parse(&String::from_utf8_lossy(&text), service, &path)? {
            return Ok((path, settings));
        }
    }
    Err(Error::new(Kind::Usage, format!("definition of service \"{service}\" not found"))
        .hint("Define it in ~/.pg_service.conf, or name the file in PGSERVICEFILE."))
}

/// The user's file, then the system's. A file that the environment names must be there.
fn files(environment: &Environment) -> Vec<(PathBuf, bool)> {
    let user = match environment.variable("PGSERVICEFILE") {
        Some(path) => Some((PathBuf::from(path), true)),
        None => environment.home.as_ref().map(|home| (home.join(".pg_service.conf"), false)),
    };
    let system = match environment.variable("PGSYSCONFDIR") {
        Some(directory) => vec![directory],
        // Where Debian's and the PGDG's libpq look when nothing is said.
        None => vec!["/etc/postgresql-common", "/etc/sysconfig/pgsql"],
    };
    let system = system.into_iter().map(|directory| (Path::new(directory).join("pg_service.conf"), false));
    user.into_iter().chain(system).collect()
}

fn parse(text: &str, service: &str, path: &Path) -> Result<Option<Vec<ServiceSetting>>> {
    let mut found: Option<Vec<ServiceSetting>> = None;
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line.trim_ascii())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            found = (name.strip_suffix(']') == Some(service)).then(Vec::new);
            continue;
        }
        let Some(settings) = &mut found else { continue };
        let at = |what: &str| {
            Error::new(Kind::Usage, format!("{what} in service file \"{}\", line {number}", path.display()))
        };
        if line.starts_with("ldap") {
            return Err(at("LDAP look-up is not supported").hint("Write the service's parameters into the file."));
        }
        let (keyword, value) = line.split_once('=').ok_or_else(|| at("syntax error"))?;
        if keyword == "service" || keyword == "servicefile" {
            return Err(at("nested service specifications are not supported"));
        }
        settings.push(ServiceSetting { keyword: keyword.to_owned(), value: value.to_owned(), line: number });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "# comment\n[other]\nhost=elsewhere\n\n[main]\n  host=/tmp  \nport=5433\n#user=x\nuser=a=b\n[more]\nport=1\n";

    #[test]
    fn only_the_settings_of_the_service_are_read() {
        let settings = parse(FILE, "main", Path::new("f")).unwrap().unwrap();
        let settings: Vec<_> = settings.iter().map(|s| (s.keyword.as_str(), s.value.as_str(), s.line)).collect();
        assert_eq!(settings, [("host", "/tmp", 6), ("port", "5433", 7), ("user", "a=b", 9)]);
        assert_eq!(parse(FILE, "mai", Path::new("f")).unwrap(), None);
    }

    #[test]
    fn mistakes_name_file_and_line() {
        for line in ["host", "service=other", "ldap://directory"] {
            let error = parse(&format!("[s]\n{line}\n"), "s", Path::new("/etc/f")).unwrap_err();
            assert!(error.to_string().contains("\"/etc/f\", line 2"), "{error}");
        }
    }

    #[test]
    fn the_users_file_comes_before_the_systems() {
        let directory = tempfile::tempdir().unwrap();
        let (home, system) = (directory.path().join("home"), directory.path().join("etc"));
        for directory in [&home, &system] {
            std::fs::create_dir(directory).unwrap();
        }
        std::fs::write(home.join(".pg_service.conf"), "[both]\nport=1\n").unwrap();
        std::fs::write(system.join("pg_service.conf"), "[both]\nport=2\n[system]\nport=3\n").unwrap();
        let environment = Environment::for_tests(&[("PGSYSCONFDIR", system.to_str().unwrap())], Some(&home));
        let port = |service| read(service, &environment).map(|(_, settings)| settings[0].value.clone());
        assert_eq!(port("both").unwrap(), "1");
        assert_eq!(port("system").unwrap(), "3");
        assert_eq!(port("none").unwrap_err().kind(), Kind::Usage);
        let missing = Environment::for_tests(&[("PGSERVICEFILE", "/nonexistent/file")], Some(&home));
        assert!(read("both", &missing).unwrap_err().to_string().contains("/nonexistent/file"));
    }
}
