//! What keeps a restored copy from acting as the server it is a copy of: settings on the command line, which outrank
//! whatever `postgresql.auto.conf` says, configuration files of the drill's own, an empty environment, and no network.

use std::path::Path;
use std::process::{Command, Stdio};

use walkeep_common::error::{IoContext as _, Result};

use crate::configuration::syntax::setting_name;

/// Settings that hold in a drill, with the first major that knows each. Each would otherwise reach out of it: archive into
/// the archive of the original, follow or hold up its servers, take its slots and subscriptions, run its jobs, or need what
/// this host does not have.
const SETTINGS: [(u32, &str, &str); 39] = [
    (13, "archive_mode", "off"),
    (13, "archive_command", ""),
    (15, "archive_library", ""),
    (13, "archive_cleanup_command", ""),
    (13, "recovery_end_command", ""),
    (13, "primary_conninfo", ""),
    (13, "primary_slot_name", ""),
    (17, "sync_replication_slots", "off"),
    (13, "synchronous_standby_names", ""),
    (13, "max_logical_replication_workers", "0"),
    (13, "max_sync_workers_per_subscription", "0"),
    (13, "session_preload_libraries", ""),
    (13, "local_preload_libraries", ""),
    (17, "event_triggers", "off"),
    (13, "listen_addresses", ""),
    (13, "unix_socket_group", ""),
    (13, "unix_socket_permissions", "0700"),
    (13, "ssl", "off"),
    (13, "bonjour", "off"),
    (13, "recovery_min_apply_delay", "0"),
    // Without hot standby recovery does not insist on the original's max_connections and its like.
    (13, "hot_standby", "off"),
    (13, "max_connections", "20"),
    (13, "superuser_reserved_connections", "0"),
    (13, "max_wal_senders", "0"),
    // Room for what a subscriber remembers of its publishers.
    (13, "max_replication_slots", "1000"),
    (18, "max_active_replication_origins", "1000"),
    (13, "autovacuum", "off"),
    (13, "jit", "off"),
    (13, "huge_pages", "off"),
    (13, "max_wal_size", "1GB"),
    (13, "restart_after_crash", "off"),
    (13, "logging_collector", "off"),
    (13, "log_destination", "stderr"),
    (13, "log_line_prefix", "%m [%p] "),
    (13, "log_min_messages", "warning"),
    (13, "lc_messages", "C"),
    (13, "external_pid_file", ""),
    // Libraries that a drill is told to preload start no jobs of their own.
    (13, "cron.launch_active_jobs", "off"),
    (13, "timescaledb.max_background_workers", "0"),
];

/// What holds in every session of a drill, whatever the role or the database sets, with the first major that knows it: no
/// library and no trigger runs unasked, nothing cuts a check short, and nothing hides damage.
const SESSION: [(u32, &str, &str); 9] = [
    (13, "session_preload_libraries", ""),
    (13, "local_preload_libraries", ""),
    (17, "event_triggers", "off"),
    (13, "statement_timeout", "0"),
    (13, "lock_timeout", "0"),
    (17, "transaction_timeout", "0"),
    (13, "default_transaction_read_only", "off"),
    (13, "ignore_checksum_failure", "off"),
    (13, "zero_damaged_pages", "off"),
];

/// The options of a session.
pub(super) fn session_options(major: u32) -> String {
    let known = SESSION.iter().filter(|(since, ..)| major >= *since);
    known.map(|(_, name, value)| format!("-c {name}={value}")).collect::<Vec<_>>().join(" ")
}

/// Whether the server of a drill has a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Network {
    /// It has none.
    Cut,
    /// It has this host's, because namespaces are not permitted here.
    OfThisHost,
}

impl Network {
    /// As the report says it.
    pub(super) fn to_text(&self) -> &'static str {
        match self {
            Self::Cut => "none: a network namespace of its own",
            Self::OfThisHost => "this host's: namespaces are not permitted here",
        }
    }
}

/// How the server is started.
#[derive(Debug)]
pub(super) struct Isolation {
    pub(super) network: Network,
    wrapper: Vec<String>,
    settings: Vec<(String, String)>,
}

impl Isolation {
    /// Finds out what this host permits. `own` are settings of this drill.
    pub(super) fn new(major: u32, own: &[(&str, String)]) -> Self {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut wrapper = Vec::new();
        let unshare = words("unshare --user --map-current-user --net --");
        let network = if works(&unshare) {
            wrapper.extend(unshare);
            Network::Cut
        } else {
            Network::OfThisHost
        };
        // The server must not outlive a drill that is killed.
        let death_signal = words("setpriv --pdeathsig INT --");
        if works(&death_signal) {
            wrapper.extend(death_signal);
        }
        let known = SETTINGS.iter().filter(|(since, ..)| major >= *since);
        let settings = known.map(|(_, name, value)| ((*name).to_owned(), (*value).to_owned()));
        let own = own.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        Self { network, wrapper, settings: settings.chain(own).collect() }
    }

    /// The command that starts the server, with nothing of this process's environment.
    pub(super) fn command(&self, postgres: &Path, data: &Path, home: &Path) -> Command {
        let mut words = self.wrapper.iter().map(String::as_str);
        let mut command = match words.next() {
            Some(program) => {
                let mut command = Command::new(program);
                let _ = command.args(words).arg(postgres);
                command
            }
            None => Command::new(postgres),
        };
        let _ = command.arg("-D").arg(data);
        for (name, value) in &self.settings {
            let _ = command.arg("-c").arg(format!("{name}={value}"));
        }
        let _ = command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", home).env("LC_ALL", "C");
        let _ = command.current_dir(home).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// The configuration files of a drill's own, in place of those that came with the backup.
///
/// # Errors
/// From the operating system.
pub(super) fn write_configuration(directory: &Path) -> Result<()> {
    // Nobody but the user of the drill reaches the socket.
    for (name, contents) in [("postgresql.conf", ""), ("pg_hba.conf", "local all all trust\n"), ("pg_ident.conf", "")] {
        let path = directory.join(name);
        std::fs::write(&path, contents).context("write file", &path)?;
    }
    Ok(())
}

/// Of a server's settings those that say where recovery ends.
pub(super) fn recovery_settings(contents: &[u8]) -> Vec<u8> {
    let lines = contents.split_inclusive(|&byte| byte == b'\n');
    let of_target = lines.filter(|line| setting_name(line).is_some_and(|name| name.starts_with("recovery_target")));
    of_target.flatten().copied().collect()
}

fn works(wrapper: &[String]) -> bool {
    let Some((program, words)) = wrapper.split_first() else { return false };
    let run = Command::new(program).args(words).arg("true").stdout(Stdio::null()).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}
