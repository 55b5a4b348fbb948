//! One run of a program, with everything it said.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{user, wait};

/// A program about to run: as the unprivileged user, with nothing in its environment but what the test gives it.
#[derive(Debug, Clone)]
#[must_use]
pub struct Run {
    words: Vec<OsString>,
    environment: Vec<(String, String)>,
    directory: PathBuf,
    timeout: Duration,
    umask: Option<u32>,
    as_caller: bool,
}

/// How a run ended. Printing it shows everything.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// The status as the operating system reports it.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: String,
    /// What it wrote to its standard error.
    pub stderr: String,
    /// How long it took.
    pub elapsed: Duration,
}

impl Run {
    /// Prepares a run of a program in `/`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            words: vec![program.as_ref().to_owned()],
            environment: Vec::new(),
            directory: "/".into(),
            timeout: Duration::from_secs(120),
            umask: None,
            as_caller: false,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.words.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.words.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Sets environment variables.
    pub fn envs(mut self, variables: &[(String, String)]) -> Self {
        self.environment.extend_from_slice(variables);
        self
    }

    /// Sets the working directory.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// Sets how long it may run before the test fails.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the file mode creation mask it inherits.
    pub fn umask(mut self, umask: u32) -> Self {
        self.umask = Some(umask);
        self
    }

    /// Runs it as the user of the tests, root perhaps.
    pub fn as_caller(mut self) -> Self {
        self.as_caller = true;
        self
    }

    /// Puts a program in front that runs this one (`strace`, `setpriv`).
    pub fn under<A: AsRef<OsStr>>(mut self, wrapper: impl IntoIterator<Item = A>) -> Self {
        self.words.splice(0..0, wrapper.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// Runs it to its end.
    ///
    /// Panics when it does not end in time, or when a process it left behind still holds its output: PostgreSQL would
    /// wait for that one.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let command = self.words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut process = match self.umask {
            None => Command::new(&self.words[0]),
            Some(umask) => {
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg(format!("umask {umask:04o} && exec \"$0\" \"$@\"")).arg(&self.words[0]);
                shell
            }
        };
        process.args(&self.words[1..]).current_dir(&self.directory);
        process.env_clear().env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8").env("TZ", "UTC");
        process.envs(self.environment.iter().map(|(name, value)| (name, value)));
        process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if !self.as_caller {
            user::drop_privileges(&mut process);
        }
        let started = Instant::now();
        let mut child = process.spawn().unwrap_or_else(|error| panic!("could not run {command}: {error}"));
        let stdout = collect(child.stdout.take().expect("a pipe"));
        let stderr = collect(child.stderr.take().expect("a pipe"));
        Running { command, child, stdout, stderr, started, timeout: self.timeout }
    }
}

/// A program that runs.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: std::process::Child,
    stdout: Receiver<Vec<u8>>,
    stderr: Receiver<Vec<u8>>,
    started: Instant,
    timeout: Duration,
}

impl Running {
    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let process = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(process, signal).expect("kill");
    }

    /// Tells whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("wait for a child").is_some()
    }

    /// Kills it after this time with SIGKILL, unless it has ended by then.
    pub fn kill_after(mut self, time: Duration) -> Finished {
        std::thread::sleep(time.saturating_sub(self.started.elapsed()));
        if !self.has_ended() {
            self.signal(Signal::KILL);
        }
        self.finish()
    }

    /// Waits for its end. Panics as [`Run::finish`] does.
    pub fn finish(mut self) -> Finished {
        let status = wait::try_until(self.timeout, || self.child.try_wait().expect("wait for a child"));
        let elapsed = self.started.elapsed();
        let Some(status) = status else {
            self.child.kill().ok();
            self.child.wait().ok();
            panic!(
                "{} did not end within {:?}\nstdout: {}\nstderr: {}",
                self.command,
                self.timeout,
                text(&self.stdout).unwrap_or_default(),
                text(&self.stderr).unwrap_or_default()
            );
        };
        let [Some(stdout), Some(stderr)] = [text(&self.stdout), text(&self.stderr)] else {
            panic!("{} ended with {status}, but a process it started still holds its output", self.command);
        };
        Finished { command: self.command, status, stdout, stderr, elapsed }
    }
}

impl Finished {
    /// The exit code, or 128 + n after signal n, as a shell reports it.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// Fails the test unless the exit code is this one.
    #[track_caller]
    pub fn expect_code(&self, expected: i32) -> &Self {
        assert!(self.code() == expected, "expected exit code {expected}\n{self}");
        self
    }

    /// Tells whether it ended by SIGKILL.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::KILL.as_raw())
    }

    /// Fails the test unless it succeeded and said nothing on standard error.
    #[track_caller]
    pub fn expect_silent_success(&self) -> &Self {
        assert!(self.code() == 0 && self.stderr.is_empty(), "expected a silent success\n{self}");
        self
    }

    /// Fails the test unless standard error has all of these texts in it.
    #[track_caller]
    pub fn expect_stderr(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(self.stderr.contains(text), "expected {text:?} on standard error\n{self}");
        }
        self
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, stdout, stderr, elapsed } = self;
        write!(f, "{command}\n{status} after {elapsed:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs one of PostgreSQL's or the system's own tools, which must succeed, and returns its output without the last newline.
pub fn tool<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> String {
    let finished = Run::new(program).args(arguments).finish();
    assert!(finished.status.success(), "{finished}");
    finished.stdout.trim_end_matches('\n').to_owned()
}

fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).ok();
        sender.send(bytes).ok();
    });
    receiver
}

fn text(pipe: &Receiver<Vec<u8>>) -> Option<String> {
    // The process has ended, so the pipe is at its end at once unless someone else has it open too.
    let bytes = pipe.recv_timeout(Duration::from_secs(5)).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
