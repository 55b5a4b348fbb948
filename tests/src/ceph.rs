//! Ceph's S3 server: enforces signatures, creates conditionally and atomically, knows versions, object lock and TLS.
//!
//! One monitor, one object store in memory and one gateway, all on the loopback interface, shared by the tests of a
//! process. Each test has buckets of its own.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::daemon::{Daemon, Server};
use crate::run::{Run, tool};
use crate::scratch::Scratch;
use crate::wait::{SOON, until};

/// The running server.
#[derive(Debug)]
pub struct Ceph {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// `https://localhost:PORT`, with a certificate of [`Ceph::ca`].
    pub tls_endpoint: String,
    /// The certificate of the authority that signed the server's, in PEM.
    pub ca: PathBuf,
    /// The user that may create buckets.
    pub owner: Credentials,
    /// A user that may do nothing with another's buckets.
    pub stranger: Credentials,
    daemons: Vec<Daemon>,
    directory: PathBuf,
    _sweeper: Sweeper,
}

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its public half.
    pub access_key: String,
    /// Its secret half.
    pub secret_key: String,
}

/// The region Ceph calls itself by default.
pub const REGION: &str = "us-east-1";

/// Returns the server of this test process, started at the first call. Takes about three seconds.
pub fn shared() -> &'static Ceph {
    static CEPH: LazyLock<Ceph> = LazyLock::new(Ceph::start);
    &CEPH
}

impl Ceph {
    /// Creates a bucket and returns its name.
    pub fn create_bucket(&self) -> String {
        self.create_bucket_with(&[])
    }

    /// Creates a bucket whose objects can be locked, which are also kept in all their versions.
    pub fn create_bucket_with_object_lock(&self) -> String {
        self.create_bucket_with(&["x-amz-bucket-object-lock-enabled: true"])
    }

