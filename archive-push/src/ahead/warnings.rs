//! The worker's warnings: kept per file instead of printed, since they belong into the log of the server, which only the
//! call for that file can write to.

use std::cell::RefCell;
use std::fmt;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

thread_local! {
    static WARNINGS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// From now on, keeps the warnings of this process.
pub(crate) fn keep() {
    // Only a second one in the same process could fail, and then the first one serves.
    let _ = tracing::subscriber::set_global_default(Keeper);
}

/// Does something, and returns what it warned of on this thread as well.
pub(crate) fn kept_during<T>(doing: impl FnOnce() -> T) -> (T, Vec<String>) {
    let _ = WARNINGS.take();
    let result = doing();
    (result, WARNINGS.take())
}

struct Keeper;

impl Subscriber for Keeper {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN && metadata.is_event()
    }

    fn event(&self, event: &Event<'_>) {
        let mut message = Message::default();
        event.record(&mut message);
        WARNINGS.with_borrow_mut(|warnings| warnings.push(message.0));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_kept_for_the_file_they_are_about() {
        tracing::subscriber::with_default(Keeper, || {
            let (result, warnings) = kept_during(|| {
                tracing::warn!("one {}", 1);
                tracing::info!("not worth keeping");
                7
            });
            assert_eq!((result, warnings), (7, vec!["one 1".to_owned()]));
            assert_eq!(kept_during(|| ()).1, Vec::<String>::new());
        });
    }
}
