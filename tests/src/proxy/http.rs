//! As much of HTTP/1.1 as a proxy needs that passes everything on unchanged.

use std::io::{Error, ErrorKind, Result};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufStream};

const HEAD_LIMIT: usize = 64 * 1024;
const PIECE: usize = 16 * 1024;

/// The first line and the header lines of a request or an answer.
#[derive(Debug)]
pub(super) struct Head {
    bytes: Vec<u8>,
}

impl Head {
    /// Reads up to the empty line; nothing when the connection ends before it begins.
    pub(super) async fn read<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut BufStream<S>) -> Result<Option<Self>> {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"\r\n\r\n") {
            if bytes.len() > HEAD_LIMIT {
                return Err(Error::new(ErrorKind::InvalidData, "header too long"));
            }
            if stream.read_until(b'\n', &mut bytes).await? == 0 {
                return if bytes.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
            }
        }
        Ok(Some(Self { bytes }))
    }

    /// The bytes as they came.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A word of the first line.
    pub(super) fn word(&self, index: usize) -> &str {
        let text = std::str::from_utf8(&self.bytes).unwrap_or_default();
        text.lines().next().and_then(|line| line.split(' ').nth(index)).unwrap_or_default()
    }

    /// The length of a request's body.
    pub(super) fn content_length(&self) -> Option<usize> {
        self.header("content-length")?.parse().ok()
    }

    /// The length of an answer's body; nothing when it comes in chunks.
    pub(super) fn answer_length(&self, method: &str) -> Option<usize> {
        if method == "HEAD" || matches!(self.word(1), "204" | "304") {
            return Some(0);
        }
        if self.header("transfer-encoding").is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked")) {
            return None;
        }
        Some(self.content_length().unwrap_or(0))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let text = std::str::from_utf8(&self.bytes).ok()?;
        text.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// How fast bytes are passed on.
#[derive(Debug)]
pub(super) struct Pace {
    start: Instant,
    bytes_per_second: Option<u64>,
}

impl Pace {
    pub(super) fn unlimited() -> Self {
        Self { start: Instant::now(), bytes_per_second: None }
    }

    pub(super) fn bytes_per_second(rate: u64) -> Self {
        Self { start: Instant::now(), bytes_per_second: Some(rate) }
    }

    /// Waits until so many bytes may have passed since the start.
    async fn hold(&self, bytes: usize) {
        if let Some(rate) = self.bytes_per_second {
            let micros = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1_000_000) / rate;
            tokio::time::sleep_until((self.start + Duration::from_micros(micros)).into()).await;
        }
    }
}

/// Reads bytes and drops them.
pub(super) async fn skip<S: AsyncRead + Unpin>(from: &mut S, length: usize) -> Result<()> {
    tokio::io::copy(&mut from.take(length as u64), &mut tokio::io::sink()).await.map(drop)
}

/// Passes on so many bytes.
pub(super) async fn copy<R, W>(from: &mut R, to: &mut W, length: usize, pace: &Pace) -> Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; PIECE];
    let mut done = 0;
    while done < length {
        let piece = PIECE.min(length - done);
        let read = from.read(&mut buffer[..piece]).await?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        done += read;
        pace.hold(done).await;
        to.write_all(&buffer[..read]).await?;
    }
    to.flush().await
}

/// Passes on a body in chunks, chunk by chunk, up to the empty one.
pub(super) async fn copy_chunks<R, W>(from: &mut BufStream<R>, to: &mut W, pace: &Pace) -> Result<()>
where
    R: AsyncRead + AsyncWrite + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line).await?;
        let size = std::str::from_utf8(&line).ok().and_then(|line| line.trim().split(';').next());
        let size = size.and_then(|size| usize::from_str_radix(size, 16).ok()).ok_or(ErrorKind::InvalidData)?;
        to.write_all(&line).await?;
        // Each chunk, the last and empty one too, is followed by a line end.
        copy(from, to, size + 2, pace).await?;
        if size == 0 {
            return Ok(());
        }
    }
}

/// Answers without asking anyone.
pub(super) async fn answer<W: AsyncWrite + Unpin>(
    to: &mut W,
    status: u16,
    headers: &[String],
    body: &str,
    only_head: bool,
) -> Result<()> {
    let mut text = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\n", body.len());
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    if !only_head {
        text.push_str(body);
    }
    to.write_all(text.as_bytes()).await?;
    to.flush().await
}
