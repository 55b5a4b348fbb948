//! `archive-push`: stored once and for ever, or refused with a code PostgreSQL counts.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use walkeep_tests::binaries;
use walkeep_tests::ceph;
use walkeep_tests::cluster::{Cluster, StopMode};
use walkeep_tests::proxy::{Fault, Proxy, Rule};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Run, tool};
use walkeep_tests::scratch::Scratch;
use walkeep_tests::user;
use walkeep_tests::wait::{SOON, until};

use crate::samples::{DataDirectory, SEGMENT_BYTES, archive, ours, theirs, unpacked};

#[test]
fn every_kind_of_file_is_stored_under_its_name_and_opens_with_zstd() {
    for repository in [Repository::directory(), Repository::ceph()] {
        archive(ours(), &repository, ours().files.keys().map(String::as_str));
        for (name, content) in &ours().files {
            let key = repository.find(&format!("/{name}.zst"));
            let folder = if name.contains(".history") { "wal".to_owned() } else { format!("wal/{}", &name[..16]) };
            assert_eq!(key, format!("main/{}/{folder}/{name}.zst", ours().system_identifier));
            assert!(unpacked(&repository, &key) == *content, "{key}");
        }
        assert_eq!(ours().one(".history"), "00000002.history");
        assert!(!ours().one(".partial").is_empty() && !ours().one(".backup").is_empty());
        let identity: serde_json::Value =
            serde_json::from_slice(&repository.read(&repository.find("identity.json"))).unwrap();
        let number = &identity["system_identifier"];
        let number = number.as_u64().or_else(|| number.as_str()?.parse().ok());
        assert_eq!(number, Some(ours().system_identifier), "{identity}");
    }
}

/// A real server archives two segments of this size through `archive-push`.
fn archive_segments_of(mebibytes: u32) {
    let repository = Repository::directory();
    let command = format!("{} %p", binaries::archive_push().display());
    let cluster = Cluster::options().segment_size(mebibytes).environment(repository.environment());
    let cluster = cluster.archive_command(&command).start();
    for _ in 0..2 {
        let name = cluster.finish_segment();
        cluster.wait_until_archived(&name);
        let content = std::fs::read(cluster.data().join("pg_wal").join(&name)).unwrap();
        assert_eq!(content.len(), (mebibytes as usize) << 20);
        assert!(unpacked(&repository, &repository.find(&format!("{name}.zst"))) == content, "{name}");
    }
    assert_eq!(cluster.sql("select failed_count from pg_stat_archiver"), "0");
}

#[test]
fn segments_of_1_mib_are_archived() {
    archive_segments_of(1);
}

#[test]
fn segments_of_16_mib_are_archived() {
    archive_segments_of(16);
}

#[test]
fn segments_of_64_mib_are_archived() {
    archive_segments_of(64);
}

#[test]
#[ignore = "slow: reads and writes a gigabyte"]
fn a_segment_of_1_gib_is_archived() {
    let repository = Repository::directory();
    let directory = DataDirectory::new(ours());
    let name = "000000010000000000000001";
    let mut header = ours().files[ours().segments(1)[0]][..40].to_vec();
    header[8..16].copy_from_slice(&(1u64 << 30).to_le_bytes());
    header[32..36].copy_from_slice(&(1u32 << 30).to_le_bytes());
    directory.write(name, &header);
    let file = std::fs::File::options().write(true).open(directory.wal(name)).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(b"the end", (1 << 30) - 7).unwrap();
    directory.push(&repository, name).finish().expect_silent_success();
    let object = repository.path().join(repository.find(".zst"));
    let digest = |command: String| tool("sh", ["-c", &command]);
    let plain = digest(format!("sha256sum <{}", directory.wal(name).display()));
    assert_eq!(digest(format!("zstd -dc {} | sha256sum", object.display())), plain);
}

