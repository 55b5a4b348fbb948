//! Ctrl-C and SIGTERM.

/// Waits for one of them.
pub(crate) async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        // Without a handler the signal's own action ends the process, to the same effect.
        _ => std::future::pending().await,
    }
}
