//! What every store must do: one contract, kept by a directory, Ceph in the clear and with TLS, Azure's emulator, and as
//! far as it can by a server that ignores conditional puts.
//!
//! Credentials come from a process's environment, which all threads of a test process share. So whatever opens a
//! [`Store`] here is an ignored test, run by another one in a process of its own.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path as Key;
use walkeep_common::config::{Config, Flags};
use walkeep_common::error::{Error, Kind};
use walkeep_common::repository::layout::{BackupId, Layout, probe};
use walkeep_common::retry::Patience;
use walkeep_common::store::{CreateOnly, Created, Store};
use walkeep_tests::ceph::{self, Credentials};
use walkeep_tests::emulator::{Azurite, S3rver};
use walkeep_tests::repository::Repository;
use walkeep_tests::run::{Finished, Run, tool};

/// The word for what the store is expected to do about conditional puts.
const EXPECTED: &str = "EXPECTED_CREATE_ONLY";
/// Stands at the end of what a part prints: it ran, and ran to its end.
const KEPT: &str = "the part was run to its end";

/// Runs one of the ignored tests in a process of its own, with this environment.
fn part(name: &str, environment: &[(String, String)]) -> Run {
    let this_test = std::env::current_exe().unwrap();
    let run = Run::new(this_test).args(["--exact", &format!("store_contract::{name}"), "--ignored", "--nocapture"]);
    run.envs(environment).as_caller()
}

#[track_caller]
fn expect_kept(finished: &Finished) {
    assert!(finished.code() == 0 && finished.stdout.contains(KEPT), "{finished}");
}

/// Runs a part with the store that the environment describes; does nothing when it describes none.
#[expect(clippy::print_stdout, reason = "the process that runs the part reads it")]
fn with_store<F: Future<Output = ()>>(part: impl FnOnce(Store) -> F) {
    if std::env::var_os("WALKEEP_CONFIG").is_none() {
        return;
    }
    let config = Config::resolve(&Flags::default(), |name| std::env::var(name).ok()).unwrap();
    let store = Store::open(&config, Patience::For(Duration::from_secs(20))).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(part(store));
    println!("{KEPT}");
}

#[test]
fn a_directory_keeps_the_contract() {
    let repository = Repository::directory();
    expect_kept(&part("contract", repository.environment()).env(EXPECTED, "enforced").finish());
    // Parts of uploads are staged beside their object, under names a listing does not show.
    let staged = repository.objects().into_iter().filter(|key| key.contains('#')).collect::<Vec<_>>();
    assert_eq!(staged, Vec::<String>::new());
}

#[test]
fn ceph_keeps_the_contract() {
    let repository = Repository::ceph();
    expect_kept(&part("contract", repository.environment()).env(EXPECTED, "enforced").finish());
    assert_eq!(unfinished_uploads(&repository), 0);
}

#[test]
fn ceph_keeps_the_contract_over_tls_with_its_own_authority() {
    expect_kept(&part("contract", Repository::ceph_with_tls().environment()).env(EXPECTED, "enforced").finish());
}

#[test]
fn azurite_keeps_the_contract() {
    let server = Azurite::start("container");
    let repository = Repository::azurite(&server, "container");
    expect_kept(&part("contract", repository.environment()).env(EXPECTED, "enforced").finish());
}

#[test]
fn a_server_that_ignores_conditional_puts_is_found_out_and_looked_at_first() {
    let server = S3rver::start("bucket");
    let repository = Repository::s3rver(&server, "bucket");
    expect_kept(&part("contract", repository.environment()).env(EXPECTED, "not-enforced").finish());
}