#[test]
fn the_path_may_be_absolute_and_the_working_directory_anywhere() {
    let repository = Repository::directory();
    let directory = DataDirectory::with_wal(ours());
    for name in [ours().segments(1)[0], ours().one(".history"), ours().one(".backup")] {
        let push = Run::new(binaries::archive_push()).arg(directory.wal(name)).envs(repository.environment());
        push.current_dir("/").finish().expect_silent_success();
        assert!(unpacked(&repository, &repository.find(&format!("{name}.zst"))) == ours().files[name]);
    }
}

#[test]
fn a_repetition_with_another_compression_level_succeeds_and_changes_nothing() {
    for mut repository in [Repository::directory(), Repository::ceph()] {
        let name = ours().segments(1)[0];
        archive(ours(), &repository, [name]);
        let (objects, stored) = (repository.objects(), repository.read(&repository.find(".zst")));
        repository.configure("compression_level = 19");
        archive(ours(), &repository, [name]);
        assert_eq!(repository.objects(), objects);
        assert!(repository.read(&repository.find(".zst")) == stored);
    }
}

#[test]
fn other_contents_under_an_archived_name_are_refused_and_explained() {
    for repository in [Repository::directory(), Repository::ceph()] {
        let name = ours().segments(1)[0];
        archive(ours(), &repository, [name]);
        let objects = repository.objects();
        let stored = repository.read(&repository.find(".zst"));

        let directory = DataDirectory::with_wal(ours());
        let mut other = ours().files[name].clone();
        other[3 * 8192 + 100] ^= 1;
        directory.write(name, &other);
        let refused = directory.push(&repository, name).finish();
        refused.expect_code(3).expect_stderr(&["archive-push: ERROR:", name, "page 3", "HINT:"]);
        let digests = refused.stderr.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64).count();
        assert_eq!(digests, 2, "both hashes are named\n{refused}");
        assert_eq!(refused.stderr.lines().count(), 2, "{refused}");

        assert_eq!(repository.objects(), objects);
        assert!(repository.read(&repository.find(".zst")) == stored);
        directory.push(&repository, name).finish().expect_code(3);
    }
}

#[test]
fn two_different_partial_segments_of_one_name_are_both_kept() {
    for repository in [Repository::directory(), Repository::ceph()] {
        let name = ours().one(".partial");
        archive(ours(), &repository, [name]);
        let directory = DataDirectory::with_wal(ours());
        let mut other = ours().files[name].clone();
        *other.last_mut().unwrap() ^= 1;
        directory.write(name, &other);
        // The second time it is the same as the one beside the first.
        for _ in 0..2 {
            directory.push(&repository, name).finish().expect_code(0);
        }
        let kept = repository.objects().into_iter().filter(|key| key.contains(name)).collect::<Vec<_>>();
        assert_eq!(kept.len(), 2, "{kept:?}");
        let contents = kept.iter().map(|key| unpacked(&repository, key)).collect::<Vec<_>>();
        assert!(contents.contains(&other) && contents.contains(&ours().files[name]));
    }
}

