//! The WAL of a drill: PostgreSQL asks through one named pipe and is answered through another, so that it needs neither a
//! network nor credentials, and so that an outage is told from damage.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::pipe::OpenOptions;
use tokio::task::{JoinHandle, spawn_blocking};
use walkeep_common::error::{Error, IoContext as _, Kind, Result};
use walkeep_common::retry::Patience;
use walkeep_common::wal::name::WalFileName;
use walkeep_common::wal::segment::{SegmentName, SegmentSize};
use walkeep_common::wal_archive::WalArchive;

use super::replay::{ReadAlong, Seen};
use super::tablespaces::keep_in_place;

/// Segments that are fetched before they are asked for, together.
const MOST_BYTES_AHEAD: u64 = 64 << 20;
const QUESTIONS: &str = "questions";
const ANSWERS: &str = "answers";
/// An outage shorter than this costs a drill nothing but time.
const PATIENCE: Patience = Patience::For(Duration::from_secs(10 * 60));

/// PostgreSQL's words for what a `restore_command` ends with: above 125 recovery is given up (`RestoreArchivedFile`,
/// src/backend/access/transam/xlogarchive.c).
const FOUND: &str = "0\n";
const NOT_THERE: &str = "1\n";
const GIVE_UP: &str = "255\n";

/// Answers the server of a drill.
#[derive(Debug)]
pub(super) struct WalServer {
    archive: WalArchive,
    directory: PathBuf,
    data: PathBuf,
    /// Segments that will be asked for.
    next: VecDeque<WalFileName>,
    /// Those that are being fetched.
    ahead: VecDeque<(WalFileName, JoinHandle<Result<Option<usize>>>)>,
    most_ahead: usize,
    size: SegmentSize,
    pg_major: u32,
    read_along: Option<ReadAlong>,
    pub(super) served: Served,
}

/// What PostgreSQL was given.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Served {
    pub(super) segments: u64,
    pub(super) bytes: u64,
    /// Tablespaces that they create.
    pub(super) tablespaces: usize,
}

impl WalServer {
    /// Prepares to answer from `archive`; `expected` are the segments that will be asked for, in their order, without a gap.
    ///
    /// # Errors
    /// From the operating system.
    pub(super) fn new(
        archive: &WalArchive,
        directory: &Path,
        expected: VecDeque<SegmentName>,
        size: SegmentSize,
        pg_major: u32,
    ) -> Result<Self> {
        for name in [QUESTIONS, ANSWERS] {
            let path = directory.join(name);
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .map_err(io::Error::from)
                .context("create pipe", &path)?;
        }
        let ahead = directory.join("ahead");
        fs::create_dir(&ahead).context("create directory", &ahead)?;
        Ok(Self {
            archive: archive.with_patience(PATIENCE),
            directory: directory.to_owned(),
            data: directory.join("data"),
            read_along: expected.front().and_then(|first| Some(ReadAlong::start(first.number(size)?, size))),
            next: expected.into_iter().map(WalFileName::Segment).collect(),
            ahead: VecDeque::new(),
            most_ahead: usize::try_from(MOST_BYTES_AHEAD / size.bytes()).unwrap_or(1).max(1),
            size,
            pg_major,
            served: Served::default(),
        })
    }

    /// The `restore_command` that asks.
    pub(super) fn restore_command(&self) -> String {
        let quoted = |name: &str| {
            let path = self.directory.join(name).display().to_string().replace('%', "%%");
            format!("'{}'", path.replace('\'', "'\\''"))
        };
        format!("echo '%f %p' >{} && read -r answer <{} && exit $answer", quoted(QUESTIONS), quoted(ANSWERS))
    }

