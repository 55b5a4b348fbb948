//! A repository in a directory or a bucket, the configuration that names it, and its objects by hand.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::runtime::Runtime;

use crate::ceph::{self, Credentials};
use crate::emulator::{Azurite, S3rver};
use crate::proxy::Proxy;
use crate::scratch::Scratch;
use crate::user;

/// A repository for one test, with everything a program needs to use it.
///
/// The objects are read and written by other means than the programs': a directory as files, a bucket through a client
/// that has no part of Walkeep in it.
#[derive(Debug)]
pub struct Repository {
    url: String,
    objects: Objects,
    settings: String,
    environment: Vec<(String, String)>,
    scratch: Scratch,
}

#[derive(Debug)]
enum Objects {
    Directory(PathBuf),
    Bucket { store: Arc<dyn ObjectStore>, prefix: String, runtime: Runtime },
}

impl Repository {
    /// A directory `repository` of the unprivileged user, named by a `file://` URL.
    pub fn directory() -> Self {
        let scratch = Scratch::new("repo");
        let directory = scratch.create_private("repository");
        let url = format!("file://{}", directory.display());
        Self::new(scratch, url, Objects::Directory(directory), "", Vec::new())
    }

    /// A new bucket of Ceph's.
    pub fn ceph() -> Self {
        let ceph = ceph::shared();
        Self::s3(&ceph.endpoint, &ceph.create_bucket(), &ceph.owner)
    }

    /// A new bucket of Ceph's whose objects can be locked and keep their versions.
    pub fn ceph_with_object_lock() -> Self {
        let ceph = ceph::shared();
        Self::s3(&ceph.endpoint, &ceph.create_bucket_with_object_lock(), &ceph.owner)
    }

    /// A new bucket of Ceph's, reached by TLS with a certificate of Ceph's own authority, which the configuration
    /// names.
    pub fn ceph_with_tls() -> Self {
        let ceph = ceph::shared();
        let mut repository = Self::ceph();
        repository.set_endpoint(&ceph.tls_endpoint);
        repository.configure_s3(&format!("ca_file = {:?}", ceph.ca.display().to_string()));
        repository
    }

    /// A bucket of s3rver's, which the server was started with.
    pub fn s3rver(server: &S3rver, bucket: &str) -> Self {
        let key = S3rver::KEY.to_owned();
        Self::s3(&server.endpoint, bucket, &Credentials { access_key: key.clone(), secret_key: key })
    }

    /// A container of Azurite's, which the server was started with.
    pub fn azurite(server: &Azurite, container: &str) -> Self {
        let environment = [
            ("AZURE_STORAGE_ACCOUNT_NAME", Azurite::ACCOUNT),
            ("AZURE_STORAGE_ACCOUNT_KEY", Azurite::KEY),
            ("AZURE_ENDPOINT", server.endpoint.as_str()),
            ("AZURE_ALLOW_HTTP", "true"),
        ];
        let store = MicrosoftAzureBuilder::new()
            .with_account(Azurite::ACCOUNT)
            .with_access_key(Azurite::KEY)
            .with_container_name(container)
            .with_endpoint(server.endpoint.clone())
            .with_allow_http(true)
            .build();
        let objects = Objects::bucket(Arc::new(store.expect("an Azure client")));
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Self::new(Scratch::new("repo"), format!("az://{container}/test"), objects, "", environment)
    }

    fn s3(endpoint: &str, bucket: &str, credentials: &Credentials) -> Self {
        let store = AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_region(ceph::REGION)
            .with_bucket_name(bucket)
            .with_access_key_id(&credentials.access_key)
            .with_secret_access_key(&credentials.secret_key)
            .with_allow_http(true)
            .build();
        let objects = Objects::bucket(Arc::new(store.expect("an S3 client")));
        let mut repository =
            Self::new(Scratch::new("repo"), format!("s3://{bucket}/test"), objects, &s3_settings(endpoint), Vec::new());
        repository.set_credentials(credentials);
        repository
    }