#[test]
fn what_is_not_a_wal_file_of_this_cluster_is_refused_and_never_stored() {
    let repository = Repository::directory();
    let segments = ours().segments(1);
    let [first, second] = [segments[0], segments[1]];
    let segment = &ours().files[first];
    let with = |at: usize, byte: u8| {
        let mut changed = segment.clone();
        changed[at] = byte;
        changed
    };
    let newer_timeline = format!("00000003{}", &first[8..]);
    let cases: Vec<(&str, &str, Vec<u8>)> = vec![
        ("no segment's name", "RECOVERYXLOG", segment.clone()),
        ("a compressed file", "000000010000000000000001.zst", segment.clone()),
        ("small letters", "00000001000000000000000a", segment.clone()),
        ("cut short", first, segment[..SEGMENT_BYTES - 1].to_vec()),
        ("too long", first, [segment.as_slice(), b"x"].concat()),
        ("empty", first, Vec::new()),
        ("zeros", first, vec![0; SEGMENT_BYTES]),
        ("text", first, b"not WAL at all\n".repeat(80_000)[..SEGMENT_BYTES].to_vec()),
        ("another segment's contents", first, ours().files[second].clone()),
        ("a timeline above its name's", first, with(4, 2)),
        ("another cluster's", first, with(24, segment[24] ^ 1)),
        ("another segment size", first, with(34, 0x20)),
        ("an empty history", "00000002.history", Vec::new()),
        ("a history of nonsense", "00000002.history", b"\x00\x01garbage".to_vec()),
        ("a history that ends above itself", "00000002.history", b"5\t0/3000000\tno\n".to_vec()),
        ("an empty backup history", ours().one(".backup"), Vec::new()),
    ];
    for (what, name, content) in &cases {
        let directory = DataDirectory::new(ours());
        directory.write(name, content);
        let refused = directory.push(&repository, name).finish();
        assert!(refused.code() == 4 && refused.stderr.contains("archive-push: ERROR:"), "{what}\n{refused}");
        assert!(refused.stdout.is_empty(), "{what}\n{refused}");
    }
    let directory = DataDirectory::new(ours());
    directory.push(&repository, first).finish().expect_code(4);
    directory.push(&repository, "archive_status").finish().expect_code(4);
    assert_eq!(repository.objects(), Vec::<String>::new());

    // An old segment's header on a newer name is how a new timeline begins.
    directory.write(&newer_timeline, segment);
    directory.push(&repository, &newer_timeline).finish().expect_code(0);
}

#[test]
fn another_cluster_gets_its_own_folder_and_collides_with_nothing() {
    let repository = Repository::directory();
    let name = ours().segments(1)[0];
    archive(ours(), &repository, [name, "00000002.history"]);
    archive(theirs(), &repository, [name, "00000002.history"]);
    for samples in [ours(), theirs()] {
        let key = repository.find(&format!("{}/wal/{}/{name}.zst", samples.system_identifier, &name[..16]));
        assert!(unpacked(&repository, &key) == samples.files[name]);
    }
}

#[test]
fn a_segment_of_a_newer_postgresql_is_archived_with_a_warning() {
    let repository = Repository::directory();
    let directory = DataDirectory::new(ours());
    let name = ours().segments(1)[0];
    let mut content = ours().files[name].clone();
    content[..2].copy_from_slice(&0xD1FEu16.to_le_bytes());
    directory.write(name, &content);
    let pushed = directory.push(&repository, name).finish();
    pushed.expect_code(0).expect_stderr(&["WARNING", name, "D1FE"]);
    assert!(unpacked(&repository, &repository.find(".zst")) == content);
}

#[test]
fn the_other_branch_s_segment_is_kept_aside_after_a_failover() {
    let repository = Repository::directory();
    let directory = DataDirectory::with_wal(ours());
    // The old primary went on in the segment in which the standby was promoted, and archived it whole.
    let switch = ours().one(".partial").strip_suffix(".partial").unwrap();
    let mut theirs = ours().files[ours().one(".partial")].clone();
    directory.write(switch, &theirs);
    directory.push(&repository, switch).finish().expect_silent_success();
    let first = repository.read(&repository.find(&format!("{switch}.zst")));

    theirs[SEGMENT_BYTES - 1] ^= 1;
    directory.write(switch, &theirs);
    directory.push(&repository, switch).finish().expect_code(0).expect_stderr(&["WARNING", switch]);
    assert!(repository.read(&repository.find(&format!("{switch}.zst"))) == first);
    let fork = repository.objects().into_iter().find(|key| key.contains(&format!("{switch}.fork."))).unwrap();
    assert!(unpacked(&repository, &fork) == theirs);

    // Without the history nothing explains the difference.
    std::fs::remove_file(directory.wal("00000002.history")).unwrap();
    directory.push(&repository, switch).finish().expect_code(3);
}

