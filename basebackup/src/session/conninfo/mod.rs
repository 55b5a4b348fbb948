//! Where the server is and how to reach it: libpq's connection parameters.
//!
//! As with libpq, what is given on the command line wins over the service file, the service file over the environment,
//! the environment over the defaults (`conninfo_add_defaults`, src/interfaces/libpq/fe-connect.c). The default
//! database is `postgres`, which every cluster has, and not one named like the user. A parameter that is not supported
//! is refused by name; it is never ignored.

mod environment;
mod keywords;
mod local;
mod passfile;
mod service;
mod text;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walkeep_common::error::{Error, Kind, Result};

pub use environment::Environment;
use keywords::Keyword;
pub use local::system_identifier_of;

/// How long connecting may take where nothing is said. libpq waits for ever; a backup that hangs is noticed too late.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// The connection options, named as those of PostgreSQL's own programs. `-h` is the host, so the command must leave
/// help to `--help`.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Connection options")]
pub struct ConnectionArgs {
    /// Database to connect to, or a connection string [default: postgres]
    #[arg(short, long, value_name = "DBNAME")]
    pub dbname: Option<String>,
    /// Host name, or directory of the Unix socket
    #[arg(short, long, value_name = "HOSTNAME")]
    pub host: Option<String>,
    /// Port of the server [default: 5432]
    #[arg(short, long, value_name = "PORT")]
    pub port: Option<String>,
    /// Role to connect as [default: the name of the operating system's user]
    #[arg(short = 'U', long, value_name = "NAME")]
    pub username: Option<String>,
    /// Server of this host: a cluster of Debian's, such as 15/main, else its data directory
    #[arg(long, value_name = "NAME", conflicts_with_all = ["host", "port"])]
    pub server: Option<String>,
}

/// Everything needed to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionParameters {
    /// Where the server listens.
    pub host: Host,
    /// Its port; for a Unix socket a part of its name.
    pub port: u16,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// The password, if one was given or found.
    pub password: Option<Password>,
    /// How much TLS is wanted. Means nothing for a Unix socket.
    pub sslmode: SslMode,
    /// Whom to trust.
    pub root_certificates: RootCertificates,
    /// The longest time that connecting may take; none waits for ever.
    pub connect_timeout: Option<Duration>,
    /// Shown in `pg_stat_activity`.
    pub application_name: String,
    /// Settings that hold for the session whatever role and database say.
    pub startup_options: Option<String>,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// The directory of a Unix socket.
    Socket(PathBuf),
    /// A host's name or address.
    Name(String),
}

/// A password and where it came from, for the message when the server does not accept it. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password {
    /// The password.
    pub(super) text: String,
    /// The password file it was found in.
    pub(super) file: Option<PathBuf>,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Password").field("file", &self.file).finish_non_exhaustive()
    }
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Without TLS.
    Disable,
    /// Without TLS, unless the server refuses that.
    Allow,
    /// With TLS, unless the server does not offer it.
    Prefer,
    /// With TLS.
    Require,
    /// With TLS, to a server whose certificate a trusted authority has signed.
    VerifyCa,
    /// The same, and the certificate is for the host asked for.
    VerifyFull,
}

/// Whom to trust (`sslrootcert`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificates {
    /// The authorities in this file.
    File(PathBuf),
    /// The operating system's authorities.
    System,
    /// `~/.postgresql/root.crt` if it is there; none if there is no home directory either.
    Default(Option<PathBuf>),
}

impl ConnectionParameters {
    /// Decides from the command line and the environment, reading the service file and the password file.
    ///
    /// # Errors
    /// `Usage` for what libpq or this program does not support; whatever reading the service file gives.
    pub fn resolve(args: &ConnectionArgs, environment: &Environment) -> Result<Self> {
        let mut settings = Settings::default();
        settings.add_command_line(args)?;
        settings.add_service(environment)?;
        settings.add_environment(environment)?;
        settings.parameters(environment)
    }

    /// The server's place, as messages name it.
    pub fn target(&self) -> String {
        match &self.host {
            Host::Socket(directory) => {
                format!("socket \"{}\"", directory.join(format!(".s.PGSQL.{}", self.port)).display())
            }
            Host::Name(name) => format!("\"{name}\", port {}", self.port),
        }
    }
}

