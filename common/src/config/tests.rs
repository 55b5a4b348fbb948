use super::*;

fn resolve(text: &str, variables: &[(&str, &str)]) -> Result<Config> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("walkeep.toml");
    std::fs::write(&path, text).unwrap();
    let flags = Flags { config: Some(path), ..Flags::default() };
    Config::resolve(&flags, |name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

#[test]
fn one_line_is_enough() {
    let config = resolve("repository = \"s3://bucket/some/prefix/\"", &[]).unwrap();
    assert_eq!(config.repository.to_string(), "s3://bucket/some/prefix");
    assert_eq!((config.cluster.as_str(), config.timeout), ("main", Duration::from_secs(60)));
    assert_eq!((config.compression_level.level(), config.prefetch), (3, 16));
    assert_eq!((config.jobs, config.linger), (None, Duration::from_secs(10)));
}

#[test]
fn the_environment_wins_over_the_file_and_a_flag_over_both() {
    let text = "repository = \"file:///a\"\ncluster = \"file\"\ntimeout = 5\n";
    let variables = [("WALKEEP_CLUSTER", "environment"), ("WALKEEP_TIMEOUT", "2min")];
    let config = resolve(text, &variables).unwrap();
    assert_eq!((config.cluster.as_str(), config.timeout), ("environment", Duration::from_secs(120)));
    let flags = Flags { repository: Some("gs://b".into()), cluster: Some("flag".into()), config: None };
    let config = Config::resolve(&flags, |_| None).unwrap();
    assert_eq!((config.cluster.as_str(), config.repository.to_string().as_str()), ("flag", "gs://b"));
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest_one_and_its_line() {
    let error = resolve("repository = \"file:///a\"\n\nrepositry = 1\n", &[]).unwrap_err();
    assert!(error.to_string().contains("\"repositry\""), "{error}");
    assert!(error.to_string().contains("line 3"), "{error}");
    assert!(error.hint_text().unwrap().contains("\"repository\""), "{error:?}");
    let error = resolve("repository = \"file:///a\"\nendpont = \"http://x\"\n", &[]).unwrap_err();
    assert!(error.hint_text().unwrap().contains("[s3]"), "{error:?}");
    let error = resolve("[s3]\nregoin = \"x\"\n", &[]).unwrap_err();
    assert!(error.hint_text().unwrap().contains("\"region\""), "{error:?}");
}

#[test]
fn what_cannot_be_meant_is_refused_with_the_setting_and_its_place() {
    for (text, word) in [
        ("", "no repository"),
        ("repository = \"bucket\"", "repository"),
        ("repository = \"ftp://bucket\"", "repository"),
        ("repository = \"s3://\"", "bucket is missing"),
        ("repository = \"s3://key:secret@bucket\"", "credentials"),
        ("repository = \"s3://localhost:9000/x\"", "endpoint"),
        ("repository = \"s3://b/../x\"", ".."),
        ("repository = \"file://relative\"", "absolute"),
        ("repository = 7", "line 1"),
        ("repository = \"file:///a\"\ncluster = \"a/b\"", "cluster"),
        ("repository = \"file:///a\"\ncluster = \"probe\"", "reserved"),
        ("repository = \"file:///a\"\ntimeout = 0", "timeout"),
        ("repository = \"file:///a\"\ntimeout = \"soon\"", "timeout"),
        ("repository = \"file:///a\"\ncompression_level = 99", "compression_level"),
        ("repository = \"file:///a\"\nstandby_outage = \"maybe\"", "standby_outage"),
        ("repository = \"file:///a\"\nprefetch = -1", "prefetch"),
        ("repository = \"file:///a\"\njobs = 0", "jobs"),
        ("repository = \"file:///a\"\nlinger = \"0s\"", "linger"),
        ("repository = \"file:///a\"\nrun_directory = \"run\"", "run_directory"),
        ("repository = \"file:///a\"\n[s3]\nendpoint = \"minio:9000\"", "s3.endpoint"),
        ("repository = \"file:///a", "line 1"),
    ] {
        let error = resolve(text, &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text}");
        assert!(error.to_string().contains(word), "{text}: {error}");
    }
}

#[test]
fn a_backlog_lowers_the_level_unless_one_is_set() {
    assert_eq!([0, 8, 9].map(|waiting| CompressionLevel::Auto.level_with_backlog(waiting)), [3, 3, 1]);
    assert_eq!(CompressionLevel::Fixed(5).level_with_backlog(1000), 5);
}

#[test]
fn a_named_file_must_exist_but_the_default_one_need_not() {
    let flags = Flags { config: Some("/nonexistent/walkeep.toml".into()), ..Flags::default() };
    assert!(Config::resolve(&flags, |_| None).unwrap_err().to_string().contains("/nonexistent/walkeep.toml"));
}

#[test]
fn mistyped_variables_are_noticed() {
    let names = ["WALKEEP_REPOSITORI", "WALKEEP_CLUSTER", "PATH"].map(str::to_owned);
    assert_eq!(unknown_variables(names.into_iter()), ["WALKEEP_REPOSITORI"]);
}

#[test]
fn every_key_is_in_the_readme() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let s3 = file::S3_KEYS.iter().map(|key| format!("s3.{key}"));
    let retention = file::RETENTION_KEYS.iter().map(|key| format!("retention.{key}"));
    let sections = ["s3", "retention"];
    let plain = file::KEYS.iter().filter(|key| !sections.contains(key)).map(ToString::to_string);
    for key in plain.chain(s3).chain(retention) {
        assert!(readme.contains(&format!("\n| `{key}` |")), "{key}");
    }
}
