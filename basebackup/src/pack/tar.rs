//! Headers of tar members: ustar, with a pax extended header (POSIX.1-2001) before it for what ustar cannot say.
//!
//! Names go into the ustar fields as they are wherever they fit, whatever their encoding: every reader takes those
//! bytes verbatim, whereas pax values are UTF-8 by definition. A name that neither fits nor is UTF-8 is a pax record
//! after `hdrcharset=BINARY`.

use tar::{EntryType, Header, UstarHeader};

use super::member::{Member, MemberKind};

/// Everything in a tar stream begins on a multiple of this.
pub const BLOCK_BYTES: usize = 512;

/// Two blocks of zeros end a tar stream.
pub const END_OF_ARCHIVE: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

/// The largest number in an octal field of eight bytes: the ids.
const MAX_OCTAL_7: u64 = 0o7_777_777;
/// The largest number in an octal field of twelve bytes: size and time.
const MAX_OCTAL_11: u64 = 0o77_777_777_777;

/// Returns what stands before a member's content: whole blocks.
pub fn member_header(member: &Member) -> Vec<u8> {
    let mut path = member.path.as_bytes().to_vec();
    let kind = match member.kind {
        MemberKind::File { .. } => EntryType::Regular,
        MemberKind::Directory => {
            path.push(b'/');
            EntryType::Directory
        }
    };

    let mut header = Header::new_ustar();
    let mut records = Records::default();
    header.set_entry_type(kind);
    header.set_mode(member.mode & 0o7777);
    header.set_uid(records.number("uid", i64::from(member.owner.uid), MAX_OCTAL_7));
    header.set_gid(records.number("gid", i64::from(member.owner.gid), MAX_OCTAL_7));
    header.set_size(records.number("size", i64::try_from(member.kind.size()).unwrap_or(i64::MAX), MAX_OCTAL_11));
    header.set_mtime(records.number("mtime", member.modified.as_second(), MAX_OCTAL_11));
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.set_device_major(0);
        ustar.set_device_minor(0);
        set_path(ustar, &path, &mut records);
        // These two fields, unlike the path's, must end in a zero.
        records.name("uname", member.owner.user.as_bytes(), ustar.uname.split_at_mut(31).0);
        records.name("gname", member.owner.group.as_bytes(), ustar.gname.split_at_mut(31).0);
    }
    header.set_cksum();

    let mut blocks = records.into_blocks();
    blocks.extend_from_slice(header.as_bytes());
    blocks
}

/// Returns how many zeros follow a content of `size` bytes: up to the next block.
pub fn padding_bytes(size: u64) -> usize {
    let into_block = usize::try_from(size % BLOCK_BYTES as u64).unwrap_or(0);
    (BLOCK_BYTES - into_block) % BLOCK_BYTES
}

/// ustar holds a path in `name`, or cut at a slash into `prefix` and `name`.
fn set_path(ustar: &mut UstarHeader, path: &[u8], records: &mut Records) {
    let UstarHeader { name, prefix, .. } = ustar;
    let split = || {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let parts = slashes.filter_map(|at| Some((path.get(..at)?, path.get(at + 1..)?)));
        parts
            .into_iter()
            .find(|(start, rest)| (1..=prefix.len()).contains(&start.len()) && (1..=name.len()).contains(&rest.len()))
    };
    if path.len() > name.len()
        && let Some((start, rest)) = split()
    {
        put(prefix, start);
        put(name, rest);
    } else {
        records.name("path", path, name);
    }
}

/// The records of one pax extended header.
#[derive(Debug, Default)]
struct Records {
    bytes: Vec<u8>,
    binary: bool,
}

impl Records {
    /// Returns the number for the ustar field; writes a record, and returns zero, if the field cannot hold it.
    fn number(&mut self, key: &str, value: i64, max: u64) -> u64 {
        match u64::try_from(value) {
            Ok(fitting) if fitting <= max => fitting,
            _ => {
                self.record(key, value.to_string().as_bytes());
                0
            }
        }
    }

    /// Puts a name into its ustar field; what does not fit is cut there and becomes a record.
    fn name(&mut self, key: &str, value: &[u8], field: &mut [u8]) {
        if value.len() > field.len() {
            if str::from_utf8(value).is_err() && !self.binary {
                self.record("hdrcharset", b"BINARY");
                self.binary = true;
            }
            self.record(key, value);
        }
        put(field, value);
    }

    /// Adds `length key=value\n`, where the length counts the whole record with its own digits.
    fn record(&mut self, key: &str, value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length += 1;
        }
        self.bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.push(b'\n');
    }

    /// Returns the extended header as a member of its own, or nothing when there are no records.
    fn into_blocks(self) -> Vec<u8> {
        if self.bytes.is_empty() {
            return Vec::new();
        }
        let size = self.bytes.len() as u64;
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        if let Some(ustar) = header.as_ustar_mut() {
            put(&mut ustar.name, b"PaxHeader");
        }
        header.set_cksum();

        let mut blocks = header.as_bytes().to_vec();
        blocks.extend_from_slice(&self.bytes);
        blocks.resize(blocks.len() + padding_bytes(size), 0);
        blocks
    }
}

/// Copies as much of the value as the field holds; the rest of a fresh field is zeros already.
fn put(field: &mut [u8], value: &[u8]) {
    field.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
}