/// Parameters by keyword; the first source that sets one wins.
#[derive(Default)]
struct Settings(BTreeMap<&'static str, String>);

impl Settings {
    fn add_command_line(&mut self, args: &ConnectionArgs) -> Result<()> {
        let flags = [("host", &args.host), ("port", &args.port), ("user", &args.username)];
        for (keyword, value) in flags {
            if let Some(value) = value {
                self.add(keyword, value, || {
                    format!("option --{}", if keyword == "user" { "username" } else { keyword })
                })?;
            }
        }
        if let Some(name) = &args.server {
            let local::Local { host, port } = local::find(name)?;
            for (keyword, value) in host.map(|host| ("host", host)).into_iter().chain([("port", port)]) {
                self.add(keyword, &value, || format!("server \"{name}\""))?;
            }
        }
        let Some(dbname) = &args.dbname else { return Ok(()) };
        if !text::is_connection_string(dbname) {
            return self.add("dbname", dbname, || "option --dbname".to_owned());
        }
        let pairs = text::parse(dbname).map_err(|error| Error::new(Kind::Usage, error.to_string()))?;
        // A later pair replaces an earlier one, as in libpq.
        for (keyword, value) in pairs.into_iter().collect::<BTreeMap<_, _>>() {
            if self.0.get(keyword.as_str()).is_some_and(|given| *given != value) {
                let message = format!("\"{keyword}\" is given twice, as an option and in the connection string");
                return Err(Error::new(Kind::Usage, message).hint("Give it once."));
            }
            self.add(&keyword, &value, || "connection string".to_owned())?;
        }
        Ok(())
    }

    fn add_service(&mut self, environment: &Environment) -> Result<()> {
        let named = self.0.get("service").map(String::as_str).or_else(|| environment.variable("PGSERVICE"));
        let Some(name) = named.filter(|name| !name.is_empty()) else { return Ok(()) };
        let (path, settings) = service::read(name, environment)?;
        for setting in settings {
            self.add(&setting.keyword, &setting.value, || {
                format!("service file \"{}\", line {}", path.display(), setting.line)
            })?;
        }
        Ok(())
    }

    fn add_environment(&mut self, environment: &Environment) -> Result<()> {
        for keyword in keywords::KEYWORDS {
            let variable = keyword.variable.and_then(|name| Some((name, environment.variable(name)?)));
            if let Some((name, value)) = variable {
                self.add(keyword.name, value, || format!("environment variable \"{name}\""))?;
            }
        }
        Ok(())
    }

    /// Adds a setting unless a source of higher rank has it; `origin` names the source for messages.
    fn add(&mut self, name: &str, value: &str, origin: impl Fn() -> String) -> Result<()> {
        let usage = |message| Error::new(Kind::Usage, message);
        let keyword = Keyword::find(name)
            .ok_or_else(|| usage(format!("invalid connection parameter \"{name}\" in {}", origin())))?;
        if !keyword.accepts(value) {
            let message = format!("connection parameter \"{name}\" is not supported ({})", origin());
            return Err(usage(message).hint(match keyword.support {
                keywords::Support::Only([.., value]) => format!("Remove it, or set it to \"{value}\"."),
                _ => "Remove it.".to_owned(),
            }));
        }
        if value.contains('\0') {
            return Err(usage(format!("connection parameter \"{name}\" holds a zero byte ({})", origin())));
        }
        let _ = self.0.entry(keyword.name).or_insert_with(|| value.to_owned());
        Ok(())
    }

    /// A setting that is not empty: to libpq an empty value is the default.
    fn get(&self, keyword: &str) -> Option<&str> {
        self.0.get(keyword).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn parameters(&self, environment: &Environment) -> Result<ConnectionParameters> {
        let port = self.port()?;
        let no_user = || Error::new(Kind::Usage, "could not find out the user's name").hint("Name a role with -U.");
        let user = self.get("user").map(str::to_owned).or_else(|| environment.user.clone()).ok_or_else(no_user)?;
        let database = self.get("dbname").unwrap_or("postgres").to_owned();
        let host = self.host(environment)?;
        let root_certificates = self.root_certificates(environment);
        Ok(ConnectionParameters {
            password: self.password(environment, &host, port, &database, &user),
            sslmode: self.sslmode(&root_certificates)?,
            connect_timeout: self.connect_timeout()?,
            application_name: self.get("application_name").unwrap_or("basebackup").to_owned(),
            startup_options: None,
            host,
            port,
            user,
            database,
            root_certificates,
        })
    }

    fn host(&self, environment: &Environment) -> Result<Host> {
        let Some(host) = self.get("host") else { return Ok(Host::Socket(environment.socket_directory.clone())) };
        let refuse = |what: &str| {
            Err(Error::new(Kind::Usage, format!("{what} not supported: \"{host}\""))
                .hint("Name the one server whose data directory is on this host."))
        };
        if host.contains(',') {
            return refuse("lists of hosts are");
        }
        if host.starts_with('@') {
            return refuse("abstract Unix sockets are");
        }
        Ok(if host.starts_with('/') { Host::Socket(host.into()) } else { Host::Name(host.to_owned()) })
    }

    fn port(&self) -> Result<u16> {
        let Some(port) = self.get("port") else { return Ok(5432) };
        let parsed = port.trim_ascii().parse::<u16>().ok().filter(|&number| number > 0);
        parsed.ok_or_else(|| Error::new(Kind::Usage, format!("invalid port number: \"{port}\"")))
    }

    /// Seconds; zero and less wait for ever. Before 18, libpq took 1 for 2.
    fn connect_timeout(&self) -> Result<Option<Duration>> {
        let Some(text) = self.get("connect_timeout") else { return Ok(Some(CONNECT_TIMEOUT)) };
        let invalid = |_| Error::new(Kind::Usage, format!("invalid connect_timeout \"{text}\": expected seconds"));
        let seconds: i64 = text.trim_ascii().parse().map_err(invalid)?;
        Ok(u64::try_from(seconds).ok().filter(|&seconds| seconds > 0).map(Duration::from_secs))
    }

    fn root_certificates(&self, environment: &Environment) -> RootCertificates {
        match self.get("sslrootcert") {
            Some("system") => RootCertificates::System,
            Some(path) => RootCertificates::File(path.into()),
            None => {
                let home = environment.home.as_deref();
                RootCertificates::Default(home.map(|home| home.join(".postgresql/root.crt")))
            }
        }
    }

    fn sslmode(&self, root_certificates: &RootCertificates) -> Result<SslMode> {
        let Some(text) = self.0.get("sslmode") else {
            let system = *root_certificates == RootCertificates::System;
            return Ok(if system { SslMode::VerifyFull } else { SslMode::Prefer });
        };
        let mode = match text.as_str() {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return Err(Error::new(Kind::Usage, format!("invalid sslmode value: \"{text}\""))),
        };
        // Anyone can have a certificate from a public authority: without the host's name it proves nothing.
        if *root_certificates == RootCertificates::System && mode != SslMode::VerifyFull {
            let message = format!("weak sslmode \"{text}\" may not be used with sslrootcert=system");
            return Err(Error::new(Kind::Usage, message).hint("Use sslmode=verify-full."));
        }
        Ok(mode)
    }

    fn password(
        &self,
        environment: &Environment,
        host: &Host,
        port: u16,
        database: &str,
        user: &str,
    ) -> Option<Password> {
        if let Some(text) = self.get("password") {
            return Some(Password { text: text.to_owned(), file: None });
        }
        let home = environment.home.as_ref().map(|home| home.join(".pgpass"));
        let file = self.get("passfile").map(PathBuf::from).or(home)?;
        let wanted = passfile::Wanted {
            host: &password_host(host, &environment.socket_directory),
            port: &port.to_string(),
            database,
            user,
        };
        passfile::password(&file, wanted).map(|text| Password { text, file: Some(file) })
    }
}

/// The name of a host in the password file: the default socket directory is `localhost` there, any other is its path.
fn password_host(host: &Host, default_directory: &Path) -> String {
    match host {
        Host::Socket(directory) if directory == default_directory => "localhost".to_owned(),
        Host::Socket(directory) => directory.display().to_string(),
        Host::Name(name) => name.clone(),
    }
}

#[cfg(test)]
mod tests;
