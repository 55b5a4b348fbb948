//! Buffers that are used again: memory that is given back and asked for anew costs a page fault for every page.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers of one size. There come to be as many as are in use at the same time.
#[derive(Debug, Clone)]
pub struct Buffers {
    size: usize,
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// Bytes in a buffer that goes back to where it came from.
struct Lent {
    bytes: Vec<u8>,
    buffers: Buffers,
}

impl Buffers {
    /// None so far; each will have room for so many bytes.
    pub fn new(size: usize) -> Self {
        Self { size, idle: Arc::default() }
    }

    /// How many bytes a buffer has room for.
    pub fn size(&self) -> usize {
        self.size
    }

    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| Vec::with_capacity(self.size))
    }

    /// Takes a buffer back.
    pub fn keep(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    /// Passes a full buffer on. It comes back by itself when nobody needs its bytes any more.
    pub fn share(&self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { bytes, buffers: self.clone() })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.buffers.keep(mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_the_last_of_its_bytes_are_gone() {
        let buffers = Buffers::new(100);
        let mut buffer = buffers.take();
        buffer.extend_from_slice(b"bytes");
        let place = buffer.as_ptr();
        let mut shared = buffers.share(buffer);
        let end = shared.split_off(3);
        drop(shared);
        assert_eq!((&end[..], buffers.idle.lock().unwrap().len()), (&b"es"[..], 0));
        drop(end);
        let again = buffers.take();
        assert_eq!((again.len(), again.capacity(), again.as_ptr()), (0, 100, place));
    }
}
