use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn args(dbname: &str) -> ConnectionArgs {
    ConnectionArgs { dbname: Some(dbname.to_owned()), ..ConnectionArgs::default() }
}

fn resolve(args: &ConnectionArgs, variables: &[(&str, &str)]) -> Result<ConnectionParameters> {
    ConnectionParameters::resolve(args, &Environment::for_tests(variables, None))
}

#[test]
fn with_nothing_said_the_socket_and_the_database_postgres_are_used() {
    let parameters = resolve(&ConnectionArgs::default(), &[]).unwrap();
    let expected = ConnectionParameters {
        host: Host::Socket("/var/run/postgresql".into()),
        port: 5432,
        user: "dba".to_owned(),
        database: "postgres".to_owned(),
        password: None,
        sslmode: SslMode::Prefer,
        root_certificates: RootCertificates::Default(None),
        connect_timeout: Some(CONNECT_TIMEOUT),
        application_name: "basebackup".to_owned(),
        startup_options: None,
    };
    assert_eq!(parameters, expected);
    assert_eq!(parameters.target(), "socket \"/var/run/postgresql/.s.PGSQL.5432\"");
}

#[test]
fn the_command_line_wins_over_the_service_and_the_service_over_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("services");
    std::fs::write(&file, "[s]\nhost=service\nport=2\nuser=service\n").unwrap();
    let variables = [
        ("PGSERVICE", "s"),
        ("PGSERVICEFILE", file.to_str().unwrap()),
        ("PGHOST", "environment"),
        ("PGPORT", "3"),
        ("PGDATABASE", "environment"),
        ("PGPASSWORD", "environment"),
        ("PGAPPNAME", "nightly"),
        ("PGCONNECT_TIMEOUT", "0"),
    ];
    let parameters = resolve(&args("host=flag"), &variables).unwrap();
    assert_eq!(parameters.host, Host::Name("flag".to_owned()));
    assert_eq!((parameters.port, parameters.user.as_str()), (2, "service"));
    assert_eq!((parameters.database.as_str(), parameters.application_name.as_str()), ("environment", "nightly"));
    assert_eq!(parameters.password.unwrap().text, "environment");
    assert_eq!(parameters.connect_timeout, None);

    let explicit = resolve(&args("service=s user=x"), &variables[1..]).unwrap();
    assert_eq!((explicit.host, explicit.user.as_str()), (Host::Name("service".to_owned()), "x"));
}

#[test]
fn an_empty_value_is_the_default_and_hides_the_environment() {
    let parameters = resolve(&args("host='' user=''"), &[("PGHOST", "elsewhere"), ("PGUSER", "other")]).unwrap();
    assert_eq!((parameters.host, parameters.user.as_str()), (Host::Socket("/var/run/postgresql".into()), "dba"));
}

#[test]
fn an_option_and_a_connection_string_may_not_contradict_each_other() {
    let both = |port: &str| ConnectionArgs { port: Some(port.to_owned()), ..args("postgresql://h:5433/db?user=u") };
    let parameters = resolve(&both("5433"), &[]).unwrap();
    assert_eq!((parameters.port, parameters.database.as_str()), (5433, "db"));
    let error = resolve(&both("5434"), &[]).unwrap_err();
    assert!(error.kind() == Kind::Usage && error.to_string().contains("\"port\""), "{error}");
}

