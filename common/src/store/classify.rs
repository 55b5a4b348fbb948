//! From the store's failures to ours: what may be tried again, what the operator must mend.
//!
//! `object_store` tells the status and body of an answer only in the text of its errors, so that is where they are read.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use object_store::Error as StoreError;

use crate::config::{Location, Scheme};
use crate::error::{Error, Kind};

/// Codes in an answer's body that mean the credentials are not accepted, whatever the status.
const CREDENTIAL_CODES: [&str; 8] = [
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthenticationFailed",
    "AuthorizationHeaderMalformed",
    "InvalidClientTokenId",
];
/// Codes that a fresh signature, with credentials read anew, may clear up.
const OUTDATED_CODES: [&str; 3] = ["ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed"];
const MISSING_BUCKET_CODES: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist"];
/// Codes that ask for fewer requests.
const THROTTLING_CODES: [&str; 2] = ["SlowDown", "ServerBusy"];
/// Where a machine of a cloud asks for its own credentials: the last resort where none are configured.
const METADATA_SERVICES: [&str; 4] =
    ["//169.254.169.254/", "//169.254.170.", "//metadata.google.internal", "//login.microsoftonline.com"];
/// Codes that mean the credentials are accepted and not allowed to do this.
const RIGHTS_CODES: [&str; 3] = ["AccessDenied", "AuthorizationPermissionMismatch", "does not have storage."];
/// Answers with a 4xx status that come from load or a slow link, not from the request.
const TRANSIENT_CODES: [&str; 4] = ["RequestTimeout", "SlowDown", "OperationAborted", "ServerBusy"];

/// Ends a request that takes longer than `limit`.
pub(super) async fn limited<T>(
    limit: Duration,
    request: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    tokio::time::timeout(limit, request).await.unwrap_or_else(|_| {
        let words = format!("no answer within {} s", limit.as_secs());
        Err(StoreError::Generic { store: "store", source: io::Error::new(io::ErrorKind::TimedOut, words).into() })
    })
}

/// Whether this is the answer "there is no such object", and not "there is no such bucket".
pub(super) fn is_missing_object(error: &StoreError) -> bool {
    matches!(error, StoreError::NotFound { .. }) && !mentions(&text(error), &MISSING_BUCKET_CODES)
}

/// Whether the store does not let us do this.
pub(super) fn is_refusal(error: &StoreError) -> bool {
    matches!(error, StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. })
}

/// Whether the credentials are accepted and not allowed to do this, also where that is said of one object among many.
pub(super) fn lacks_rights(error: &StoreError) -> bool {
    is_refusal(error) || mentions(&text(error), &RIGHTS_CODES)
}

/// Whether the store keeps an object because it was told to.
pub(super) fn is_protected(error: &StoreError) -> bool {
    const WORDS: [&str; 6] =
        ["ObjectLocked", "object lock", "Object Lock", "retention", "BlobImmutable", "immutability policy"];
    // EPERM: a file that may not be changed, and not one we have no rights to.
    let is_immutable_file = io_cause(error).is_some_and(|error| error.raw_os_error() == Some(1));
    is_immutable_file || mentions(&without_addresses(&text(error)), &WORDS)
}

/// Whether the store does not know conditional puts.
pub(super) fn is_not_implemented(error: &StoreError) -> bool {
    matches!(error, StoreError::NotImplemented { .. }) || status(&text(error)) == Some(501)
}

/// Whether the store asks for fewer requests.
pub(super) fn is_throttling(error: &StoreError) -> bool {
    let text = text(error);
    matches!(status(&text), Some(429 | 503)) || mentions(&text, &THROTTLING_CODES)
}

/// Whether the store did not answer in the time it was given.
pub(super) fn is_time_out(error: &StoreError) -> bool {
    let is_time_out = |cause: &io::Error| cause.kind() == io::ErrorKind::TimedOut;
    matches!(error, StoreError::Generic { .. })
        && chain(error).filter_map(|cause| cause.downcast_ref()).any(is_time_out)
}

/// Whether the range asked for begins behind the object's end.
pub(super) fn is_range_not_satisfiable(error: &StoreError) -> bool {
    let text = text(error);
    status(&text) == Some(416) || text.contains("Wanted range starting at") || text.contains("Out of range of file")
}

