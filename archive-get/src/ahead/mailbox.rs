//! How calls tell the worker what they served, and what PostgreSQL waits for: a named pipe in the spool.
//!
//! Writing to it never waits, and fails at once when nobody reads: that is how a call learns that there is no worker. The
//! worker holds a lock on the pipe, so there is one at most.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;

use rustix::fs::{CWD, FileType, FlockOperation, Mode, OFlags};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use walkeep_common::error::{IoContext as _, Result};
use walkeep_common::wal::segment::SegmentName;

use super::spool::Spool;

/// Far more than a worker that runs ever has waiting.
const BUFFER_BYTES: usize = 4096;

/// What a call has to say about a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    /// PostgreSQL waits for it.
    Wanted(SegmentName),
    /// PostgreSQL has it.
    Served(SegmentName),
}

const WANTED: &str = "wanted";
const SERVED: &str = "served";

/// Creates the pipe unless it is there.
pub(super) fn create(spool: &Spool) -> Result<()> {
    let path = spool.mailbox();
    match rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Err(error) if error != rustix::io::Errno::EXIST => Err(io::Error::from(error)).context("create pipe", &path),
        _ => Ok(()),
    }
}

/// Tells the worker of this spool; false if there is none.
pub(super) fn tell(spool: &Spool, message: Message) -> bool {
    let Some(mut pipe) = open_to_write(spool) else { return false };
    let (what, name) = match message {
        Message::Wanted(name) => (WANTED, name),
        Message::Served(name) => (SERVED, name),
    };
    match pipe.write_all(format!("{} {what} {name}\n", spool.key()).as_bytes()) {
        // A worker that was stopped does not empty the pipe. It is there, so a second one could not begin.
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        Ok(()) => true,
    }
}

/// Whether a worker has the pipe open.
pub(super) fn is_read(spool: &Spool) -> bool {
    open_to_write(spool).is_some()
}

fn open_to_write(spool: &Spool) -> Option<File> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(spool.mailbox(), flags, Mode::empty()).ok().map(File::from)
}

/// The pipe of a spool, if no other process has locked it.
pub(super) fn lock(spool: &Spool) -> io::Result<Option<File>> {
    // Open for writing as well: the pipe would be at its end whenever no call writes.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(rustix::fs::open(spool.mailbox(), flags, Mode::empty())?);
    Ok(rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
}

/// The worker's end.
#[derive(Debug)]
pub(super) struct Mailbox {
    pipe: Receiver,
    inode: u64,
    rest: Vec<u8>,
}

impl Mailbox {
    /// Opens the pipe, which is there, and locks it; nothing if another worker has it. Needs a runtime.
    pub(super) fn open(spool: &Spool) -> io::Result<Option<Self>> {
        let Some(file) = lock(spool)? else { return Ok(None) };
        let inode = file.metadata()?.ino();
        let mailbox = Self { pipe: Receiver::from_file(file)?, inode, rest: Vec::new() };
        // The worker before this one may have removed the pipe on its way out, after it was opened here.
        Ok(mailbox.is_in(spool).then_some(mailbox))
    }

    /// Whether calls find this pipe.
    pub(super) fn is_in(&self, spool: &Spool) -> bool {
        fs::symlink_metadata(spool.mailbox()).is_ok_and(|metadata| metadata.ino() == self.inode)
    }

    /// Waits until a call says something, and returns the latest of it; nothing if it was for another run of recovery.
    /// Nothing is lost when it is not waited for to the end.
    pub(super) async fn next(&mut self, spool: &Spool) -> io::Result<Option<Message>> {
        loop {
            if let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') {
                let lines: Vec<u8> = self.rest.drain(..=end).collect();
                let latest = lines.split(|&byte| byte == b'\n').rev().find(|line| !line.is_empty()).unwrap_or_default();
                return Ok(str::from_utf8(latest).ok().and_then(|line| parse(line, spool.key())));
            }
            if self.rest.len() > BUFFER_BYTES {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut bytes = [0; BUFFER_BYTES];
            let read = self.pipe.read(&mut bytes).await?;
            self.rest.extend(bytes.iter().take(read));
        }
    }
}

fn parse(line: &str, expected_key: &str) -> Option<Message> {
    let (key, rest) = line.split_once(' ')?;
    let (what, name) = rest.split_once(' ').filter(|_| key == expected_key)?;
    let name = name.parse().ok()?;
    match what {
        WANTED => Some(Message::Wanted(name)),
        SERVED => Some(Message::Served(name)),
        _ => None,
    }
}