#[test]
#[ignore = "a part of the others, in a process of its own"]
fn contract() {
    with_store(|store| async move {
        let expected = CreateOnly::from_word(&std::env::var(EXPECTED).unwrap()).unwrap();
        for number in 1..=2 {
            assert_eq!(store.probe_create_only(&probe(number)).await.unwrap(), expected);
        }
        // Before a store is known, nothing is believed; then what is known counts. Both must refuse.
        creates_once(&store, "unknown").await;
        store.set_create_only(expected);
        creates_once(&store, "known").await;
        if expected == CreateOnly::Enforced {
            one_of_many_writers_wins(&store).await;
        }
        reads_what_is_there(&store).await;
        ranges_end_where_the_object_ends(&store).await;
        // s3rver cannot make the token for a second page: it wants a cipher that today's OpenSSL does not have.
        let listed = if expected == CreateOnly::Enforced { 1100 } else { 900 };
        listings_are_complete_and_sorted(&store, listed).await;
        keys_of_our_layout_come_back(&store).await;
        uploads_appear_whole_or_not_at_all(&store).await;
        secrets_are_not_printed(&store).await;
    });
}

async fn creates_once(store: &Store, folder: &str) {
    let key = Key::from(format!("create/{folder}/object"));
    assert_eq!(store.create(&key, &b"first"[..]).await.unwrap(), Created::New);
    assert_eq!(store.create(&key, &b"first"[..]).await.unwrap(), Created::Exists);
    assert_eq!(store.create(&key, &b"second"[..]).await.unwrap(), Created::Exists);
    assert_eq!(store.read(&key, 100).await.unwrap().unwrap(), "first");
    let empty = Key::from(format!("create/{folder}/empty"));
    assert_eq!(store.create(&empty, Bytes::new()).await.unwrap(), Created::New);
    assert_eq!(store.create(&empty, &b"x"[..]).await.unwrap(), Created::Exists);
    assert_eq!(store.head(&empty).await.unwrap().unwrap().size, 0);
}

async fn one_of_many_writers_wins(store: &Store) {
    const WRITERS: u8 = 16;
    for round in 0..5 {
        let key = Key::from(format!("race/{round}"));
        let body = |writer: u8| Bytes::from(vec![writer; 100_000]);
        let writers = (0..WRITERS).map(|writer| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move { (writer, store.create(&key, body(writer)).await.unwrap()) })
        });
        let results = futures::future::try_join_all(writers).await.unwrap();
        let winners: Vec<u8> =
            results.iter().filter(|(_, created)| *created == Created::New).map(|(writer, _)| *writer).collect();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        assert!(store.read(&key, 1 << 20).await.unwrap().unwrap() == body(winners[0]), "round {round}");
    }
}

async fn reads_what_is_there(store: &Store) {
    let missing = Key::from("read/missing");
    assert_eq!(store.head(&missing).await.unwrap(), None);
    assert_eq!(store.read(&missing, 10).await.unwrap(), None);
    assert_eq!(store.read_range(&missing, 0..10).await.unwrap(), None);
    assert!(store.open_once(&missing).await.unwrap().is_none());

    let key = Key::from("read/object");
    let content = Bytes::from((0..9_000_001_u32).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<_>>());
    store.create(&key, content.clone()).await.unwrap();
    let found = store.head(&key).await.unwrap().unwrap();
    assert_eq!((&found.key, found.size), (&key, content.len() as u64));
    let age = jiff::Timestamp::now().duration_since(found.modified);
    assert!(age.as_secs().abs() < 600, "taken {age:?} ago");
    assert!(store.read(&key, found.size).await.unwrap().unwrap() == content);
    assert_eq!(store.read(&key, found.size - 1).await.unwrap_err().kind(), Kind::Damaged, "longer than allowed");

    let mut reading = store.open_once(&key).await.unwrap().unwrap();
    assert_eq!(reading.size, found.size);
    let mut read = Vec::new();
    while let Some(chunk) = reading.next().await.unwrap() {
        read.extend_from_slice(&chunk);
    }
    assert!(read == content);
}