    fn create_bucket_with(&self, headers: &[&str]) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let bucket = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let url = format!("{}/{bucket}", self.endpoint);
        // SHA-256 of the empty body, which curl 7.88 signs but does not send.
        let digest = "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let user = format!("{}:{}", self.owner.access_key, self.owner.secret_key);
        let signing = format!("aws:amz:{REGION}:s3");
        let arguments = ["-sS", "--fail-with-body", "--aws-sigv4", &signing, "-u", &user, "-X", "PUT", "-H", digest];
        let headers = headers.iter().flat_map(|header| ["-H", *header]);
        tool("curl", arguments.into_iter().chain(headers).chain([url.as_str()]));
        bucket
    }

    /// Creates a user that may do what this policy allows, in the language of Amazon's IAM, and nothing else.
    pub fn create_user(&self, policy: &str) -> Credentials {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("user-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let credentials = Setup { directory: &self.directory, ports: 0 }.create_user(&name, &[]);
        let document = format!("PolicyDocument={policy}");
        let user = format!("UserName={name}");
        let owner = format!("{}:{}", self.owner.access_key, self.owner.secret_key);
        let signing = format!("aws:amz:{REGION}:s3");
        let parameters = ["Action=PutUserPolicy", &user, "PolicyName=only", &document];
        let arguments = ["-sS", "--fail-with-body", "--aws-sigv4", &signing, "-u", &owner, &self.endpoint];
        tool("curl", arguments.into_iter().chain(parameters.into_iter().flat_map(|text| ["--data-urlencode", text])));
        credentials
    }

    /// Lets nobody delete from this bucket, its owner included.
    pub fn deny_deletion(&self, bucket: &str) {
        let policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Deny","Principal":"*","Action":"s3:DeleteObject","Resource":"arn:aws:s3:::{bucket}/*"}}]}}"#
        );
        let digest = tool("sh", ["-c", "printf %s \"$1\" | sha256sum | cut -d ' ' -f 1", "sh", &policy]);
        let url = format!("{}/{bucket}?policy=", self.endpoint);
        let user = format!("{}:{}", self.owner.access_key, self.owner.secret_key);
        let signing = format!("aws:amz:{REGION}:s3");
        let header = format!("x-amz-content-sha256: {digest}");
        let arguments = ["-sS", "--fail-with-body", "--aws-sigv4", &signing, "-u", &user, "-X", "PUT", "-H", &header];
        tool("curl", arguments.into_iter().chain(["--data-binary", &policy, &url]));
    }

    /// What its processes have logged, for the message of a failing test.
    pub fn log(&self) -> String {
        self.daemons.iter().map(Daemon::log).collect()
    }

    fn start() -> Self {
        let directory = Scratch::new("ceph").keep();
        let sweeper = Sweeper::start(&directory);
        let ports = free_port_range();
        let cluster = Setup { directory: &directory, ports };
        cluster.write_configuration();
        cluster.write_certificates();
        let mut daemons = vec![cluster.start_monitor()];
        daemons.push(cluster.start_object_store());
        let owner = cluster.create_user("owner", &["--caps=user-policy=*"]);
        let stranger = cluster.create_user("stranger", &[]);
        daemons.push(cluster.start_gateway());
        Self {
            endpoint: format!("http://127.0.0.1:{ports}"),
            tls_endpoint: format!("https://localhost:{}", ports + 1),
            ca: directory.join("tls/ca.pem"),
            owner,
            stranger,
            daemons,
            directory,
            _sweeper: sweeper,
        }
    }

    /// Where its logs are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// The steps of bringing the cluster up. Ports: http, https, the monitor, then a range for the object store.
struct Setup<'a> {
    directory: &'a Path,
    ports: u16,
}

const PORTS: u16 = 60;

impl Setup<'_> {
    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.directory.join(name);
        std::fs::write(&path, content).expect("write a file for Ceph");
        crate::user::give(&path);
    }

    /// Runs one of Ceph's tools on this cluster.
    fn tool<A: AsRef<str>>(&self, program: &str, arguments: &[A]) -> String {
        let arguments = arguments.iter().map(|argument| argument.as_ref().to_owned());
        tool(program, ["-c".to_owned(), self.path("ceph.conf")].into_iter().chain(arguments))
    }

    fn daemon(&self, program: &str, arguments: &[&str]) -> Daemon {
        let configuration = self.path("ceph.conf");
        let all = ["-f", "-c", &configuration].into_iter().chain(arguments.iter().copied()).map(str::to_owned);
        let path = ["/usr/bin", "/usr/sbin"].map(|bin| Path::new(bin).join(program));
        let path = path.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{program} is not installed"));
        Daemon::start(&Server {
            program: path,
            arguments: all.collect(),
            environment: &[],
            directory: self.directory,
            log: &self.directory.join(format!("{program}.out")),
            on_death: "KILL",
        })
    }

    fn write_configuration(&self) {
        for name in ["mon", "osd", "rgw", "run", "tls"] {
            let path = self.directory.join(name);
            std::fs::create_dir(&path).expect("a directory for Ceph");
            crate::user::give(&path);
        }
        let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a random uuid");
        let directory = self.directory.display();
        let http = self.ports;
        let [https, monitor, first, last] = [http + 1, http + 2, http + 3, http + PORTS - 1];
        // Quick to start (the monitor's proposals wait a second by default), content with one of everything.
        self.write(
            "ceph.conf",
            &format!(
                "[global]
fsid = {id}mon_host = [v2:127.0.0.1:{monitor}]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
keyring = {directory}/keyring
run_dir = {directory}/run
crash_dir = {directory}/run
log_file = {directory}/$name.log
admin_socket = {directory}/run/$name.asok
paxos_propose_interval = 0.05
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data = {directory}/mon
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[osd]
keyring = {directory}/osd/keyring
osd_data = {directory}/osd
osd_objectstore = memstore
memstore_device_bytes = 17179869184
ms_bind_port_min = {first}
ms_bind_port_max = {last}
[client.gateway]
rgw_data = {directory}/rgw
rgw_dns_name = localhost
rgw_frontends = beast endpoint=127.0.0.1:{http} ssl_endpoint=127.0.0.1:{https} \
                 ssl_certificate={directory}/tls/server.pem ssl_private_key={directory}/tls/server.key
rgw_enable_usage_log = false
rgw_thread_pool_size = 64
"
            ),
        );
    }

    fn write_certificates(&self) {
        self.write("tls/names", "subjectAltName = DNS:localhost, IP:127.0.0.1\nextendedKeyUsage = serverAuth\n");
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let run = |words: &str| {
            let words = words.split_whitespace().map(str::to_owned);
            let words = words.flat_map(|word| if word == "KEY" { key.map(str::to_owned).to_vec() } else { vec![word] });
            Run::new("openssl").args(words).current_dir(self.directory.join("tls")).finish().expect_code(0);
        };
        run("req -x509 KEY -days 30 -subj /CN=walkeep-test -addext basicConstraints=critical,CA:TRUE \
             -keyout ca.key -out ca.pem");
        run("req KEY -subj /CN=localhost -keyout server.key -out server.csr");
        run(
            "x509 -req -days 30 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile names -out server.pem",
        );
    }

    fn start_monitor(&self) -> Daemon {
        let [keyring, map, data] = ["keyring", "monmap", "mon"].map(|name| self.path(name));
        let key = |name: &str, rights: &[&str]| {
            let rights = rights.iter().flat_map(|right| right.split('=')).collect::<Vec<_>>();
            let rights = rights.chunks(2).flat_map(|right| ["--cap", right[0], right[1]]);
            let options = ["--gen-key", "-n", name].into_iter().chain(rights);
            tool("ceph-authtool", [keyring.as_str()].into_iter().chain(options));
        };
        tool("ceph-authtool", ["--create-keyring", &keyring]);
        key("mon.", &["mon=allow *"]);
        key("client.admin", &["mon=allow *", "osd=allow *", "mgr=allow *"]);
        key("client.gateway", &["mon=allow rw", "osd=allow rwx"]);
        let configuration = std::fs::read_to_string(self.path("ceph.conf")).expect("ceph.conf");
        let id = configuration.lines().find_map(|line| line.strip_prefix("fsid = ")).expect("fsid");
        let address = format!("[v2:127.0.0.1:{}]", self.ports + 2);
        tool("monmaptool", ["--create", "--fsid", id, "--addv", "a", &address, &map]);
        self.tool("ceph-mon", &["-i", "a", "--mkfs", "--monmap", &map, "--keyring", &keyring, "--mon-data", &data]);
        let daemon = self.daemon("ceph-mon", &["-i", "a"]);
        // Its answer needs a quorum; `ceph` itself waits for that.
        self.tool("ceph", &["--connect-timeout", "30", "-s"]);
        daemon
    }

    fn start_object_store(&self) -> Daemon {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("a random uuid");
        let id = id.trim_end();
        self.tool("ceph", &["osd", "new", id]);
        let keyring = self.path("osd/keyring");
        let rights = ["mon", "allow profile osd", "osd", "allow *"];
        let arguments = ["auth", "get-or-create", "osd.0"].into_iter().chain(rights).chain(["-o", &keyring]);
        self.tool("ceph", &arguments.collect::<Vec<_>>());
        self.tool("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", id]);
        let daemon = self.daemon("ceph-osd", &["-i", "0"]);
        until("Ceph's object store is up", SOON, || self.tool("ceph", &["osd", "stat"]).contains("1 up").then_some(()));
        daemon
    }

    fn create_user(&self, name: &str, more: &[&str]) -> Credentials {
        let credentials = Credentials {
            access_key: format!("KEY{}", name.to_uppercase()),
            secret_key: format!("{name}/secret+0123456789abcdef"),
        };
        let Credentials { access_key, secret_key } = &credentials;
        let keys = [format!("--access-key={access_key}"), format!("--secret={secret_key}")];
        let user = [format!("--uid={name}"), format!("--display-name={name}")];
        let words = ["user".to_owned(), "create".to_owned()].into_iter().chain(user).chain(keys);
        let words = words.chain(more.iter().map(|word| (*word).to_owned()));
        self.tool("radosgw-admin", &words.collect::<Vec<_>>());
        credentials
    }

    fn start_gateway(&self) -> Daemon {
        let daemon = self.daemon("radosgw", &["-n", "client.gateway"]);
        until("Ceph's gateway listens", SOON, || TcpStream::connect(("127.0.0.1", self.ports)).ok());
        daemon
    }
}

/// Finds consecutive free ports below the range the kernel hands out by itself.
fn free_port_range() -> u16 {
    let start = u16::try_from(std::process::id() % 100).expect("below 100");
    let candidates = (0..100).map(|step| 20_000 + (start + step) % 100 * 100);
    let free = |first: &u16| (*first..first + PORTS).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    candidates.into_iter().find(free).expect("free ports between 20000 and 30000")
}

/// Removes the server's directory when the test process has ended, however it ended: statics are never dropped.
#[derive(Debug)]
struct Sweeper {
    /// Waits for the end of its standard input, whose other end dies with us.
    _shell: Child,
}

impl Sweeper {
    fn start(directory: &Path) -> Self {
        let script = "trap '' INT TERM; cat; \
                      if [ -z \"$WALKEEP_KEEP\" ]; then until rm -rf \"$0\" 2>/dev/null; do sleep 0.2; done; fi";
        let mut shell = Command::new("/bin/sh");
        shell.arg("-c").arg(script).arg(directory).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let shell = shell.spawn().expect("run a shell");
        Self { _shell: shell }
    }
}
