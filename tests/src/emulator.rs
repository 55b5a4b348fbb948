//! Stores that are not what they stand for: one that ignores conditional puts, and Azure's emulator.
//!
//! Both come from npm; `packaging/setup.sh` puts them where `packaging/tools.sh` says.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use crate::daemon::{Daemon, Server};
use crate::run::tool;
use crate::scratch::Scratch;
use crate::wait::{SOON, until};

/// s3rver: an S3 server that answers 200 to a conditional put of an existing object, and overwrites it.
#[derive(Debug)]
pub struct S3rver {
    /// Where it listens, `http://127.0.0.1:PORT`.
    pub endpoint: String,
    _daemon: Daemon,
    _scratch: Scratch,
}

impl S3rver {
    /// The key it takes, which is its secret too.
    pub const KEY: &'static str = "S3RVER";

    /// Starts one with a single bucket of this name.
    pub fn start(bucket: &str) -> Self {
        let scratch = Scratch::new("s3rver");
        let data = scratch.create_private("data");
        let port = free_port();
        let options = ["-a", "127.0.0.1", "-s", "--configure-bucket", bucket, "-p"];
        let mut arguments: Vec<_> = options.map(str::to_owned).to_vec();
        arguments.extend([port.to_string(), "-d".to_owned(), data.display().to_string()]);
        let daemon = start("s3rver", arguments, &scratch, port);
        Self { endpoint: format!("http://127.0.0.1:{port}"), _daemon: daemon, _scratch: scratch }
    }
}

/// Azurite: Microsoft's emulator of Azure's blob store.
#[derive(Debug)]
pub struct Azurite {
    /// Where it listens, `http://127.0.0.1:PORT/devstoreaccount1`.
    pub endpoint: String,
    _daemon: Daemon,
    _scratch: Scratch,
}

impl Azurite {
    /// The account every emulator has.
    pub const ACCOUNT: &'static str = "devstoreaccount1";
    /// Its published key.
    pub const KEY: &'static str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    /// Starts one with a single container of this name.
    pub fn start(container: &str) -> Self {
        let scratch = Scratch::new("azurite");
        let port = free_port();
        let options = ["--blobHost", "127.0.0.1", "--silent", "--skipApiVersionCheck", "--disableTelemetry"];
        let mut arguments: Vec<_> = options.map(str::to_owned).to_vec();
        arguments.extend(["--inMemoryPersistence".to_owned(), "--blobPort".to_owned(), port.to_string()]);
        let daemon = start("azurite-blob", arguments, &scratch, port);
        let azurite =
            Self { endpoint: format!("http://127.0.0.1:{port}/{}", Self::ACCOUNT), _daemon: daemon, _scratch: scratch };
        azurite.create_container(container);
        azurite
    }

    fn create_container(&self, container: &str) {
        // What must be signed, and how: "Authorize with Shared Key" in the documentation of Azure Storage.
        let date = tool("date", ["-u", "+%a, %d %b %Y %H:%M:%S GMT"]);
        let account = Self::ACCOUNT;
        let signed = format!(
            "PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2021-08-06\n\
             /{account}/{account}/{container}\nrestype:container"
        );
        let script = "key=$(printf %s \"$1\" | base64 -d | od -An -v -tx1 | tr -d ' \\n'); \
                      printf %s \"$2\" | openssl dgst -sha256 -mac HMAC -macopt hexkey:$key -binary | base64";
        let signature = tool("sh", ["-c", script, "sh", Self::KEY, &signed]);
        let headers = [
            format!("x-ms-date: {date}"),
            "x-ms-version: 2021-08-06".to_owned(),
            format!("Authorization: SharedKey {account}:{signature}"),
            "Content-Length:".to_owned(),
        ];
        let url = format!("{}/{container}?restype=container", self.endpoint);
        let headers = headers.iter().flat_map(|header| ["-H", header]);
        tool("curl", ["-sS", "--fail-with-body", "-X", "PUT", &url].into_iter().chain(headers));
    }
}

/// A port of the loopback interface nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn start(program: &str, arguments: Vec<String>, scratch: &Scratch, port: u16) -> Daemon {
    let daemon = Daemon::start(&Server {
        program: &tools_directory().join("npm/node_modules/.bin").join(program),
        arguments,
        environment: &[],
        directory: scratch.path(),
        log: &scratch.path().join("log"),
        on_death: "KILL",
    });
    until(&format!("{program} listens"), SOON, || TcpStream::connect(("127.0.0.1", port)).ok());
    daemon
}

/// Where `packaging/setup.sh` puts what no Debian package brings.
pub fn tools_directory() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/tools.sh");
    let output = Command::new(script).output().expect("packaging/tools.sh");
    PathBuf::from(String::from_utf8(output.stdout).expect("UTF-8").trim_end())
}
