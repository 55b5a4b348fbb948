use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use basebackup::session::Session;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use walkeep_common::error::{Error, Kind};
use walkeep_tests::cluster::{Cluster, program};
use walkeep_tests::run::Run;
use walkeep_tests::scratch::Scratch;

use crate::parameters;

/// A server on a loopback address of its own, so that its port is free.
struct TlsServer {
    cluster: Cluster,
    address: String,
    authorities: Scratch,
}

impl TlsServer {
    fn start(ssl: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let address = format!("127.{}.{high}.{}", 20 + COUNT.fetch_add(1, Ordering::Relaxed), low.max(1));
        let authorities = Scratch::new("ca");
        for name in ["ca", "other"] {
            let subject = format!("/CN={name}");
            openssl(&authorities, &["req", "-x509", "-subj", &subject, "-out", &format!("{name}.crt")], Some(name));
        }
        openssl(&authorities, &["req", "-subj", "/CN=server", "-out", "server.csr"], Some("server"));
        let names = format!("basicConstraints=CA:FALSE\nsubjectAltName=IP:{address},DNS:localhost\n");
        authorities.write("extensions", names);
        let sign =
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -extfile extensions -out server.crt";
        openssl(&authorities, &sign.split(' ').collect::<Vec<_>>(), None);
        let key = authorities.path().join("server.key");
        std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).unwrap();

        let options = Cluster::options().configure(format!("listen_addresses = '{address}'")).configure(ssl);
        let file = |name: &str| authorities.path().join(name).display().to_string();
        let options = options.configure(format!("ssl_cert_file = '{}'", file("server.crt")));
        let cluster = options.configure(format!("ssl_key_file = '{}'", file("server.key"))).start();
        Self { cluster, address, authorities }
    }

    fn authority(&self, name: &str) -> PathBuf {
        self.authorities.path().join(name)
    }

    /// Connects and tells whether the connection is encrypted.
    async fn connect(&self, host: &str, port: u16, rest: &str) -> Result<bool, Error> {
        let text = format!("host={host} port={port} user=postgres application_name=tls {rest}");
        let session = Session::connect(&parameters(&text)?).await?;
        // The second connection, which looked for a pooler, is closed; its process may take a moment to end.
        let sessions = "select count(*) from pg_stat_activity where application_name = 'tls'";
        self.cluster.wait_for(sessions, "1");
        let encrypted = "select ssl from pg_stat_ssl join pg_stat_activity using (pid) where application_name = 'tls'";
        let encrypted = self.cluster.sql(encrypted);
        assert!(matches!(encrypted.as_str(), "t" | "f"), "{encrypted:?} of a connection to {host} with {rest}");
        session.close().await;
        self.cluster.wait_for(sessions, "0");
        Ok(encrypted == "t")
    }

    fn allow_only(&self, kind: &str) {
        let lines = format!("local all all trust\n{kind} all all all trust\n");
        std::fs::write(self.cluster.data().join("pg_hba.conf"), lines).unwrap();
        let since = self.cluster.log().len();
        self.cluster.reload();
        self.cluster.wait_for_log(since, "SIGHUP");
        // Read by the postmaster before it takes the next connection.
        self.cluster.sql("select 1");
    }
}

fn openssl(directory: &Scratch, arguments: &[&str], new_key: Option<&str>) {
    let mut run = Run::new("openssl").args(arguments).current_dir(directory.path());
    if let Some(name) = new_key {
        run = run.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"]);
        run = run.arg(format!("{name}.key"));
    }
    run.finish().expect_code(0);
}

/// Makes the server reachable as `localhost` on a free port.
async fn forward(address: &str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = format!("{address}:5432");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(&server).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    port
}

fn with(sslmode: &str, root: &Path) -> String {
    format!("sslmode={sslmode} sslrootcert={}", root.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_verified_as_the_mode_asks() {
    let server = TlsServer::start("ssl = on");
    let (good, other) = (server.authority("ca.crt"), server.authority("other.crt"));
    let address = server.address.as_str();
    let port = forward(address).await;
    // The forwarder's own address is a name that is not in the certificate.
    for (host, port) in [(address, 5432), ("localhost", port)] {
        for mode in ["require", "verify-ca", "verify-full"] {
            assert!(server.connect(host, port, &with(mode, &good)).await.unwrap(), "{host} {mode}");
            let unknown = server.connect(host, port, &with(mode, &other)).await.unwrap_err();
            assert_eq!(unknown.kind(), Kind::Refused, "{unknown}");
            assert!(unknown.hint_text().unwrap().contains("sslrootcert"), "{unknown:?}");
        }
    }
    assert!(server.connect("127.0.0.1", port, &with("verify-ca", &good)).await.unwrap());
    let wrong_name = server.connect("127.0.0.1", port, &with("verify-full", &good)).await.unwrap_err();
    assert_eq!(wrong_name.kind(), Kind::Refused);
    assert!(wrong_name.hint_text().unwrap().contains("subjectAltName"), "{wrong_name:?}");

    let system = server.connect(address, 5432, "sslrootcert=system").await.unwrap_err();
    assert!(matches!(system.kind(), Kind::Refused | Kind::Usage), "{system}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_ends_as_with_libpq() {
    for ssl in ["ssl = on", "ssl = off"] {
        let server = TlsServer::start(ssl);
        let port = forward(&server.address).await;
        let root = |name: &str| format!("sslrootcert={}", server.authority(name).display());
        for root in [String::new(), root("ca.crt"), root("other.crt")] {
            for mode in ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] {
                let rest = format!("sslmode={mode} {root}");
                let ours = server.connect("localhost", port, &rest).await;
                let text = format!("host=localhost port={port} user=postgres dbname=postgres {rest}");
                let psql = Run::new(program("psql")).args(["-XAtd", &text]).arg("-c");
                let theirs = psql.arg("select ssl from pg_stat_ssl where pid = pg_backend_pid()").finish();
                let encrypted = theirs.status.success().then(|| theirs.stdout.trim() == "t");
                assert_eq!(ours.as_ref().ok(), encrypted.as_ref(), "{ssl}, {rest}\n{ours:?}\n{theirs}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mode_that_prefers_tells_what_the_server_wants() {
    let server = TlsServer::start("ssl = on");
    let address = server.address.as_str();
    server.allow_only("hostssl");
    assert!(server.connect(address, 5432, "sslmode=allow").await.unwrap());
    let plain = server.connect(address, 5432, "sslmode=disable").await.unwrap_err();
    assert_eq!(plain.kind(), Kind::Refused, "{plain}");
    server.allow_only("hostnossl");
    assert!(!server.connect(address, 5432, "sslmode=prefer").await.unwrap());
    let encrypted = server.connect(address, 5432, "sslmode=require").await.unwrap_err();
    assert_eq!(encrypted.kind(), Kind::Refused, "{encrypted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_used_only_where_the_mode_allows_it() {
    let server = TlsServer::start("ssl = off");
    let address = server.address.as_str();
    for mode in ["disable", "allow", "prefer"] {
        assert!(!server.connect(address, 5432, &format!("sslmode={mode}")).await.unwrap(), "{mode}");
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let refused = server.connect(address, 5432, &with(mode, &server.authority("ca.crt"))).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Refused);
        assert!(refused.to_string().contains("server does not support TLS"), "{refused}");
    }
}
