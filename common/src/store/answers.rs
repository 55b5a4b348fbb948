//! What the store's client keeps to itself: that there was an answer, its `Date`, and its `Retry-After`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

use super::Health;

/// Makes clients that tell of the answers they get.
#[derive(Debug)]
pub(super) struct Connector(pub(super) Arc<Health>);

#[derive(Debug)]
struct Listening {
    client: HttpClient,
    health: Arc<Health>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Listening { client, health: Arc::clone(&self.0) }))
    }
}

#[async_trait]
impl HttpService for Listening {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.client.execute(request).await?;
        let status = answer.status().as_u16();
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let now = Timestamp::now();
        if let Some(date) = header("date").and_then(moment) {
            self.health.note_date(date, now);
        }
        let retry_after = header("retry-after");
        if !is_failing(status) {
            self.health.note_answer();
        } else if let Some(pause) = retry_after.and_then(|value| pause(status, value, now)) {
            self.health.note_pause(pause);
        }
        Ok(answer)
    }
}

/// Whether whoever answers says no more than that the store cannot answer.
fn is_failing(status: u16) -> bool {
    status >= 500 || status == 429
}

/// How long the store wants to be left alone. On other answers the header does not speak of the store as a whole.
fn pause(status: u16, retry_after: &str, now: Timestamp) -> Option<Duration> {
    if matches!(status, 429 | 503) { parse(retry_after, now) } else { None }
}

/// Seconds, or the moment from which on (RFC 9110, 10.2.3).
fn parse(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some(Duration::try_from(moment(value)?.duration_since(now)).unwrap_or_default())
}

/// A moment as HTTP writes it (RFC 9110, 5.6.7).
fn moment(value: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_moments_are_understood() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        for (value, expected) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 22 Nov 2026 12:01:30 GMT", Some(90)),
            ("Sun, 22 Nov 2026 11:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(parse(value, now), expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn only_a_store_that_is_overloaded_is_left_alone() {
        let expected = [(429, Some(7)), (503, Some(7)), (500, None), (502, None)];
        for (status, expected) in expected {
            assert_eq!(pause(status, "7", Timestamp::UNIX_EPOCH), expected.map(Duration::from_secs), "{status}");
        }
        let answers = [(200, false), (404, false), (412, false), (429, true), (500, true), (503, true)];
        for (status, failing) in answers {
            assert_eq!(is_failing(status), failing, "{status}");
        }
    }
}
