//! Messages on standard error, in PostgreSQL's form.

use std::fmt;
use std::io::{IsTerminal as _, Write as _};
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::LogFormat;
use crate::error::Error;

/// How bad it is, in PostgreSQL's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// It failed.
    Error,
    /// It went on, but someone should know.
    Warning,
    /// Worth knowing.
    Info,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warning => "WARNING",
            Self::Info => "INFO",
        }
    }
}

/// Writes one program's messages.
#[derive(Debug, Clone, Copy)]
pub struct Reporter {
    program: &'static str,
    format: LogFormat,
}

static PANIC: OnceLock<String> = OnceLock::new();

impl Reporter {
    /// Sets up messages, warnings of the libraries' own included; a panic is kept for the way out instead of being
    /// printed over many lines.
    pub fn install(program: &'static str, format: LogFormat) -> Self {
        let reporter = Self { program, format };
        let subscriber = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_max_level(Level::WARN)
            // A message that cannot be written is lost; the library would panic over it.
            .log_internal_errors(false)
            .event_format(reporter)
            .finish();
        // Only a second installation in one process could fail, and then the first one serves.
        let _ = tracing::subscriber::set_global_default(subscriber);
        std::panic::set_hook(Box::new(|panic| {
            let _ = PANIC.set(panic.to_string().split_whitespace().collect::<Vec<_>>().join(" "));
        }));
        reporter
    }

    /// The words of the panic that ended a thread.
    pub fn panic_message() -> &'static str {
        PANIC.get().map_or("a thread ended without a word", String::as_str)
    }

    /// Prints a failure and its hint.
    pub fn error(&self, severity: Severity, error: &Error) {
        self.print(severity, &error.to_string(), error.hint_text());
    }

    /// Prints a message. A standard error that cannot be written to changes nothing.
    pub fn print(&self, severity: Severity, message: &str, hint: Option<&str>) {
        let mut text = String::new();
        if self.line(&mut text, severity, message, hint).is_ok() {
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
        }
    }

    fn line(&self, out: &mut impl fmt::Write, severity: Severity, message: &str, hint: Option<&str>) -> fmt::Result {
        let (program, severity) = (self.program, severity.as_str());
        let now = jiff::Timestamp::now();
        if self.format == LogFormat::Json {
            let mut object = serde_json::json!({
                "time": now.to_string(), "program": program, "severity": severity, "message": message,
            });
            if let (Some(hint), Some(fields)) = (hint, object.as_object_mut()) {
                let _ = fields.insert("hint".to_owned(), hint.into());
            }
            return writeln!(out, "{object}");
        }
        // PostgreSQL's log has its own times; a terminal has none.
        let terminal = std::io::stderr().is_terminal();
        let time = if terminal { format!("{} ", now.strftime("%F %T UTC")) } else { String::new() };
        writeln!(out, "{time}{program}: {severity}: {message}")?;
        match hint {
            Some(hint) => writeln!(out, "HINT: {hint}"),
            None => Ok(()),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Reporter
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let severity = match *event.metadata().level() {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            _ => Severity::Info,
        };
        let mut message = Message(String::new());
        event.record(&mut message);
        self.line(&mut writer, severity, &message.0, None)
    }
}

/// The message of an event, and its fields behind it.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        let _ = match field.name() {
            "message" => {
                self.0.insert_str(0, &format!("{value:?}"));
                Ok(())
            }
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