async fn ranges_end_where_the_object_ends(store: &Store) {
    let (key, empty) = (Key::from("range/object"), Key::from("range/empty"));
    store.create(&key, &b"0123456789"[..]).await.unwrap();
    store.create(&empty, Bytes::new()).await.unwrap();
    let range = async |key, range| store.read_range(key, range).await.unwrap().unwrap();
    let bytes = |text: &'static str| Bytes::from_static(text.as_bytes());
    assert_eq!(range(&key, 0..4).await, (bytes("0123"), 10));
    assert_eq!(range(&key, 4..7).await, (bytes("456"), 10));
    assert_eq!(range(&key, 0..10).await, (bytes("0123456789"), 10));
    assert_eq!(range(&key, 8..4096).await, (bytes("89"), 10), "over the end");
    assert_eq!(range(&key, 10..20).await, (Bytes::new(), 10), "at the end");
    assert_eq!(range(&key, 1000..2000).await, (Bytes::new(), 10), "behind the end");
    assert_eq!(range(&empty, 0..4096).await, (Bytes::new(), 0));
}

async fn listings_are_complete_and_sorted(store: &Store, objects: usize) {
    let keys = (0..objects).map(|number| format!("list/wal/{number:04}.zst"));
    let others = ["list/wal/folder/a", "list/wal/folder/b", "list/wal/other/c", "list/wal2/not-below", "list/w"];
    let mut keys: Vec<String> = keys.chain(others.map(str::to_owned)).collect();
    let puts = stream::iter(&keys).map(|key| async move { store.create(&Key::from(key.as_str()), key.clone()).await });
    let created: Vec<Created> = puts.buffer_unordered(16).try_collect().await.unwrap();
    assert!(created.iter().all(|&created| created == Created::New));
    keys.sort();

    let listed = store.list(&Key::from("list/wal")).await.unwrap();
    let expected = keys.iter().filter(|key| key.starts_with("list/wal/"));
    let expected: Vec<_> = expected.map(|key| (key.clone(), key.len() as u64)).collect();
    let found: Vec<_> = listed.iter().map(|object| (object.key.to_string(), object.size)).collect();
    assert_eq!(found, expected);
    assert_eq!(store.list(&Key::from("list")).await.unwrap().len(), keys.len());

    let folder = store.list_folder(&Key::from("list/wal")).await.unwrap();
    assert_eq!(folder.folders, ["folder", "other"]);
    let found: Vec<_> = folder.objects.iter().map(|object| object.key.to_string()).collect();
    let expected: Vec<_> = (0..objects).map(|number| format!("list/wal/{number:04}.zst")).collect();
    assert_eq!(found, expected);
    assert_eq!(store.list_folder(&Key::from("list")).await.unwrap().folders, ["wal", "wal2"]);

    for nothing in ["list/missing", "list/wal/0001", "list/wa"] {
        assert_eq!(store.list(&Key::from(nothing)).await.unwrap(), [], "{nothing}");
        assert_eq!(store.list_folder(&Key::from(nothing)).await.unwrap(), walkeep_common::store::Folder::default());
    }
}

async fn keys_of_our_layout_come_back(store: &Store) {
    let layout = Layout::new("Db-1_a.b", u64::MAX);
    let digest = "0123456789abcdef0123456789abcdef";
    let wal = |name: &str| layout.wal(name.parse().unwrap());
    let id: BackupId = "20261122T064500Z-3fa9".parse().unwrap();
    let keys = [
        layout.identity(),
        wal("00000002.history"),
        wal("FFFFFFFFFFFFFFFF000000FF"),
        wal("000000010000000000000005.00000028.backup"),
        wal("000000010000000000000007.partial"),
        layout.wal_second_partial("000000010000000000000007.partial".parse().unwrap(), digest),
        layout.wal_fork("000000010000000000000007".parse().unwrap(), digest),
        layout.backup_object(&id, "begin.json"),
        layout.pack(&id, 100_000),
        layout.backup_wal(&id, "000000010000000000000007".parse().unwrap()),
    ];
    for key in &keys {
        assert_eq!(store.create(key, key.to_string()).await.unwrap(), Created::New, "{key}");
        store.make_durable(key).unwrap();
    }
    let listed = store.list(layout.folder()).await.unwrap();
    let listed: HashSet<Key> = listed.into_iter().map(|object| object.key).collect();
    assert_eq!(listed, keys.iter().cloned().collect());
    for key in &keys {
        assert_eq!(store.read(key, 1000).await.unwrap().unwrap(), key.to_string());
        assert!(store.url_of(key).ends_with(key.as_ref()));
    }
    let folders = store.list_folder(&Key::from("Db-1_a.b")).await.unwrap().folders;
    assert_eq!(folders, [u64::MAX.to_string()]);
}

