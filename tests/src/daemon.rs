//! Servers as children of the test process.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{user, wait};

/// A server process. Dropping it kills and reaps it, so that nothing of it is left when the next line runs.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

/// What [`Daemon::start`] starts, as the unprivileged user.
#[derive(Debug)]
pub struct Server<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its whole environment, but for `PATH`, `LANG` and `TZ`.
    pub environment: &'a [(String, String)],
    /// Its working directory.
    pub directory: &'a Path,
    /// Where both of its streams are appended to.
    pub log: &'a Path,
    /// The signal it gets when the test process dies without having stopped it.
    pub on_death: &'static str,
}

impl Daemon {
    /// Starts a server.
    pub fn start(server: &Server<'_>) -> Self {
        let log = File::options().create(true).append(true).open(server.log).expect("open the log");
        user::give(server.log);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", server.on_death]);
        if user::is_root() {
            let user = user::unprivileged();
            command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid)).arg("--clear-groups");
        }
        command.arg("--").arg(server.program).args(&server.arguments);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LANG", "C.UTF-8").env("TZ", "UTC");
        command.envs(server.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(server.directory).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("duplicate a descriptor")).stderr(log);
        let child = spawn(command).unwrap_or_else(|error| panic!("could not start {server:?}: {error}"));
        Self { child, log: server.log.to_owned() }
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(process, signal).expect("kill");
    }

    /// Waits until the process has ended and is reaped; nothing when it still runs at the deadline.
    pub fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        wait::try_until(deadline, || self.ended())
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Everything it has said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Starts a child whose parent is one long-lived thread: Linux sends the parent's death signal when the *thread* that
/// started the child ends, and every test has a thread of its own.
fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static NURSERY: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
        let (orders, inbox) = channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                answer.send(command.spawn()).ok();
            }
        });
        Mutex::new(orders)
    });
    let (answer, result) = channel();
    NURSERY.lock().expect("the nursery's lock").send((command, answer)).expect("the nursery's thread");
    result.recv().expect("the nursery's answer")
}
