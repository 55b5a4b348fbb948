//! Where calls and the threads that push meet: the [`Queue`], shared.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal_archive::source::Stamp;

use super::data_directory::DataDirectory;
use super::protocol::Answer;
use super::queue::{Job, Outcome, Queue};

/// How often a thread without work looks whether there is any.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// The queue of one server, and who waits for it.
#[derive(Debug)]
pub(crate) struct Desk {
    data: DataDirectory,
    queue: Mutex<Queue>,
    work: Condvar,
    ended: Condvar,
}

impl Desk {
    /// Shares a queue.
    pub(crate) fn new(data: DataDirectory, queue: Queue) -> Self {
        Self { data, queue: Mutex::new(queue), work: Condvar::new(), ended: Condvar::new() }
    }

    /// Waits for a file to push.
    pub(crate) fn next(&self) -> Job {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.next(Instant::now()) {
                return job;
            }
            queue = self.work.wait_timeout(queue, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A job has ended.
    pub(crate) fn end(&self, name: WalFileName, outcome: Outcome) {
        self.lock().end(name, outcome);
        self.ended.notify_all();
        self.work.notify_all();
    }

    /// Looks at what waits, unless there is enough to do.
    pub(crate) fn look_around(&self) {
        if self.lock().wants_names() {
            let waiting = self.data.waiting();
            self.lock().refill(&waiting);
            self.work.notify_all();
        }
    }

    /// A call asks for a file.
    pub(crate) fn ask(&self, name: WalFileName) {
        self.lock().ask(name, Instant::now());
        self.work.notify_all();
    }

    /// Waits for what a call may be told, but not long.
    pub(crate) fn answer(&self, name: WalFileName, stamp: &Stamp, patience: Duration) -> Option<Answer> {
        let deadline = Instant::now() + patience;
        let mut queue = self.lock();
        loop {
            let now = Instant::now();
            let answer = queue.look(name, stamp, now);
            if answer.is_some() || now >= deadline {
                return answer;
            }
            queue = self.ended.wait_timeout(queue, deadline - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A call was answered.
    pub(crate) fn answered(&self, name: WalFileName) {
        self.lock().answered(name, Instant::now());
        self.work.notify_all();
    }

    /// A call does not wait any more.
    pub(crate) fn withdraw(&self, name: WalFileName) {
        self.lock().withdraw(name, Instant::now());
    }

    /// Whether nothing is being done and nobody has asked for a while.
    pub(crate) fn is_idle(&self) -> bool {
        self.lock().is_idle(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
