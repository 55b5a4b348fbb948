//! What the worker does next, and what it knows about what it did. Pure: time and the names that wait are arguments.
//!
//! Only successes are remembered, each for one answer: a file that failed is tried anew when it is asked for, so that
//! what PostgreSQL is told is true at that moment. All of it is forgotten when the worker leaves.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal_archive::source::Stamp;

use super::protocol::{Answer, Failure};

/// How many files may lie stored without having been asked for: enough for any number of uploads, and not so many that
/// much is done in vain should PostgreSQL never ask.
const MOST_UNASKED: usize = 256;
/// How long a success is kept for a call that gave up waiting for it. After three failures PostgreSQL asks again only a
/// minute later (`PGARCH_AUTOWAKE_INTERVAL`, src/backend/postmaster/pgarch.c).
const OWED: Duration = Duration::from_secs(120);

/// A file to push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) name: WalFileName,
    /// Whether PostgreSQL asks for it now.
    pub(crate) is_asked: bool,
    /// How many files wait in all.
    pub(crate) waiting: usize,
}

/// How pushing a file ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Stored; the file looked like this before and after.
    Stored(Stamp, Vec<String>),
    /// Not stored.
    Failed(Failure),
    /// Another file has taken its place, or it waits no longer: nothing is known about what is there now.
    Gone,
}

/// The files of one server.
#[derive(Debug)]
pub(crate) struct Queue {
    linger: Duration,
    asked: VecDeque<WalFileName>,
    ahead: VecDeque<WalFileName>,
    files: HashMap<WalFileName, File>,
    /// The file that failed: nothing else is begun ahead of PostgreSQL until it is stored or does not wait any more.
    barrier: Option<WalFileName>,
    running: usize,
    last_asked: Instant,
    owed_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct File {
    progress: Progress,
    /// How many calls wait for it.
    callers: usize,
}

#[derive(Debug, Default)]
enum Progress {
    #[default]
    Waiting,
    Running,
    Ended(Outcome),
    /// Was answered for, or is left alone; as long as PostgreSQL has it in its queue it is not pushed again unasked.
    Over,
}

impl Queue {
    /// An empty queue that a call has just asked for. `pushed` was stored by that call.
    pub(crate) fn new(linger: Duration, pushed: Option<WalFileName>, now: Instant) -> Self {
        let over = |name| (name, File { progress: Progress::Over, callers: 0 });
        Self {
            linger,
            asked: VecDeque::new(),
            ahead: VecDeque::new(),
            files: pushed.map(over).into_iter().collect(),
            barrier: None,
            running: 0,
            last_asked: now,
            owed_until: None,
        }
    }

    /// Whether it is worth looking at what waits.
    pub(crate) fn wants_names(&self) -> bool {
        self.ahead.is_empty()
    }

    /// Takes note of the files that wait, in the order in which PostgreSQL will ask for them. What it did not ask for and
    /// does not wait any more is forgotten.
    pub(crate) fn refill(&mut self, waiting: &[WalFileName]) {
        let names: HashSet<WalFileName> = waiting.iter().copied().collect();
        let waits = |name: &WalFileName| names.contains(name);
        self.files.retain(|name, file| {
            file.callers > 0 || matches!(file.progress, Progress::Waiting | Progress::Running) || waits(name)
        });
        self.barrier = self.barrier.filter(waits);
        self.ahead = waiting.iter().copied().filter(|name| !self.files.contains_key(name)).collect();
    }

    /// The next file to push, if any may be begun.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Job> {
        let name = match self.asked.pop_front() {
            Some(name) => name,
            None => self.next_ahead(now)?,
        };
        let file = self.files.entry(name).or_default();
        file.progress = Progress::Running;
        let is_asked = file.callers > 0;
        self.running += 1;
        Some(Job { name, is_asked, waiting: self.ahead.len() + self.running })
    }

