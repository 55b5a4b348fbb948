//! The `Retry-After` of an answer, which the store's client keeps to itself.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

use super::Health;

/// Makes clients that tell of every `Retry-After` they are answered with.
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
        let asked = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
        if let Some(pause) = asked.and_then(|value| parse(value, Timestamp::now())) {
            self.health.note_pause(pause);
        }
        Ok(answer)
    }
}

/// Seconds, or the moment from which on (RFC 9110, 10.2.3).
fn parse(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let moment = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(moment.duration_since(now)).unwrap_or_default())
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
}