/// Whether the store answered a request for a range with the whole object.
pub(super) fn is_whole_answer(error: &StoreError) -> bool {
    text(error).contains("non-partial response")
}

/// Turns a failure into ours. Text that came from a peer is cut and printed in one line.
pub(super) fn explain(location: &Location, doing: &str, url: &str, error: &StoreError) -> Error {
    let text = text(error);
    let failure = classify(location, error, &without_addresses(&text));
    let message = format!("could not {doing} \"{url}\": {}", failure.words.unwrap_or_else(|| shorten(&text)));
    let mut error = Error::new(failure.kind, message);
    if let Some(hint) = failure.hint {
        error = error.hint(hint);
    }
    if mentions(&text, &OUTDATED_CODES) || mentions(&text, &METADATA_SERVICES) { error.worth_one_more() } else { error }
}

struct Failure {
    kind: Kind,
    words: Option<String>,
    hint: Option<String>,
}

impl Failure {
    fn new(kind: Kind) -> Self {
        Self { kind, words: None, hint: None }
    }

    fn refused(words: &str, hint: impl Into<String>) -> Self {
        Self { kind: Kind::Refused, words: Some(words.to_owned()), hint: Some(hint.into()) }
    }
}

fn classify(location: &Location, error: &StoreError, text: &str) -> Failure {
    if let Some(error) = io_cause(error) {
        return classify_io(error);
    }
    if mentions(text, &METADATA_SERVICES) {
        let words = format!("no credentials are configured, and this machine was not given any: {}", shorten(text));
        return Failure::refused(&words, credentials_hint(location));
    }
    if mentions(text, &MISSING_BUCKET_CODES) {
        return Failure::refused("the bucket does not exist", "Create it, or correct \"repository\".");
    }
    if text.contains("RequestTimeTooSkewed") {
        return Failure::refused(
            "the store says that this host's clock is wrong",
            "Set the clock of this host (timedatectl, chronyc tracking).",
        );
    }
    if mentions(text, &CREDENTIAL_CODES) {
        return Failure { hint: Some(credentials_hint(location)), ..Failure::new(Kind::Refused) };
    }
    if mentions(text, &TRANSIENT_CODES) {
        return Failure::new(Kind::Unavailable);
    }
    match error {
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => forbidden(location, text),
        StoreError::NotFound { .. } => Failure::refused(
            "the store answers 404 although this is not about one object",
            "Check \"repository\" and the endpoint: the bucket must exist.",
        ),
        _ => match status(text) {
            Some(301 | 307 | 308) => Failure {
                hint: Some("The bucket is in another region: set \"region\" in the section [s3].".to_owned()),
                ..Failure::new(Kind::Refused)
            },
            Some(401 | 403) => forbidden(location, text),
            Some(408 | 429 | 499 | 500..) | None => classify_transport(location, text),
            Some(_) => Failure::new(Kind::Refused),
        },
    }
}

/// The credentials are wrong or not allowed to do this; not every store says which.
fn forbidden(location: &Location, text: &str) -> Failure {
    let rights = rights_hint(location);
    let known = mentions(text, &RIGHTS_CODES);
    let hint = if known { rights } else { format!("{} {rights}", credentials_hint(location)) };
    Failure { hint: Some(hint), ..Failure::new(Kind::Refused) }
}

/// What happened on the way to the store: all of it may pass, some of it only with help.
fn classify_transport(location: &Location, text: &str) -> Failure {
    if text.contains("Received redirect without LOCATION") {
        return Failure {
            hint: Some("The bucket is in another region: set \"region\" in the section [s3].".to_owned()),
            ..Failure::new(Kind::Refused)
        };
    }
    if text.contains("URL scheme is not allowed") {
        return Failure::refused("plain http is not allowed", "Use https, or set AWS_ALLOW_HTTP=true.");
    }
    if text.contains("invalid peer certificate") || text.contains("UnknownIssuer") {
        let hint = match location.scheme {
            Scheme::S3 { .. } => "If the store has its own authority, name its certificate as \"ca_file\" in [s3].",
            _ => "The authority that signed the store's certificate is not trusted by this host.",
        };
        return Failure { hint: Some(hint.to_owned()), ..Failure::new(Kind::Unavailable) };
    }
    Failure::new(Kind::Unavailable)
}