#[test]
fn root_is_refused() {
    if !user::is_root() {
        return;
    }
    let repository = Repository::directory();
    let directory = DataDirectory::with_wal(ours());
    let refused = directory.push(&repository, ours().segments(1)[0]).as_caller().finish();
    refused.expect_code(2).expect_stderr(&["root", "--allow-root"]);
    assert_eq!(repository.objects(), Vec::<String>::new());
}

#[test]
fn a_repository_directory_that_is_not_there_is_not_created() {
    let mut repository = Repository::directory();
    let missing = repository.scratch().path().join("not-mounted");
    repository.set_url(&format!("file://{}", missing.display()));
    let directory = DataDirectory::with_wal(ours());
    let refused = directory.push(&repository, ours().segments(1)[0]).finish();
    refused.expect_code(5).expect_stderr(&[missing.to_str().unwrap()]);
    assert!(!missing.exists());
}

#[test]
fn an_empty_directory_where_the_repository_was_is_taken_for_a_missing_mount() {
    let repository = Repository::directory();
    let segments = ours().segments(1);
    archive(ours(), &repository, [segments[0]]);
    let away = repository.scratch().path().join("unmounted");
    std::fs::rename(repository.path(), &away).unwrap();
    repository.scratch().create_private("repository");
    let directory = DataDirectory::with_wal(ours());
    directory.push(&repository, segments[1]).finish().expect_code(5).expect_stderr(&["identity.json"]);
    assert_eq!(repository.objects(), Vec::<String>::new());
    std::fs::remove_dir(repository.path()).unwrap();
    std::fs::rename(&away, repository.path()).unwrap();
    directory.push(&repository, segments[1]).finish().expect_silent_success();
}

#[test]
fn a_repository_directory_closed_to_us_is_refused() {
    let repository = Repository::directory();
    tool("chmod", ["000", repository.path().to_str().unwrap()]);
    let directory = DataDirectory::with_wal(ours());
    let refused = directory.push(&repository, ours().segments(1)[0]).finish();
    tool("chmod", ["700", repository.path().to_str().unwrap()]);
    refused.expect_code(5);
}

#[test]
fn a_mistake_in_the_configuration_names_the_key_that_was_meant() {
    let mut repository = Repository::directory();
    repository.configure("compresion_level = 5");
    let directory = DataDirectory::with_wal(ours());
    let name = ours().segments(1)[0];
    let refused = directory.push(&repository, name).finish();
    refused.expect_code(2).expect_stderr(&["compresion_level", "compression_level", "walkeep.toml", "line 2"]);

    let without = Run::new(binaries::archive_push()).arg(format!("pg_wal/{name}")).current_dir(directory.path());
    without.clone().finish().expect_code(2).expect_stderr(&["repository"]);
    without
        .clone()
        .arg("--config")
        .arg("/nonexistent.toml")
        .finish()
        .expect_code(2)
        .expect_stderr(&["/nonexistent.toml"]);
    without.clone().arg("second").finish().expect_code(2);
    without.arg("--repository").arg("ftp://host/path").finish().expect_code(2).expect_stderr(&["ftp"]);
    Run::new(binaries::archive_push()).finish().expect_code(2);
}

type Damage = fn(&Repository, &str);
type Spoil = fn(&Path);

#[test]
fn a_damaged_copy_in_the_archive_is_called_that() {
    let name = ours().segments(1)[0];
    let damage: [(_, Damage); 3] = [
        ("empty", |repository, key| repository.write(key, b"")),
        ("cut", |repository, key| repository.truncate(key, repository.read(key).len() / 2)),
        ("header", |repository, key| repository.flip_bit(key, 20)),
    ];
    for (what, damage) in damage {
        let repository = Repository::directory();
        archive(ours(), &repository, [name]);
        let key = repository.find(".zst");
        damage(&repository, &key);
        let damaged = repository.read(&key);
        let refused = DataDirectory::with_wal(ours()).push(&repository, name).finish();
        assert_eq!(refused.code(), 3, "{what}\n{refused}");
        refused.expect_stderr(&["damaged copy", name, "HINT:"]);
        assert!(repository.read(&key) == damaged, "{what}: the evidence stays");
        repository.delete(&key);
        archive(ours(), &repository, [name]);
    }
}

