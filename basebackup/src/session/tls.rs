//! TLS towards the server: in which order it is tried, and whom to trust.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use tokio_postgres::config::SslMode as Transport;
use tokio_postgres_rustls::MakeRustlsConnect;
use walkeep_common::error::{Error, Kind, Result};

use super::conninfo::{ConnectionParameters, Host, RootCertificates, SslMode};

/// Where operating systems keep the authorities they trust, in one file.
const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What to try, one after the other. `sslmode` means nothing for a Unix socket.
pub(super) fn transports(parameters: &ConnectionParameters) -> &'static [Transport] {
    match (&parameters.host, parameters.sslmode) {
        (Host::Socket(_), _) | (_, SslMode::Disable) => &[Transport::Disable],
        (_, SslMode::Allow) => &[Transport::Disable, Transport::Require],
        (_, SslMode::Prefer) => &[Transport::Prefer, Transport::Disable],
        (_, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => &[Transport::Require],
    }
}

/// The connector for these parameters, and what is verified.
///
/// # Errors
/// `Usage` if a file of certificates that is needed is not there or holds none.
pub(super) fn connector(parameters: &ConnectionParameters) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let internal = |error: TlsError| Error::new(Kind::Internal, "could not set up TLS").caused_by(error);
    let used = transports(parameters).iter().any(|transport| *transport != Transport::Disable);
    let trust = if used { trust(parameters, &provider)? } else { Trust::Anyone };
    let verifier = Arc::new(Verifier { trust, provider: Arc::clone(&provider) });
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(internal)?.dangerous().with_custom_certificate_verifier(verifier);
    Ok(MakeRustlsConnect::new(config.with_no_client_auth()))
}

/// As libpq: authorities at hand are used whatever the mode, and only the modes that verify insist on them. Stricter
/// than libpq in one thing: a file named in words must be there.
fn trust(parameters: &ConnectionParameters, provider: &Arc<CryptoProvider>) -> Result<Trust> {
    let insists = matches!(parameters.sslmode, SslMode::VerifyCa | SslMode::VerifyFull);
    let roots = match &parameters.root_certificates {
        RootCertificates::System => system_roots()?,
        RootCertificates::File(path) => read_roots(path)?,
        RootCertificates::Default(Some(path)) if insists || path.exists() => read_roots(path)?,
        RootCertificates::Default(None) if insists => {
            let message = "could not find the home directory to locate the root certificate file";
            return Err(Error::new(Kind::Usage, message).hint("Name the file with sslrootcert."));
        }
        RootCertificates::Default(_) => return Ok(Trust::Anyone),
    };
    let roots = Arc::new(roots);
    if parameters.sslmode != SslMode::VerifyFull {
        return Ok(Trust::Authorities(roots));
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider)).build();
    let internal = |error| Error::new(Kind::Internal, "could not set up TLS").caused_by(format!("{error}"));
    Ok(Trust::AuthoritiesForThisHost(verifier.map_err(internal)?))
}

fn read_roots(path: &Path) -> Result<RootCertStore> {
    let unusable = |why: String| {
        Error::new(Kind::Usage, format!("could not use root certificate file \"{}\": {why}", path.display()))
            .hint("Put the certificate of the authority that signed the server's there, in PEM format.")
    };
    let pem = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
    }
    if roots.is_empty() { Err(unusable("it holds no certificate".to_owned())) } else { Ok(roots) }
}

fn system_roots() -> Result<RootCertStore> {
    let none = || {
        Error::new(Kind::Usage, "could not find the operating system's root certificates")
            .hint("Install the package ca-certificates, or name a file with sslrootcert.")
    };
    let path = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()).ok_or_else(none)?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| none().caused_by(error))?;
    // Bundles hold old certificates that rustls does not read: those are trusted by nobody any more.
    let (added, _) = roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    if added == 0 { Err(none()) } else { Ok(roots) }
}

/// What is asked of the server's certificate.
#[derive(Debug)]
enum Trust {
    Anyone,
    Authorities(Arc<RootCertStore>),
    AuthoritiesForThisHost(Arc<WebPkiServerVerifier>),
}

/// Verifies the certificate as the mode asks. That the server holds the certificate's key is verified always: SCRAM's
/// channel binding relies on it.
#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        match &self.trust {
            Trust::Anyone => Ok(ServerCertVerified::assertion()),
            Trust::Authorities(roots) => {
                let certificate = ParsedCertificate::try_from(end_entity)?;
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
                Ok(ServerCertVerified::assertion())
            }
            Trust::AuthoritiesForThisHost(verifier) => {
                verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What the operator can do about a failed handshake.
pub(super) fn hint(error: &TlsError) -> &'static str {
    match error {
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "The certificate must have the host name given in its subjectAltName; the common name does not count.",
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "Put the certificate of the authority that signed the server's into the file that sslrootcert names."
        }
        TlsError::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "Renew the server's certificate."
        }
        TlsError::InvalidCertificate(_) => {
            "The server's certificate must be of X.509 version 3 and not be that of an authority (CA:TRUE)."
        }
        _ => "The server must offer TLS 1.2 or 1.3.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::conninfo::{ConnectionArgs, Environment};

    fn parameters(dbname: &str) -> ConnectionParameters {
        let args = ConnectionArgs { dbname: Some(dbname.to_owned()), ..ConnectionArgs::default() };
        ConnectionParameters::resolve(&args, &Environment::of_process().unwrap()).unwrap()
    }

    #[test]
    fn plaintext_is_tried_only_where_the_mode_allows_it() {
        for (sslmode, expected) in [
            ("disable", &[Transport::Disable][..]),
            ("allow", &[Transport::Disable, Transport::Require]),
            ("prefer", &[Transport::Prefer, Transport::Disable]),
            ("require", &[Transport::Require]),
            ("verify-ca", &[Transport::Require]),
            ("verify-full", &[Transport::Require]),
        ] {
            assert_eq!(transports(&parameters(&format!("host=h sslmode={sslmode}"))), expected, "{sslmode}");
            let socket = parameters(&format!("host=/tmp sslmode={sslmode}"));
            assert_eq!(transports(&socket), [Transport::Disable], "{sslmode}");
        }
    }

    #[test]
    fn a_file_of_authorities_that_is_needed_must_be_there_and_hold_one() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.crt");
        let connect = |sslmode: &str| {
            connector(&parameters(&format!("host=h sslmode={sslmode} sslrootcert={}", file.display()))).map(|_| ())
        };
        for sslmode in ["prefer", "require", "verify-ca", "verify-full"] {
            assert_eq!(connect(sslmode).unwrap_err().kind(), Kind::Usage, "{sslmode}");
        }
        std::fs::write(&file, "no certificate").unwrap();
        assert!(connect("verify-ca").unwrap_err().to_string().contains("holds no certificate"));
        connect("disable").unwrap();
    }
}