    fn new(
        scratch: Scratch,
        url: String,
        objects: Objects,
        settings: &str,
        mut environment: Vec<(String, String)>,
    ) -> Self {
        let configuration = scratch.path().join("walkeep.toml").display().to_string();
        environment.push(("WALKEEP_CONFIG".to_owned(), configuration));
        let [run, spool] = ["run", "spool"].map(|name| scratch.create_private(name).display().to_string());
        let settings = format!("run_directory = {run:?}\nspool_directory = {spool:?}\n{settings}");
        let repository = Self { url, objects, settings, environment, scratch };
        repository.write_configuration();
        repository
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The configuration file that names it.
    pub fn configuration(&self) -> PathBuf {
        self.scratch.path().join("walkeep.toml")
    }

    /// The directory where the programs remember what they know about the repository.
    pub fn spool(&self) -> PathBuf {
        self.scratch.path().join("spool")
    }

    /// A directory beside it, for whatever a test wants to keep there.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The variables a program needs: `WALKEEP_CONFIG`, and the credentials of a bucket.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// Adds top-level lines to the configuration (`timeout = 5`).
    pub fn configure(&mut self, lines: &str) {
        self.settings = format!("{lines}\n{}", self.settings);
        self.write_configuration();
    }

    /// Adds lines to the configuration's section `[s3]`.
    pub fn configure_s3(&mut self, lines: &str) {
        self.settings = format!("{}{lines}\n", self.settings);
        self.write_configuration();
    }

    /// Makes the configuration name another URL.
    pub fn set_url(&mut self, url: &str) {
        url.clone_into(&mut self.url);
        self.write_configuration();
    }

    /// Makes the configuration name another S3 endpoint.
    pub fn set_endpoint(&mut self, endpoint: &str) {
        let old = self.settings.find("[s3]").expect("a repository in S3");
        self.settings.truncate(old);
        self.settings.push_str(&s3_settings(endpoint));
        self.write_configuration();
    }

    /// Makes the programs reach the store through this proxy. The test itself still goes the straight way.
    pub fn set_proxy(&mut self, proxy: &Proxy) {
        self.set_endpoint(&proxy.endpoint());
    }

    /// Makes the programs use these credentials.
    pub fn set_credentials(&mut self, credentials: &Credentials) {
        self.environment.retain(|(name, _)| !name.starts_with("AWS_"));
        for (name, value) in
            [("AWS_ACCESS_KEY_ID", &credentials.access_key), ("AWS_SECRET_ACCESS_KEY", &credentials.secret_key)]
        {
            self.environment.push((name.to_owned(), value.clone()));
        }
    }

    /// The keys of all objects, relative to the URL, sorted.
    pub fn objects(&self) -> Vec<String> {
        let mut keys = match &self.objects {
            Objects::Directory(root) => {
                let mut keys = Vec::new();
                list(root, root, &mut keys);
                keys
            }
            Objects::Bucket { store, prefix, runtime } => {
                let folder = Key::from(prefix.as_str());
                let listing = store.list(Some(&folder));
                let listing = runtime.block_on(listing.try_collect::<Vec<_>>()).expect("list the bucket");
                let below = format!("{prefix}/");
                listing
                    .iter()
                    .filter_map(|object| object.location.as_ref().strip_prefix(&below))
                    .map(str::to_owned)
                    .collect()
            }
        };
        keys.sort();
        keys
    }

    /// The key of the one object whose key ends so.
    #[track_caller]
    pub fn find(&self, suffix: &str) -> String {
        let objects = self.objects();
        let mut found = objects.iter().filter(|key| key.ends_with(suffix));
        match (found.next(), found.next()) {
            (Some(key), None) => key.clone(),
            _ => panic!("expected one object \"…{suffix}\" among {objects:#?}"),
        }
    }

    /// The bytes of an object.
    pub fn read(&self, key: &str) -> Vec<u8> {
        match &self.objects {
            Objects::Directory(root) => std::fs::read(root.join(key)).expect("read an object"),
            Objects::Bucket { store, prefix, runtime } => runtime.block_on(async {
                let object = store.get(&Key::from(format!("{prefix}/{key}"))).await.expect("get an object");
                object.bytes().await.expect("read an object").to_vec()
            }),
        }
    }

    /// Puts an object, whether or not it exists.
    pub fn write(&self, key: &str, bytes: &[u8]) {
        match &self.objects {
            Objects::Directory(root) => {
                let path = root.join(key);
                let parent = path.parent().expect("a directory");
                std::fs::create_dir_all(parent).expect("create a directory");
                // As any store does it: there at once, whole, and readable.
                let mut unfinished = path.clone().into_os_string();
                unfinished.push("#");
                std::fs::write(&unfinished, bytes).expect("write an object");
                user::give(Path::new(&unfinished));
                std::fs::rename(&unfinished, &path).expect("write an object");
                for path in path.ancestors().take_while(|path| *path != root) {
                    user::give(path);
                }
            }
            Objects::Bucket { store, prefix, runtime } => {
                let key = Key::from(format!("{prefix}/{key}"));
                runtime.block_on(store.put(&key, bytes.to_vec().into())).expect("put an object");
            }
        }
    }

    /// Deletes an object.
    pub fn delete(&self, key: &str) {
        match &self.objects {
            Objects::Directory(root) => std::fs::remove_file(root.join(key)).expect("delete an object"),
            Objects::Bucket { store, prefix, runtime } => {
                runtime.block_on(store.delete(&Key::from(format!("{prefix}/{key}")))).expect("delete an object");
            }
        }
    }

    /// Changes one bit of an object.
    pub fn flip_bit(&self, key: &str, offset: usize) {
        let mut bytes = self.read(key);
        bytes[offset] ^= 1;
        self.write(key, &bytes);
    }

    /// Cuts an object short.
    pub fn truncate(&self, key: &str, length: usize) {
        let bytes = self.read(key);
        assert!(length < bytes.len(), "{key} has only {} bytes", bytes.len());
        self.write(key, &bytes[..length]);
    }

    /// The directory of a `file://` repository.
    pub fn path(&self) -> &Path {
        match &self.objects {
            Objects::Directory(root) => root,
            Objects::Bucket { .. } => panic!("{} is not a directory", self.url),
        }
    }

    fn write_configuration(&self) {
        let content = format!("repository = {:?}\n{}", self.url, self.settings);
        self.scratch.write("walkeep.toml", content);
    }
}

impl Objects {
    fn bucket(store: Arc<dyn ObjectStore>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self::Bucket { store, prefix: "test".to_owned(), runtime }
    }
}

fn s3_settings(endpoint: &str) -> String {
    format!("[s3]\nendpoint = {endpoint:?}\nregion = {:?}\npath_style = true\n", ceph::REGION)
}

fn list(root: &Path, directory: &Path, keys: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).expect("list a directory") {
        let path = entry.expect("list a directory").path();
        if path.is_dir() {
            list(root, &path, keys);
        } else {
            keys.push(path.strip_prefix(root).expect("below the root").to_str().expect("UTF-8").to_owned());
        }
    }
}