async fn uploads_appear_whole_or_not_at_all(store: &Store) {
    const PART: usize = 5 << 20;
    let content: Vec<u8> = (0..2 * PART + 12_345).map(|at| u8::try_from(at / 1000 % 256).unwrap()).collect();
    let content = Bytes::from(content);
    let folder = Key::from("upload");
    let send = async |key: &Key| {
        let mut upload = store.upload(key).await.unwrap();
        let parts = [0..PART, PART..2 * PART, 2 * PART..content.len()];
        let mut parts: Vec<_> = parts.map(|range| upload.part(content.slice(range))).into_iter().collect();
        // In whatever order they arrive.
        parts.reverse();
        futures::future::try_join_all(parts).await.unwrap();
        assert_eq!(store.head(key).await.unwrap(), None, "{key} is there before it is finished");
        upload
    };
    let finished = Key::from("upload/finished");
    assert_eq!(send(&finished).await.finish().await.unwrap(), content.len() as u64);
    assert!(store.read(&finished, content.len() as u64).await.unwrap().unwrap() == content);
    assert_eq!(store.create(&finished, &b"other"[..]).await.unwrap(), Created::Exists);

    send(&Key::from("upload/given-up")).await.abort().await;
    drop(send(&Key::from("upload/dropped")).await);
    store.remove_given_up().await;
    let one = Key::from("upload/one-short-part");
    let mut upload = store.upload(&one).await.unwrap();
    upload.part(Bytes::from_static(b"short")).await.unwrap();
    assert_eq!(upload.finish().await.unwrap(), 5);

    let found: Vec<String> = store.list(&folder).await.unwrap().iter().map(|object| object.key.to_string()).collect();
    assert_eq!(found, ["upload/finished", "upload/one-short-part"]);
}

async fn secrets_are_not_printed(store: &Store) {
    let upload = store.upload(&Key::from("upload/printed")).await.unwrap();
    let printed = format!("{store:?} {upload:?}");
    upload.abort().await;
    assert!(printed.len() < 1000 && printed.contains("upload/printed"), "{printed}");
}

/// Counts what multipart uploads have left behind in a bucket.
pub(crate) fn unfinished_uploads(repository: &Repository) -> usize {
    let ceph = ceph::shared();
    let bucket = repository.url().strip_prefix("s3://").unwrap().split('/').next().unwrap();
    let user = format!("{}:{}", ceph.owner.access_key, ceph.owner.secret_key);
    let signing = format!("aws:amz:{}:s3", ceph::REGION);
    let url = format!("{}/{bucket}?uploads=", ceph.endpoint);
    let hash = "x-amz-content-sha256: UNSIGNED-PAYLOAD";
    let answer = tool("curl", ["-sS", "--fail-with-body", "--aws-sigv4", &signing, "-u", &user, "-H", hash, &url]);
    assert!(answer.contains("<ListMultipartUploadsResult"), "{answer}");
    answer.matches("<UploadId>").count()
}

/// One object in one part.
async fn upload(store: &Store, key: &Key) -> Result<u64, Error> {
    let mut upload = store.upload(key).await?;
    upload.part(Bytes::from_static(b"part")).await?;
    upload.finish().await
}

