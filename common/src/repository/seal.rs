//! A record's own checksum: its last member, over everything before it, so that a bit that flips in a name or a number
//! does not go unnoticed. Readers that do not know it ignore it.

use sha2::{Digest as _, Sha256};

use crate::wal_object::encode::hexadecimal;

const NAME: &[u8] = b"\"checksum\"";

/// What a record's checksum says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seal {
    /// It is as it was written.
    Intact,
    /// It was changed since.
    Broken,
    /// It has none.
    Missing,
}

/// Adds the checksum to a JSON object: the SHA-256 of all bytes up to the comma before it.
pub fn seal(json: &[u8]) -> Vec<u8> {
    match json.trim_ascii_end().strip_suffix(b"}") {
        Some(members) => sealed(members.trim_ascii_end()),
        None => json.to_vec(),
    }
}

fn sealed(members: &[u8]) -> Vec<u8> {
    let digest = hexadecimal(&Sha256::digest(members));
    let (name, end) = if members.contains(&b'\n') { ("\n  \"checksum\": ", "\n") } else { ("\"checksum\":", "") };
    let mut sealed = members.to_vec();
    sealed.extend_from_slice(format!(",{name}\"{digest}\"{end}}}\n").as_bytes());
    sealed
}

/// Compares a record with its checksum.
pub fn check(record: &[u8]) -> Seal {
    let Some(at) = record.windows(NAME.len()).rposition(|window| window == NAME) else { return Seal::Missing };
    let before = record.get(..at).unwrap_or_default().trim_ascii_end();
    match before.strip_suffix(b",") {
        Some(members) if sealed(members) == record => Seal::Intact,
        _ => Seal::Broken,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_sealed_record_counts() {
        for json in [&b"{\"a\":1,\"checksum\":2}\n"[..], b"{\n  \"a\": \"x\",\n  \"b\": {}\n}\n"] {
            let sealed = seal(json);
            assert_eq!(check(&sealed), Seal::Intact, "{}", String::from_utf8_lossy(&sealed));
            let value: serde_json::Value = serde_json::from_slice(&sealed).unwrap();
            assert!(value["checksum"].as_str().is_some_and(|digest| digest.len() == 64));
            for bit in 0..sealed.len() * 8 {
                let mut flipped = sealed.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(check(&flipped), Seal::Intact, "bit {bit}");
            }
            assert_eq!(check(sealed.trim_ascii_end()), Seal::Broken);
        }
        assert_eq!(check(b"{\"a\":1}"), Seal::Missing);
    }
}