#[test]
fn what_is_not_supported_is_refused_by_name_wherever_it_comes_from() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("services");
    std::fs::write(&file, "[s]\nsslcert=/x\n").unwrap();
    let service = [("PGSERVICEFILE", file.to_str().unwrap())];
    for (dbname, variables, name) in [
        ("sslcert=/x", &[][..], "sslcert"),
        ("hostaddr=127.0.0.1", &[], "hostaddr"),
        ("target_session_attrs=read-write", &[], "target_session_attrs"),
        ("gssencmode=require", &[], "gssencmode"),
        ("channel_binding=require", &[], "channel_binding"),
        ("postgresql:///?replication=1", &[], "replication"),
        ("nonsense=1", &[], "nonsense"),
        ("service=s", &service, "sslcert"),
        ("postgres", &[("PGSSLCRL", "/x")], "PGSSLCRL"),
        ("postgres", &[("PGREQUIREPEER", "postgres")], "PGREQUIREPEER"),
        ("host=a,b", &[], "a,b"),
        ("host=@abstract", &[], "abstract"),
    ] {
        let error = resolve(&args(dbname), variables).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{dbname}");
        assert!(error.to_string().contains(name), "{dbname}: {error}");
    }
    let harmless = [("PGGSSENCMODE", "disable"), ("PGCHANNELBINDING", "prefer"), ("PGTARGETSESSIONATTRS", "any")];
    resolve(&args("sslsni=1 client_encoding=auto"), &harmless).unwrap();
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (dbname, value) in [
        ("port=0", "0"),
        ("port=65536", "65536"),
        ("port=x", "x"),
        ("connect_timeout=soon", "soon"),
        ("sslmode=''", "\"\""),
        ("sslmode=requires", "requires"),
        ("user='a\0b'", "user"),
    ] {
        let error = resolve(&args(dbname), &[]).unwrap_err();
        assert!(error.kind() == Kind::Usage && error.to_string().contains(value), "{dbname}: {error}");
    }
}

#[test]
fn the_systems_authorities_demand_the_hosts_name() {
    let parameters = resolve(&args("host=h sslrootcert=system"), &[]).unwrap();
    assert_eq!(parameters.sslmode, SslMode::VerifyFull);
    let weak = resolve(&args("host=h sslrootcert=system sslmode=verify-ca"), &[]).unwrap_err();
    assert!(weak.to_string().contains("weak sslmode \"verify-ca\""), "{weak}");
    let file = resolve(&args("sslrootcert=/ca.crt"), &[("PGSSLMODE", "verify-ca")]).unwrap();
    assert_eq!((file.sslmode, file.root_certificates), (SslMode::VerifyCa, RootCertificates::File("/ca.crt".into())));
}

#[test]
fn the_default_socket_directory_is_localhost_in_the_password_file() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join(".pgpass");
    std::fs::write(&file, "localhost:5432:postgres:dba:local\n/srv:*:*:*:socket\nh:*:*:*:remote\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let password = |dbname: &str, variables: &[(&str, &str)]| {
        let environment = Environment::for_tests(variables, Some(home.path()));
        let parameters = ConnectionParameters::resolve(&args(dbname), &environment).unwrap();
        parameters.password.map(|password| password.text)
    };
    assert_eq!(password("postgres", &[]).as_deref(), Some("local"));
    assert_eq!(password("host=/srv", &[]).as_deref(), Some("socket"));
    assert_eq!(password("host=h", &[]).as_deref(), Some("remote"));
    assert_eq!(password("host=h password=given", &[]).as_deref(), Some("given"));
    assert_eq!(password("host=h", &[("PGPASSWORD", "")]).as_deref(), Some("remote"));
    assert_eq!(password("host=h", &[("PGPASSFILE", "/nonexistent/pgpass")]), None);
    assert_eq!(password("host=other", &[]), None);
}

#[test]
fn a_password_is_never_printed() {
    let parameters = resolve(&args("password=secret host=h"), &[]).unwrap();
    assert!(!format!("{parameters:?}").contains("secret"));
}

#[test]
fn the_options_are_those_of_postgresqls_programs() {
    #[derive(clap::Parser)]
    #[command(disable_help_flag = true)]
    struct Program {
        #[command(flatten)]
        connection: ConnectionArgs,
    }
    let words = ["program", "-h", "db", "-p", "5433", "-U", "backup", "-d", "dbname=x"];
    let parsed: Program = clap::Parser::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    let parameters = resolve(&parsed.connection, &[("PGHOST", "other")]).unwrap();
    assert_eq!(parameters.target(), "\"db\", port 5433");
    assert_eq!((parameters.user.as_str(), parameters.database.as_str()), ("backup", "x"));
}