/// What each operation fails with.
async fn failures(store: &Store) -> Vec<(&'static str, Error)> {
    let key = Key::from("folder/object");
    let mut failures = vec![
        ("read", store.read(&key, 10).await.unwrap_err()),
        ("read_range", store.read_range(&key, 0..10).await.unwrap_err()),
        ("open_once", store.open_once(&key).await.unwrap_err()),
        ("list", store.list(&key).await.unwrap_err()),
        ("list_folder", store.list_folder(&key).await.unwrap_err()),
        ("upload", upload(store, &key).await.unwrap_err()),
    ];
    for known in [CreateOnly::NotEnforced, CreateOnly::Enforced] {
        store.set_create_only(known);
        failures.push(("create", store.create(&key, &b"x"[..]).await.unwrap_err()));
    }
    failures
}

/// Every operation is refused, with a hint that has this in it.
#[test]
#[ignore = "a part of the others, in a process of its own"]
fn refused() {
    with_store(|store| async move {
        let hint = std::env::var("EXPECTED_HINT").unwrap();
        for (operation, error) in failures(&store).await {
            assert_eq!(error.kind(), Kind::Refused, "{operation}: {error}");
            assert!(error.hint_text().is_some_and(|text| text.contains(&hint)), "{operation}: {error} {error:?}");
        }
        if std::env::var_os("EXPECTED_HEAD_TOO").is_some() {
            assert_eq!(store.head(&Key::from("folder/object")).await.unwrap_err().kind(), Kind::Refused);
        }
    });
}

#[test]
fn a_missing_bucket_is_refused_and_never_a_missing_object() {
    let mut repository = Repository::ceph();
    repository.set_url("s3://there-is-no-such-bucket/test");
    expect_kept(&part("refused", repository.environment()).env("EXPECTED_HINT", "Create it").finish());

    let server = Azurite::start("container");
    let mut repository = Repository::azurite(&server, "container");
    repository.set_url("az://there-is-no-such-container/test");
    expect_kept(&part("refused", repository.environment()).env("EXPECTED_HINT", "Create it").finish());
}

#[test]
fn wrong_credentials_are_refused_and_named() {
    let ceph = ceph::shared();
    let wrong_secret = Credentials { secret_key: "wrong".to_owned(), ..ceph.owner.clone() };
    let unknown = Credentials { access_key: "UNKNOWN".to_owned(), ..ceph.owner.clone() };
    for (credentials, hint) in
        [(&wrong_secret, "AWS_ACCESS_KEY_ID"), (&unknown, "AWS_ACCESS_KEY_ID"), (&ceph.stranger, "s3:PutObject")]
    {
        let mut repository = Repository::ceph();
        repository.set_credentials(credentials);
        let run = part("refused", repository.environment()).env("EXPECTED_HINT", hint).env("EXPECTED_HEAD_TOO", "");
        expect_kept(&run.finish());
    }
    let server = Azurite::start("container");
    let repository = Repository::azurite(&server, "container");
    let wrong_key = "d3Jvbmc=";
    let run = part("refused", repository.environment()).env("AZURE_STORAGE_ACCOUNT_KEY", wrong_key);
    expect_kept(&run.env("EXPECTED_HINT", "").env("EXPECTED_HEAD_TOO", "").finish());
}

#[test]
fn an_unknown_authority_is_not_trusted_and_the_setting_is_named() {
    let mut repository = Repository::ceph();
    repository.set_endpoint(&ceph::shared().tls_endpoint);
    expect_kept(&part("untrusted", repository.environment()).finish());
}