fn classify_io(error: &io::Error) -> Failure {
    // EPERM, and not EACCES: the file system cannot do it at all.
    if error.raw_os_error() == Some(1) || error.kind() == io::ErrorKind::Unsupported {
        return Failure::refused(
            "the operation is not permitted on this file system",
            "The repository needs a file system with hard links: FAT and some network file systems have none.",
        );
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Failure {
            hint: Some("The user that runs PostgreSQL must be able to read and write the repository.".to_owned()),
            ..Failure::new(Kind::Refused)
        },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure {
            hint: Some("Free space, or enlarge the file system of the repository.".to_owned()),
            ..Failure::new(Kind::Unavailable)
        },
        _ => Failure::new(Kind::Unavailable),
    }
}

fn credentials_hint(location: &Location) -> String {
    match location.scheme {
        Scheme::S3 { .. } => {
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for the server process, or write them into \
             ~/.aws/credentials of the user that runs PostgreSQL."
        }
        Scheme::Gcs { .. } => {
            "Name the key file in GOOGLE_APPLICATION_CREDENTIALS for the server process, or give the machine a \
             service account."
        }
        Scheme::Azure { .. } => {
            "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY for the server process, or give the machine \
             an identity."
        }
        Scheme::File { .. } => "The user that runs PostgreSQL must be able to read and write the repository.",
    }
    .to_owned()
}

fn rights_hint(location: &Location) -> String {
    match location.scheme {
        Scheme::S3 { .. } => {
            "The credentials need s3:PutObject and s3:GetObject on the objects and s3:ListBucket on the bucket; \
             without the last, S3 answers 403 for a missing object."
        }
        _ => "The credentials must allow to create, read and list objects.",
    }
    .to_owned()
}

/// The operating system's answer below a directory's store; a transport's I/O errors are not about files.
fn io_cause(error: &StoreError) -> Option<&io::Error> {
    let local = match error {
        StoreError::Generic { store, .. } => *store == "LocalFileSystem",
        StoreError::PermissionDenied { .. } => true,
        _ => false,
    };
    chain(error).filter(|_| local).find_map(|cause| cause.downcast_ref::<io::Error>())
}

fn chain<'e>(error: &'e StoreError) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error as &(dyn StdError + 'static)), |error| (*error).source())
}

/// The error and its causes, each said once.
fn text(error: &StoreError) -> String {
    let mut text = String::new();
    for cause in chain(error) {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = if text.is_empty() { words } else { format!("{text}: {words}") };
        }
    }
    text
}

/// The text without URLs and paths: names of buckets and clusters must not be taken for codes. The addresses at which
/// credentials are asked for stay.
fn without_addresses(text: &str) -> String {
    let is_address = |word: &&str| word.contains("://") || word.contains('/') && !word.contains('<');
    let kept = |word: &&str| !is_address(word) || mentions(word, &METADATA_SERVICES);
    text.split_whitespace().filter(kept).collect::<Vec<_>>().join(" ")
}

fn status(text: &str) -> Option<u16> {
    let after = text.split("status code: ").nth(1)?;
    after.get(..3)?.parse().ok()
}

fn mentions(text: &str, codes: &[&str]) -> bool {
    codes.iter().any(|code| text.contains(code))
}

