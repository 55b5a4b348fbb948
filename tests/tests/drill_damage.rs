//! What is spoilt, and who notices: `verify` reads every byte, a drill what recovery needs, and what was wrong before it was
//! stored only a drill can see.

use serde_json::Value;
use walkeep_tests::binaries;
use walkeep_tests::cluster::StopMode;
use walkeep_tests::repository::Repository;
use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;

use crate::drill::{check, drill, drilling, place};
use crate::site::{Shared, archiving, copy_of, take};
use crate::verify::{Estate, findings, names, show};

/// What is done to an object.
#[derive(Debug, Clone, Copy)]
enum Spoil {
    Remove,
    Truncate,
    Flip,
    /// Put the object with this ending in its place.
    Swap(&'static str),
    /// Change its contents as somebody with an editor would, who compresses it again.
    Edit(&'static str, &'static str),
}

/// Whether a drill of the backup notices.
#[derive(Debug, Clone, Copy)]
enum Drill {
    /// It fails, and says so.
    Fails(&'static str),
    /// Nothing that it needs is gone.
    Passes,
}

use Drill::{Fails, Passes};
use Spoil::{Edit, Flip, Remove, Swap, Truncate};

/// The objects, what is done to each, and whether a drill fails: of the second backup, whose recovery goes over to timeline
/// 2, or where the segment is one in which the first begins or ends, of that. `verify` finds every one.
const TABLE: [(&str, Spoil, Drill); 26] = [
    ("SECOND/backup.json", Truncate, Fails("cannot be used")),
    ("SECOND/backup.json", Swap("FIRST/backup.json"), Fails("cannot be used")),
    ("SECOND/backup.json", Edit("\"host\": \"", "\"host\": \"x"), Passes),
    ("SECOND/begin.json", Remove, Passes),
    ("SECOND/pack-00001.tar.zst", Remove, Fails("pack-00001.tar.zst")),
    ("SECOND/pack-00001.tar.zst", Truncate, Fails("pack-00001.tar.zst")),
    ("SECOND/pack-00001.tar.zst", Flip, Fails("pack-00001.tar.zst")),
    ("SECOND/pack-00001.tar.zst", Swap("FIRST/pack-00001.tar.zst"), Fails("pack-00001.tar.zst")),
    ("SECOND/files.ndjson.zst", Remove, Fails("files.ndjson.zst")),
    ("SECOND/files.ndjson.zst", Flip, Fails("files.ndjson.zst")),
    ("SECOND/files.ndjson.zst", Swap("FIRST/files.ndjson.zst"), Fails("files.ndjson.zst")),
    ("SECOND/backup_manifest.zst", Remove, Fails("backup_manifest.zst")),
    ("SECOND/backup_manifest.zst", Flip, Fails("backup_manifest.zst")),
    ("SECOND/backup_manifest.zst", Edit("\"PG_VERSION\"", "\"PG_VERSIOM\""), Fails("backup_manifest.zst")),
    // The segments in which recovery of the first backup begins, and in which it becomes consistent.
    ("START.zst", Remove, Fails("START")),
    ("START.zst", Flip, Fails("START")),
    ("START.zst", Swap("BEFORE.zst"), Fails("START")),
    ("STOP.zst", Remove, Fails("STOP")),
    // On the second timeline, in the middle and at the end.
    ("MIDDLE.zst", Remove, Fails("MIDDLE")),
    ("MIDDLE.zst", Truncate, Fails("MIDDLE")),
    ("MIDDLE.zst", Swap("LAST.zst"), Fails("MIDDLE")),
    ("LAST.zst", Flip, Fails("LAST")),
    ("00000002.history.zst", Remove, Fails("00000002.history")),
    ("00000002.history.zst", Flip, Fails("00000002.history")),
    ("00000002.history.zst", Truncate, Fails("00000002.history")),
    ("identity.json", Flip, Passes),
];

#[test]
fn what_is_spoilt_is_found_by_verify_and_fails_the_drill_that_needs_it() {
    let estate = Estate::shared();
    let repository = copy_of(&estate.repository);
    let backup = show(&repository, &estate.first);
    let name = |field: &str| backup[field].as_str().unwrap().to_owned();
    let (start, stop) = (name("start_wal"), name("stop_wal"));
    let numbered =
        |name: &str, less: u64| format!("{}{:08X}", &name[..16], u64::from_str_radix(&name[16..], 16).unwrap() - less);
    let objects = repository.objects();
    let later: Vec<&str> = objects
        .iter()
        .filter(|key| key.contains("/wal/00000002") && !key.contains("/base/") && key.len() > 24)
        .filter_map(|key| key.rsplit('/').next()?.strip_suffix(".zst"))
        .filter(|name| name.len() == 24)
        .collect();
    let (middle, last) = (later[later.len() - 2].to_owned(), later[later.len() - 1].to_owned());
    let named = |text: &str| {
        text.replace("SECOND", &estate.second)
            .replace("FIRST", &estate.first)
            .replace("START", &start)
            .replace("BEFORE", &numbered(&start, 1))
            .replace("STOP", &stop)
            .replace("MIDDLE", &middle)
            .replace("LAST", &last)
    };
    let mut wrong = Vec::new();
    for (object, spoil, expected) in TABLE {
        let key = repository.find(&format!("/{}", named(object)));
        let bytes = repository.read(&key);
        match spoil {
            Remove => repository.delete(&key),
            Truncate => repository.truncate(&key, bytes.len() / 2),
            Flip => repository.flip_bit(&key, bytes.len() / 2),
            Swap(other) => repository.write(&key, &repository.read(&repository.find(&format!("/{}", named(other))))),
            Edit(from, to) => repository.write(&key, &edited(&bytes, from, to)),
        }
        let found = findings(&repository, &["--all", "--wal"]);
        if !found.iter().any(|finding| names(finding, &key)) {
            wrong.push(format!("verify: {object} {spoil:?}: {found:?}"));
        }
        let is_of_first = object.starts_with("START") || object.starts_with("STOP");
        let (drilled, record) = drill(&repository, &[if is_of_first { &estate.first } else { &estate.second }]);
        let said = format!("{}{}", record["problem"].as_str().unwrap_or(""), record["checks"]);
        let is_as_expected = match expected {
            Fails(words) => drilled.code() == 4 && record["verdict"] == "failed" && said.contains(&named(words)),
            Passes => drilled.code() == 0 && record["verdict"] == "passed",
        };
        if !is_as_expected {
            wrong.push(format!("drill: {object} {spoil:?}: {drilled}"));
        }
        repository.write(&key, &bytes);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What somebody with an editor makes of an object, compressed or not.
fn edited(stored: &[u8], from: &str, to: &str) -> Vec<u8> {
    let is_compressed = std::str::from_utf8(stored).is_err();
    let plain = if is_compressed { zstd::decode_all(stored).unwrap() } else { stored.to_vec() };
    let text = String::from_utf8(plain).unwrap();
    assert!(text.contains(from), "{from} is not in it");
    let text = text.replacen(from, to, 1);
    if is_compressed { zstd::encode_all(text.as_bytes(), 3).unwrap() } else { text.into_bytes() }
}

/// A repository with a backup and some segments behind it.
struct Simple {
    repository: Repository,
    /// Archived behind the backup, in order.
    segments: Vec<String>,
}

impl Simple {
    fn shared() -> std::sync::Arc<Self> {
        static SHARED: Shared<Simple> = Shared::new();
        SHARED.get(|| {
            let repository = Repository::directory();
            let mut server = archiving(&repository).checksums().start();
            server.sql("create table t as select generate_series(1, 1000) n");
            take(&repository, &server);
            let fill = || {
                server.sql("insert into t select generate_series(1, 5000)");
                server.finish_segment()
            };
            let segments: Vec<String> = (0..4).map(|_| fill()).collect();
            server.wait_until_archived(&segments[3]);
            server.stop(StopMode::Fast);
            Self { repository, segments }
        })
    }
}

#[test]
fn a_segment_whose_records_end_too_soon_is_no_end_of_the_archive() {
    let simple = Simple::shared();
    let repository = copy_of(&simple.repository);
    // An older state of the segment, archived as such: every hash is right, and PostgreSQL takes it for the end of the WAL.
    let spoil = |name: &str| {
        let key = repository.find(&format!("/{name}.zst"));
        let mut plain = zstd::decode_all(&repository.read(&key)[..]).unwrap();
        plain[200_000..].fill(0);
        let (elsewhere, files) = (Repository::directory(), Scratch::new("older"));
        files.write(name, &plain);
        let push = Run::new(binaries::archive_push()).arg(files.path().join(name)).envs(elsewhere.environment());
        push.finish().expect_code(0);
        let bytes = elsewhere.read(&elsewhere.find(&format!("/{name}.zst")));
        let before = repository.read(&key);
        repository.write(&key, &bytes);
        (key, before)
    };
    let (key, before) = spoil(&simple.segments[1]);
    assert!(findings(&repository, &["--all", "--wal"]).is_empty(), "verify has nothing to compare it with");
    let (drilled, record) = drill(&repository, &[]);
    drilled.expect_code(4);
    let detail = check(&record, "recovery")["detail"].as_str().unwrap();
    assert!(detail.contains("the records end at") && detail.contains("though WAL is archived up to"), "{record:#}");
    repository.write(&key, &before);

    // In the last segment it may be the end: it is told.
    spoil(&simple.segments[3]);
    let (_, record) = drill(&repository, &[]);
    assert_eq!(check(&record, "recovery")["outcome"], "warning", "{record:#}");
}

#[test]
fn the_restore_points_of_backups_are_found_or_missed() {
    let simple = Simple::shared();
    let repository = copy_of(&simple.repository);
    let id = show(&repository, "latest")["id"].as_str().unwrap().to_owned();
    let point = format!("walkeep-{id}");
    let (_, record) = drill(&repository, &[]);
    assert_eq!(check(&record, "restore points")["outcome"], "passed", "{record:#}");
    let (drilled, record) = drill(&repository, &["--target", &point]);
    drilled.expect_code(0);
    assert!(record["stopped"].as_str().unwrap().contains(&point), "{record:#}");
    // Recovery that ends with the backup does not come to it.
    let (_, record) = drill(&repository, &["--target", "immediate"]);
    assert!(record["checks"].as_array().unwrap().iter().all(|check| check["name"] != "restore points"), "{record:#}");

    // A record of a backup that speaks of one which is not there.
    let key = repository.find("/backup.json");
    let text = String::from_utf8(repository.read(&key)).unwrap();
    repository.write(&key, text.replacen(&point, "walkeep-other", 1).as_bytes());
    let (drilled, record) = drill(&repository, &[]);
    drilled.expect_code(4);
    assert_eq!(check(&record, "restore points")["outcome"], "failed", "{record:#}");
}

#[test]
fn a_page_of_a_catalog_that_was_zeros_before_the_backup_fails_the_drill_alone() {
    use std::os::unix::fs::FileExt as _;
    let repository = Repository::directory();
    let mut server = archiving(&repository).checksums().start();
    // Its columns fill pages of their own.
    let columns: Vec<String> = (0..400).map(|number| format!("column_{number} int")).collect();
    server.sql(&format!("create table victim ({})", columns.join(", ")));
    let page = server.sql(
        "select (ctid::text::point)[0] from pg_attribute where attrelid = 'victim'::regclass and attname = 'column_200'",
    );
    let file = server.sql("select pg_relation_filepath('pg_attribute')");
    server.stop(StopMode::Fast);
    let file = std::fs::File::options().write(true).open(server.data().join(file)).unwrap();
    file.write_all_at(&[0; 8192], page.parse::<u64>().unwrap() * 8192).unwrap();
    server.start();
    take(&repository, &server);
    server.stop(StopMode::Fast);
    assert!(findings(&repository, &["--all", "--wal"]).is_empty(), "every object is as it was stored");
    let (drilled, record) = drill(&repository, &[]);
    drilled.expect_code(4);
    let databases = check(&record, "databases");
    assert!(databases["detail"].as_str().unwrap().contains("columns of public.victim"), "{record:#}");
}

#[test]
fn where_the_backup_cannot_be_read_the_record_says_so() {
    let simple = Simple::shared();
    let repository = copy_of(&simple.repository);
    let key = repository.find("/backup.json");
    repository.truncate(&key, 100);
    let place = place();
    for words in [&[][..], &["latest"]] {
        let drilled = drilling(&repository, &place, &[words, &["--format", "json"]].concat()).finish();
        let record: Value = serde_json::from_str(&drilled.expect_code(4).stdout).unwrap();
        assert!(record["problem"].as_str().unwrap().contains("cannot be used"), "{record:#}");
    }
}