#[test]
#[ignore = "a part of the others, in a process of its own"]
fn untrusted() {
    with_store(|store| async move {
        let store = store.with_patience(Patience::For(Duration::ZERO));
        for (operation, error) in failures(&store).await {
            assert_eq!(error.kind(), Kind::Unavailable, "{operation}: {error}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("ca_file")), "{operation}: {error}");
        }
    });
}

/// The object "object" can be read and another one created.
#[test]
#[ignore = "a part of the others, in a process of its own"]
fn accepted() {
    with_store(|store| async move {
        assert_eq!(store.read(&Key::from("object"), 10).await.unwrap().unwrap(), "content");
        assert_eq!(store.create(&Key::from("another"), &b"x"[..]).await.unwrap(), Created::New);
    });
}

/// A bucket with an object in it, and the variables for it without any credentials.
fn bucket_without_credentials() -> (Repository, Vec<(String, String)>) {
    let repository = Repository::ceph();
    repository.write("object", b"content");
    let others = repository.environment().iter().filter(|(name, _)| !name.starts_with("AWS_")).cloned().collect();
    (repository, others)
}

#[test]
fn a_line_end_behind_a_secret_does_no_harm() {
    let (_repository, environment) = bucket_without_credentials();
    let Credentials { access_key, secret_key } = &ceph::shared().owner;
    let run = part("accepted", &environment).env("AWS_ACCESS_KEY_ID", format!("{access_key}\r\n"));
    expect_kept(&run.env("AWS_SECRET_ACCESS_KEY", format!("{secret_key}\n")).finish());
}

fn profile(name: &str, credentials: &Credentials) -> String {
    let Credentials { access_key, secret_key } = credentials;
    format!("[{name}]\r\naws_access_key_id = {access_key}\r\naws_secret_access_key={secret_key} \r\n\r\n")
}

#[test]
fn the_shared_credentials_file_is_used_with_the_profile_that_is_named() {
    let ceph = ceph::shared();
    let (repository, environment) = bucket_without_credentials();
    let text = profile("default", &ceph.stranger) + &profile("backup", &ceph.owner);
    let home = repository.scratch().create_private(".aws");
    std::fs::write(home.join("credentials"), text).unwrap();
    let run = part("accepted", &environment).env("HOME", repository.scratch().path().display().to_string());
    assert_ne!(run.clone().finish().code(), 0, "the default profile may do nothing here");
    expect_kept(&run.env("AWS_PROFILE", "backup").finish());
}

#[test]
fn the_endpoint_may_come_from_the_environment() {
    let (repository, environment) = bucket_without_credentials();
    let configuration = repository.scratch().write("bare.toml", format!("repository = {:?}\n", repository.url()));
    let Credentials { access_key, secret_key } = &ceph::shared().owner;
    let run = part("accepted", &environment)
        .env("WALKEEP_CONFIG", configuration.display().to_string())
        .env("AWS_ACCESS_KEY_ID", access_key)
        .env("AWS_SECRET_ACCESS_KEY", secret_key)
        .env("AWS_ENDPOINT_URL_S3", &ceph::shared().endpoint);
    expect_kept(&run.finish());
}

#[test]
fn credentials_that_are_replaced_are_read_again_by_a_running_process() {
    let ceph = ceph::shared();
    let (repository, environment) = bucket_without_credentials();
    let file = repository.scratch().write("credentials", profile("default", &ceph.stranger));
    let next = repository.scratch().write("next", profile("default", &ceph.owner));
    let run = part("rotated", &environment).env("AWS_SHARED_CREDENTIALS_FILE", file.display().to_string());
    expect_kept(&run.env("NEXT_CREDENTIALS_FILE", next.display().to_string()).finish());
}

#[test]
#[ignore = "a part of the others, in a process of its own"]
fn rotated() {
    with_store(|store| async move {
        let key = Key::from("object");
        assert_eq!(store.read(&key, 10).await.unwrap_err().kind(), Kind::Refused);
        let variable = |name| std::env::var_os(name).unwrap();
        std::fs::rename(variable("NEXT_CREDENTIALS_FILE"), variable("AWS_SHARED_CREDENTIALS_FILE")).unwrap();
        assert_eq!(store.read(&key, 10).await.unwrap().unwrap(), "content");
    });
}

#[test]
fn without_any_credentials_the_variables_to_set_are_named() {
    let (_repository, environment) = bucket_without_credentials();
    expect_kept(&part("without_credentials", &environment).finish());
}

#[test]
#[ignore = "a part of the others, in a process of its own"]
fn without_credentials() {
    with_store(|store| async move {
        let begun = std::time::Instant::now();
        let error = store.read(&Key::from("object"), 10).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Refused, "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("AWS_ACCESS_KEY_ID")), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    });
}