    /// Answers until something goes wrong with the archive. PostgreSQL gives up then.
    pub(super) async fn serve(&mut self) -> Error {
        match self.answer_all().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn answer_all(&mut self) -> Result<std::convert::Infallible> {
        // Opened for both, a pipe does not end when a shell closes it.
        let open = |name: &str| {
            let path = self.directory.join(name);
            let mut options = OpenOptions::new();
            let options = options.read_write(true);
            let receiver = options.open_receiver(&path).context("open pipe", &path)?;
            let sender = options.open_sender(&path).context("open pipe", &path)?;
            Ok::<_, Error>((receiver, sender))
        };
        let (questions, _kept_open) = open(QUESTIONS)?;
        let (_also_kept_open, mut answers) = open(ANSWERS)?;
        let mut questions = BufReader::new(questions).lines();
        let failed = |error: io::Error| Error::new(Kind::Internal, "a pipe to the server failed").caused_by(error);
        loop {
            self.fetch_ahead();
            let question = questions.next_line().await.map_err(failed)?.unwrap_or_default();
            let answered = self.answer(&question).await;
            let answer = match &answered {
                Ok(true) => FOUND,
                Ok(false) => NOT_THERE,
                Err(_) => GIVE_UP,
            };
            answers.write_all(answer.as_bytes()).await.map_err(failed)?;
            let _ = answered?;
        }
    }

    /// Puts the file that is asked for where PostgreSQL wants it; false if there is none.
    async fn answer(&mut self, question: &str) -> Result<bool> {
        let unknown = || Error::new(Kind::Internal, format!("the server asks for \"{question}\""));
        let (name, path) = question.split_once(' ').ok_or_else(unknown)?;
        let name: WalFileName = name.parse().map_err(|_| unknown())?;
        while self.ahead.front().is_some_and(|(front, _)| *front != name)
            && self.ahead.iter().any(|(waiting, _)| *waiting == name)
        {
            // Not asked for any more.
            let _ = self.ahead.pop_front();
        }
        let is_next = self.ahead.front().is_some_and(|(front, _)| *front == name);
        let found = match if is_next { self.ahead.pop_front() } else { None } {
            Some((_, fetching)) => fetching.await.map_err(thread_failed)??,
            None => self.fetch(name).await?,
        };
        if let Some(tablespaces) = found {
            self.served.tablespaces += tablespaces;
            let (from, to) = (self.place(name), self.data.join(path));
            let file = File::open(&from).context("open file", &from)?;
            fs::rename(&from, &to).context("rename", &from)?;
            if let WalFileName::Segment(segment) = name {
                self.served.segments += 1;
                self.served.bytes += self.size.bytes();
                if let (Some(reader), Some(number)) = (&mut self.read_along, segment.number(self.size)) {
                    reader.take(number, file).await;
                }
            }
        }
        Ok(found.is_some())
    }

    /// What was found in everything that was served.
    pub(super) async fn finish(mut self) -> Seen {
        match self.read_along.take() {
            Some(reader) => reader.finish().await,
            None => Seen::default(),
        }
    }

    fn fetch_ahead(&mut self) {
        while self.ahead.len() < self.most_ahead
            && let Some(name) = self.next.pop_front()
        {
            let fetching = tokio::spawn(self.fetch(name));
            self.ahead.push_back((name, fetching));
        }
    }

    /// Fetches a file, verified, as a drill may replay it. Returns how many tablespaces it creates; nothing if there is none.
    fn fetch(&self, name: WalFileName) -> impl Future<Output = Result<Option<usize>>> + Send + 'static {
        let (archive, to, size, pg_major) = (self.archive.clone(), self.place(name), self.size, self.pg_major);
        async move {
            let create = || File::create(&to).context("create file", &to);
            if archive.fetch(name, create).await?.is_none() {
                return Ok(None);
            }
            let WalFileName::Segment(segment) = name else { return Ok(Some(0)) };
            let looking = spawn_blocking(move || keep_in_place(&to, segment, size, pg_major));
            looking.await.map_err(thread_failed)?.map(Some)
        }
    }

    fn place(&self, name: WalFileName) -> PathBuf {
        self.directory.join("ahead").join(name.to_string())
    }
}

fn thread_failed(error: tokio::task::JoinError) -> Error {
    Error::new(Kind::Internal, "a task ended before its work").caused_by(error)
}