#[test]
fn failures_are_counted_by_the_server_and_archiving_goes_on_afterwards() {
    let mut repository = Repository::directory();
    let later = repository.scratch().path().join("later");
    repository.set_url(&format!("file://{}", later.display()));
    let command = format!("{} %p", binaries::archive_push().display());
    let cluster = Cluster::options().segment_size(1).environment(repository.environment());
    let cluster = cluster.archive_command(&command).start();
    let name = cluster.finish_segment();
    cluster.wait_for("select failed_count > 0 and archived_count = 0 from pg_stat_archiver", "t");
    assert!(cluster.log().contains("archive command failed with exit code 5"), "{}", cluster.log());
    repository.scratch().create_private("later");
    // Wakes the archiver, which otherwise waits for a minute after three failures.
    let next = cluster.finish_segment();
    cluster.wait_until_archived(&name);
    cluster.wait_until_archived(&next);
}

#[test]
fn the_exit_code_is_one_postgresql_counts_even_without_memory() {
    let repository = Repository::directory();
    let directory = DataDirectory::with_wal(ours());
    // The program itself fits, the segment and its compressed copy do not.
    for limit in [24, 48, 64, 80] {
        let push = directory.push(&repository, ours().segments(1)[0]);
        let finished = push.under(["prlimit".to_owned(), format!("--as={}", limit << 20), "--".to_owned()]).finish();
        assert!(finished.status.code().is_some_and(|code| code <= 127), "{limit} MiB: {finished}");
    }
}

/// Everything below a directory, with what a write would change.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_dir() {
                open.push(path.clone());
            }
            found.insert(path, (metadata.mode(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()));
        }
    }
    found
}

#[test]
fn nothing_is_readable_by_others_whatever_the_umask() {
    let repository = Repository::directory();
    let directory = DataDirectory::with_wal(ours());
    directory.push(&repository, ours().segments(1)[0]).umask(0).finish().expect_silent_success();
    let written = [repository.path().to_owned(), repository.spool(), repository.scratch().path().join("run")];
    let written = written.iter().flat_map(|root| tree(root)).collect::<Vec<_>>();
    assert!(written.len() > 5, "{written:?}");
    for (path, (mode, ..)) in written {
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
    }
}

#[test]
fn nothing_is_written_into_the_data_directory() {
    let repository = Repository::directory();
    let directory = DataDirectory::with_wal(ours());
    let before = tree(directory.path());
    for name in ours().files.keys() {
        directory.push(&repository, name).finish().expect_silent_success();
    }
    let mut conflicting = ours().files[ours().segments(1)[0]].clone();
    conflicting[SEGMENT_BYTES - 1] ^= 1;
    assert_eq!(tree(directory.path()), before);
    directory.write(ours().segments(1)[0], &conflicting);
    let before = tree(directory.path());
    directory.push(&repository, ours().segments(1)[0]).finish().expect_code(3);
    assert_eq!(tree(directory.path()), before);
}

#[test]
fn a_data_directory_reached_through_a_link_with_blanks_and_quotes_is_fine() {
    let repository = Repository::directory();
    let command = format!("{} \"%p\"", binaries::archive_push().display());
    let elsewhere = Scratch::new("link");
    let cluster = Cluster::options().segment_size(1).environment(repository.environment());
    let mut cluster = cluster.data_directory_name("it's \"the\" data").archive_command(&command).create();
    let real = elsewhere.path().join("real data");
    tool("mv", [cluster.data(), &real]);
    std::os::unix::fs::symlink(&real, cluster.data()).unwrap();
    cluster.start();
    let name = cluster.finish_segment();
    cluster.wait_until_archived(&name);
    assert_eq!(unpacked(&repository, &repository.find(&format!("{name}.zst"))).len(), SEGMENT_BYTES);
    cluster.stop(StopMode::Fast);
}