fn shorten(text: &str) -> String {
    const LONGEST: usize = 600;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(error: &StoreError) -> Kind {
        let location = Location { scheme: Scheme::S3 { bucket: "b".into() }, prefix: String::new() };
        explain(&location, "store", "s3://b/key", error).kind()
    }

    fn generic(text: &str) -> StoreError {
        StoreError::Generic { store: "S3", source: text.to_owned().into() }
    }

    fn answered(status: &str, code: &str) -> StoreError {
        generic(&format!("Server returned non-2xx status code: {status}: <Error><Code>{code}</Code></Error>"))
    }

    #[test]
    fn each_status_and_code_is_either_worth_another_try_or_the_operators_to_mend() {
        for (status, code, expected) in [
            ("500 Internal Server Error", "InternalError", Kind::Unavailable),
            ("503 Service Unavailable", "SlowDown", Kind::Unavailable),
            ("429 Too Many Requests", "", Kind::Unavailable),
            ("408 Request Timeout", "", Kind::Unavailable),
            ("400 Bad Request", "RequestTimeout", Kind::Unavailable),
            ("400 Bad Request", "ExpiredToken", Kind::Refused),
            ("400 Bad Request", "AuthorizationHeaderMalformed", Kind::Refused),
            ("403 Forbidden", "RequestTimeTooSkewed", Kind::Refused),
            ("404 Not Found", "NoSuchBucket", Kind::Refused),
            ("301 Moved Permanently", "PermanentRedirect", Kind::Refused),
            ("499 Client Closed Request", "", Kind::Unavailable),
            ("405 Method Not Allowed", "", Kind::Refused),
        ] {
            assert_eq!(kind(&answered(status, code)), expected, "{status} {code}");
        }
        assert_eq!(kind(&generic("error sending request: Connection refused")), Kind::Unavailable);
        assert_eq!(kind(&generic("dns error: failed to lookup address information")), Kind::Unavailable);
    }

    #[test]
    fn a_store_that_wants_fewer_requests_is_told_from_one_that_fails() {
        for (status, code, expected) in [
            ("503 Service Unavailable", "", true),
            ("429 Too Many Requests", "", true),
            ("400 Bad Request", "SlowDown", true),
            ("500 Internal Server Error", "InternalError", false),
        ] {
            assert_eq!(is_throttling(&answered(status, code)), expected, "{status} {code}");
        }
    }

    #[test]
    fn names_of_buckets_and_clusters_are_no_codes() {
        let refused = generic(
            "Error performing PUT http://127.0.0.1:1/company-metadata/SlowDown/NoSuchBucket in 1ms - connection refused",
        );
        assert_eq!(kind(&refused), Kind::Unavailable);
        let metadata = generic("Error performing PUT http://169.254.169.254/latest/api/token in 1s - timed out");
        assert_eq!(kind(&metadata), Kind::Refused);
    }

    #[test]
    fn a_machine_without_credentials_of_its_own_is_told_to_configure_some() {
        let text = "Error performing PUT http://169.254.169.254/latest/api/token in 5s: error sending request";
        let location = Location { scheme: Scheme::S3 { bucket: "b".into() }, prefix: String::new() };
        let error = explain(&location, "store", "s3://b/key", &generic(text));
        assert_eq!((error.kind(), error.is_worth_one_more()), (Kind::Refused, true));
        assert!(error.hint_text().is_some_and(|hint| hint.contains("AWS_ACCESS_KEY_ID")));
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let missing = |code: &str| StoreError::NotFound { path: "key".into(), source: code.to_owned().into() };
        assert!(is_missing_object(&missing("<Code>NoSuchKey</Code>")));
        assert!(!is_missing_object(&missing("<Code>NoSuchBucket</Code>")));
        assert!(!is_missing_object(&missing("<Code>ContainerNotFound</Code>")));
    }

    #[test]
    fn a_full_disk_may_pass_but_missing_permission_does_not() {
        let local = |kind: io::ErrorKind| StoreError::Generic {
            store: "LocalFileSystem",
            source: Box::new(io::Error::new(kind, "words")),
        };
        assert_eq!(kind(&local(io::ErrorKind::StorageFull)), Kind::Unavailable);
        assert_eq!(kind(&local(io::ErrorKind::PermissionDenied)), Kind::Refused);
        assert_eq!(kind(&local(io::ErrorKind::ReadOnlyFilesystem)), Kind::Refused);
    }

    #[test]
    fn a_long_page_of_a_proxy_becomes_one_short_line() {
        let location = Location { scheme: Scheme::S3 { bucket: "b".into() }, prefix: String::new() };
        let page = format!("status code: 502 Bad Gateway: <html>\n{}\n</html>", "x\n".repeat(5000));
        let error = explain(&location, "store", "s3://b/key", &generic(&page));
        assert!(error.to_string().len() < 800 && !error.to_string().contains('\n'));
    }
}