    fn next_ahead(&mut self, now: Instant) -> Option<WalFileName> {
        let unasked = || self.files.values().filter(|file| matches!(file.progress, Progress::Ended(_))).count();
        let is_wanted = now.duration_since(self.last_asked) < self.linger || self.callers() > 0 || self.is_owed(now);
        // A history is stored only after everything before it, so nothing that knows of it may overtake it.
        let history_runs = self.files.iter().any(|(name, file)| {
            matches!(name, WalFileName::History(_)) && matches!(file.progress, Progress::Waiting | Progress::Running)
        });
        if !is_wanted || self.barrier.is_some() || history_runs || unasked() >= MOST_UNASKED {
            return None;
        }
        self.ahead.pop_front()
    }

    /// A job has ended.
    pub(crate) fn end(&mut self, name: WalFileName, outcome: Outcome) {
        self.running = self.running.saturating_sub(1);
        let Some(file) = self.files.get_mut(&name) else { return };
        match &outcome {
            Outcome::Stored(..) if self.barrier == Some(name) => self.barrier = None,
            Outcome::Failed(_) => {
                self.barrier = Some(name);
                // Everything behind it waits for the next look.
                self.ahead.clear();
            }
            Outcome::Stored(..) | Outcome::Gone => {}
        }
        file.progress = match outcome {
            Outcome::Failed(_) if file.callers == 0 => {
                let _ = self.files.remove(&name);
                return;
            }
            Outcome::Gone if file.callers == 0 => Progress::Over,
            outcome => Progress::Ended(outcome),
        };
    }

    /// A call asks for a file.
    pub(crate) fn ask(&mut self, name: WalFileName, now: Instant) {
        self.last_asked = now;
        let is_new = !self.files.contains_key(&name);
        let file = self.files.entry(name).or_default();
        if is_new || matches!(file.progress, Progress::Over) {
            file.progress = Progress::Waiting;
            self.asked.push_back(name);
            self.ahead.retain(|ahead| *ahead != name);
        }
        file.callers += 1;
    }

    /// What a call that asked for a file may be told; nothing as long as it is being pushed.
    pub(crate) fn look(&mut self, name: WalFileName, stamp: &Stamp, now: Instant) -> Option<Answer> {
        self.last_asked = now;
        let file = self.files.get(&name)?;
        let Progress::Ended(outcome) = &file.progress else { return None };
        Some(match outcome {
            Outcome::Stored(stored, warnings) if stored == stamp => Answer::Stored { warnings: warnings.clone() },
            Outcome::Failed(failure) => Answer::Failed(failure.clone()),
            Outcome::Stored(..) | Outcome::Gone => Answer::NotMine,
        })
    }

    /// A call was answered.
    pub(crate) fn answered(&mut self, name: WalFileName, now: Instant) {
        self.last_asked = now;
        self.owed_until = None;
        let Some(file) = self.files.get_mut(&name) else { return };
        file.callers = file.callers.saturating_sub(1);
        if file.callers > 0 {
            return;
        }
        if matches!(file.progress, Progress::Ended(Outcome::Failed(_))) {
            let _ = self.files.remove(&name);
        } else {
            file.progress = Progress::Over;
        }
    }

    /// A call has stopped waiting for its answer.
    pub(crate) fn withdraw(&mut self, name: WalFileName, now: Instant) {
        self.owed_until = Some(now + OWED);
        let Some(file) = self.files.get_mut(&name) else { return };
        file.callers = file.callers.saturating_sub(1);
        if file.callers == 0 && matches!(file.progress, Progress::Ended(Outcome::Failed(_) | Outcome::Gone)) {
            let _ = self.files.remove(&name);
        }
    }

    /// Whether nothing is being done and nobody has asked for a while.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        let is_busy = self.running > 0 || !self.asked.is_empty() || self.callers() > 0;
        !is_busy && !self.is_owed(now) && now.duration_since(self.last_asked) >= self.linger
    }

    /// Whether a call that gave up will come again.
    fn is_owed(&self, now: Instant) -> bool {
        self.owed_until.is_some_and(|until| now < until)
    }

    fn callers(&self) -> usize {
        self.files.values().map(|file| file.callers).sum()
    }
}

#[cfg(test)]
mod tests;
