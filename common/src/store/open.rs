//! From the configuration to a store: the one place that knows every kind.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::prefix::PrefixStore;
use object_store::{Certificate, ClientOptions, ObjectStore, RetryConfig};

use super::answers::Connector;
use super::upload::GivenUp;
use super::{CreateOnly, Health, Store, credentials, directory};
use crate::config::{Config, S3Settings, Scheme};
use crate::error::{Error, IoContext as _, Kind, Result};
use crate::retry::Patience;

const CONNECT_TIME: Duration = Duration::from_secs(5);
/// The longest one part of a multipart upload may take: the largest part on the slowest link that is supported.
const PART_TIME: Duration = Duration::from_secs(20 * 60);

/// Where distributions keep the certificates of the authorities they trust.
const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Two clients of the same store: one without any time limit of its own, one for the parts of multipart uploads.
type Clients = (Arc<dyn ObjectStore>, Arc<dyn ObjectStore>);

impl Store {
    /// Opens the configured repository. Nothing is sent anywhere yet.
    ///
    /// # Errors
    /// `Refused` if a local repository's directory is not there; `Usage` if the settings cannot work.
    pub fn open(config: &Config, patience: Patience) -> Result<Self> {
        let health = Arc::new(Health::default());
        let connector = || Connector(Arc::clone(&health));
        let (clients, directory, known) = match &config.repository.scheme {
            Scheme::File { directory } => {
                let store: Arc<dyn ObjectStore> = Arc::new(directory::open(directory)?);
                // A hard link fails where its name exists: no store is stricter.
                ((Arc::clone(&store), store), Some(directory.clone()), CreateOnly::Enforced)
            }
            Scheme::S3 { bucket } => (s3(bucket, &config.s3, connector())?, None, CreateOnly::NotEnforced),
            Scheme::Gcs { bucket } => (gcs(bucket, connector())?, None, CreateOnly::NotEnforced),
            Scheme::Azure { container } => (azure(container, connector())?, None, CreateOnly::NotEnforced),
        };
        let below_prefix = |store: Arc<dyn ObjectStore>| -> Arc<dyn ObjectStore> {
            match config.repository.prefix.as_str() {
                "" => store,
                prefix => Arc::new(PrefixStore::new(store, prefix)),
            }
        };
        Ok(Self {
            place: place(config),
            objects: below_prefix(clients.0),
            parts: below_prefix(clients.1),
            location: config.repository.clone(),
            directory,
            create_only: Arc::new(AtomicU8::new(known as u8)),
            health,
            patience,
            given_up: GivenUp::default(),
        })
    }
}

/// What tells one configured repository from all others, endpoints from the environment included.
pub fn place(config: &Config) -> String {
    format!("{} {}", config.repository, variant(config))
}

/// What decides, besides the URL, which store is meant.
fn variant(config: &Config) -> String {
    match config.repository.scheme {
        Scheme::S3 { .. } => endpoint(&config.s3).unwrap_or_default(),
        Scheme::Azure { .. } => {
            let names = ["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"];
            names.into_iter().filter_map(variable).collect::<Vec<_>>().join(" ")
        }
        Scheme::Gcs { .. } | Scheme::File { .. } => String::new(),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn endpoint(settings: &S3Settings) -> Option<String> {
    let configured = settings.endpoint.clone();
    configured.or_else(|| variable("AWS_ENDPOINT_URL_S3")).or_else(|| variable("AWS_ENDPOINT_URL"))
}

fn s3(bucket: &str, settings: &S3Settings, connector: Connector) -> Result<Clients> {
    let endpoint = endpoint(settings);
    let ca_file = settings.ca_file.clone().or_else(|| variable("AWS_CA_BUNDLE").map(PathBuf::from));
    // Whoever writes http:// into an endpoint asks for it.
    let plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    // Compatible stores rarely have a DNS name per bucket, and no certificate covers a bucket with a dot.
    let path_style = settings.path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));

    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(!path_style)
        // Over TLS the body is protected already, and hashing it again costs as much as compressing it.
        .with_unsigned_payload(!plain)
        .with_http_connector(connector)
        .with_retry(no_retries());
    let region = settings.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
    builder =
        builder.with_region(region.or_else(credentials::profile_region).unwrap_or_else(|| "us-east-1".to_owned()));
    if let Some(endpoint) = &endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(provider) = credentials::s3_provider() {
        builder = builder.with_credentials(provider);
    }
    let options = client_options(plain, ca_file)?;
    let build = |options| builder.clone().with_client_options(options).build().map_err(unusable);
    Ok((Arc::new(build(options.0)?), Arc::new(build(options.1)?)))
}

fn gcs(bucket: &str, connector: Connector) -> Result<Clients> {
    let builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_http_connector(connector)
        .with_retry(no_retries());
    let options = client_options(false, None)?;
    let build = |options| builder.clone().with_client_options(options).build().map_err(unusable);
    Ok((Arc::new(build(options.0)?), Arc::new(build(options.1)?)))
}

fn azure(container: &str, connector: Connector) -> Result<Clients> {
    let plain = ["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"]
        .iter()
        .any(|name| std::env::var(name).is_ok_and(|endpoint| endpoint.starts_with("http://")));
    let builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_http_connector(connector)
        .with_retry(no_retries());
    let options = client_options(plain, None)?;
    let build = |options| builder.clone().with_client_options(options).build().map_err(unusable);
    Ok((Arc::new(build(options.0)?), Arc::new(build(options.1)?)))
}

/// Trying again is our own affair: the store's client would repeat an old signature and old credentials.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// Options for the two clients. The client's total limit covers the body as well and would end large downloads that
/// are making progress; its read limit would end large uploads. So requests are limited by [`Store`] itself.
fn client_options(plain: bool, ca_file: Option<PathBuf>) -> Result<(ClientOptions, ClientOptions)> {
    let allow_http = plain || std::env::var("AWS_ALLOW_HTTP").is_ok_and(|value| value == "true" || value == "1");
    let mut options =
        ClientOptions::new().with_allow_http(allow_http).with_connect_timeout(CONNECT_TIME).with_timeout_disabled();
    let bundle = ca_file.or_else(|| std::env::var_os("SSL_CERT_FILE").map(PathBuf::from));
    let system = || SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| path.is_file());
    if plain {
        // Reading the authorities takes milliseconds that a plain connection has no use for.
        options = options.with_no_system_certificates(true);
    } else if let Some(bundle) = bundle.or_else(system) {
        // One bundle instead of the client's own search, which reads hundreds of files.
        options = options.with_no_system_certificates(true);
        for certificate in certificates(&bundle)? {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok((options.clone(), options.with_timeout(PART_TIME)))
}

fn certificates(bundle: &std::path::Path) -> Result<Vec<Certificate>> {
    let pem = std::fs::read(bundle).context("read certificates in", bundle).map_err(|e| e.with_kind(Kind::Usage))?;
    let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
    if certificates.is_empty() {
        return Err(Error::new(Kind::Usage, format!("no certificate in \"{}\"", bundle.display()))
            .hint("The file must hold the authority's certificate in PEM."));
    }
    Ok(certificates)
}

fn unusable(error: object_store::Error) -> Error {
    Error::new(Kind::Usage, "could not set up the object store's client").caused_by(error)
}