#[test]
fn an_unusable_spool_costs_a_warning_and_nothing_else() {
    let unusable: [(_, Spoil); 3] = [
        ("a file", |spool| {
            std::fs::remove_dir_all(spool).unwrap();
            std::fs::write(spool, "").unwrap();
        }),
        ("read-only", |spool| {
            tool("chmod", ["500", spool.to_str().unwrap()]);
        }),
        ("garbage", |spool| {
            for name in std::fs::read_dir(spool).unwrap() {
                std::fs::write(name.unwrap().path(), b"\xFF\x00garbage").unwrap();
            }
        }),
    ];
    for (what, spoil) in unusable {
        let repository = Repository::directory();
        let segments = ours().segments(1);
        archive(ours(), &repository, [segments[0]]);
        spoil(&repository.spool());
        let pushed = DataDirectory::with_wal(ours()).push(&repository, segments[1]).finish();
        assert!(pushed.code() == 0 && pushed.stderr.lines().count() <= 1, "{what}: {pushed}");
        if what != "garbage" {
            pushed.expect_stderr(&["WARNING", "spool"]);
        }
        repository.find(&format!("{}.zst", segments[1]));
    }
}

#[test]
fn the_file_is_synced_then_linked_then_its_directory_is_synced() {
    let repository = Repository::directory();
    let directory = DataDirectory::with_wal(ours());
    let segments = ours().segments(1);
    archive(ours(), &repository, [segments[0]]);
    let trace = repository.scratch().path().join("trace");
    let wrapper = ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync,link,linkat,rename,renameat,renameat2", "-o"];
    let wrapper = wrapper.iter().map(PathBuf::from).chain([trace.clone()]);
    directory.push(&repository, segments[1]).under(wrapper).finish().expect_code(0);

    let trace = std::fs::read_to_string(trace).unwrap();
    let lines = trace.lines().collect::<Vec<_>>();
    let key = repository.find(&format!("{}.zst", segments[1]));
    let target = repository.path().join(&key);
    let publishes = |line: &&str| {
        (line.contains("link") || line.contains("rename")) && line.contains(&format!("\"{}\"", target.display()))
    };
    let published = lines.iter().position(publishes);
    let published = published.unwrap_or_else(|| panic!("never published under {key}\n{trace}"));
    let is_sync = |line: &str| line.contains("sync(") && line.ends_with("= 0");
    let folder = format!("<{}>", target.parent().unwrap().display());
    let file_synced =
        lines[..published].iter().any(|line| is_sync(line) && line.contains(&format!("{}", target.display())));
    let folder_synced = lines[published..].iter().any(|line| is_sync(line) && line.contains(&folder));
    assert!(file_synced && folder_synced, "file synced before: {file_synced}, folder after: {folder_synced}\n{trace}");
}

#[test]
fn a_fast_shutdown_ends_while_the_repository_answers_and_takes_nothing() {
    let mut repository = Repository::ceph();
    // No worker goes on with an upload that a call has given up.
    tool("chmod", ["755", repository.scratch().path().join("run").to_str().unwrap()]);
    let proxy = Proxy::start(&ceph::shared().endpoint);
    repository.set_proxy(&proxy);
    let command = format!("{} %p", binaries::archive_push().display());
    let cluster = Cluster::options().segment_size(1).environment(repository.environment());
    let mut cluster = cluster.archive_command(&command).start();
    cluster.wait_until_archived(&cluster.finish_segment());
    proxy.add(Rule::all(Fault::Silence).method("PUT"));
    proxy.forget_requests();
    for _ in 0..5 {
        cluster.finish_segment();
    }
    until("the archiver asks the silent store", SOON, || (!proxy.requests().is_empty()).then_some(()));
    let started = Instant::now();
    cluster.stop(StopMode::Fast);
    assert!(started.elapsed() < Duration::from_secs(45), "{:?}", started.elapsed());
}
