use super::decode::{DecodeError, Decoder};
use super::encode::{Description, Encoded, encode};
use super::header::{Header, InvalidHeader, MAX_BYTES};
use crate::wal::segment::Timeline;

fn encoded(plain: &[u8], level: i32) -> Encoded {
    let description = Description {
        name: "000000010000000000000001".into(),
        system_identifier: 7_710_896_607_187_077_353,
        timeline: Timeline(1),
        start_lsn: Some("0/1000000".parse().unwrap()),
        pg_major: Some(15),
        segment_size: None,
        modified: "2026-11-22T06:45:00Z".parse().unwrap(),
        archived: "2026-11-22T06:45:01Z".parse().unwrap(),
        host: "db1".into(),
    };
    encode(plain, plain.len() as u64, level, description).unwrap()
}

fn object(encoded: &Encoded) -> Vec<u8> {
    [&encoded.header_bytes[..], &encoded.frames[..]].concat()
}

fn decode(object: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (header, length) = Header::parse(&object[..object.len().min(4096)])?;
    let mut decoder = Decoder::new(header, length, Vec::new())?;
    for piece in object[length..].chunks(1000) {
        decoder.feed(piece)?;
    }
    decoder.finish().map(|(_, plain)| plain)
}

fn sample(size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(7);
    (0..size).map(|at| if at % 3 == 0 { random.u8(..) } else { u8::try_from(at / 512 % 256).unwrap() }).collect()
}

#[test]
fn what_was_encoded_comes_back_whatever_its_size() {
    for size in [0, 1, 4095, 4096, 4097, 1_000_000] {
        let plain = sample(size);
        assert_eq!(decode(&object(&encoded(&plain, 3))).unwrap(), plain);
    }
}

#[test]
fn the_plain_hash_does_not_depend_on_the_level() {
    let plain = sample(100_000);
    let (fast, small) = (encoded(&plain, -5), encoded(&plain, 19));
    assert_eq!(fast.header.blake3, small.header.blake3);
    assert_ne!(fast.header.sha256, small.header.sha256);
}

#[test]
fn an_ordinary_zstd_reader_yields_the_file() {
    let plain = sample(50_000);
    assert_eq!(zstd::decode_all(&object(&encoded(&plain, 3))[..]).unwrap(), plain);
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let object = object(&encoded(&sample(3000), 3));
    for at in 0..object.len() {
        for bit in [0, 3, 7] {
            let mut damaged = object.clone();
            damaged[at] ^= 1 << bit;
            assert!(decode(&damaged).is_err(), "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn an_object_cut_off_or_extended_anywhere_is_noticed() {
    let object = object(&encoded(&sample(3000), 3));
    for length in 0..object.len() {
        assert!(decode(&object[..length]).is_err(), "{length}");
    }
    assert!(matches!(decode(&[]).unwrap_err(), DecodeError::Header(InvalidHeader::Empty)));
    assert!(matches!(decode(&[&object[..], &object[..]].concat()).unwrap_err(), DecodeError::Length { .. }));
}

#[test]
fn a_frame_that_grows_beyond_its_header_is_stopped() {
    let mut encoded = encoded(&vec![0; 1 << 20], 3);
    encoded.header.size = 1000;
    encoded.header_bytes = encoded.header.to_bytes().unwrap().into();
    assert!(matches!(decode(&object(&encoded)).unwrap_err(), DecodeError::Size { expected: 1000, .. }));
}

#[test]
fn a_newer_format_is_told_apart_from_damage_and_unknown_fields_are_ignored() {
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = serde_json::to_value(encoded(b"x", 3).header).unwrap();
        change(&mut json);
        let json = serde_json::to_vec(&json).unwrap();
        let size = u32::try_from(json.len() + 4).unwrap();
        let mut bytes = [0x184D_2A50_u32.to_le_bytes(), size.to_le_bytes()].concat();
        bytes.extend_from_slice(&json);
        bytes.extend_from_slice(&crc32c::crc32c(&json).to_le_bytes());
        Header::parse(&bytes).map(|(header, _)| header)
    };
    assert_eq!(with(&|json| json["walkeep"] = 2.into()), Err(InvalidHeader::Newer(2)));
    assert!(with(&|json| json["last_xact_time"] = "2026-11-22T00:00:00Z".into()).is_ok());
    let number = with(&|json| json["system_identifier"] = 7_710_896_607_187_077_353_u64.into()).unwrap();
    assert_eq!(number.system_identifier, 7_710_896_607_187_077_353);
}

#[test]
fn a_header_never_exceeds_what_one_range_read_fetches() {
    let mut encoded = encoded(b"x", 3);
    encoded.header.host = "h".repeat(5000);
    assert_eq!(encoded.header.to_bytes(), Err(InvalidHeader::Size));
    assert!(encoded.header_bytes.len() as u64 <= MAX_BYTES);
}
