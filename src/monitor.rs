//! How the library tells what it is doing. It never prints: commands pass a [`Monitor`] that draws a progress bar, writes
//! JSON lines or, in tests, remembers.

use std::sync::Arc;

/// Hears of progress. All methods may be called from any thread and return at once.
pub trait Monitor: Send + Sync {
    /// A stage of the work begins. `total` is in the unit of the stage (bytes, rows, objects), if it is known.
    fn stage(&self, name: &'static str, unit: Unit, total: Option<u64>) {
        let _ = (name, unit, total);
    }
    /// The current stage is `amount` further.
    fn advance(&self, amount: u64) {
        let _ = amount;
    }
    /// Something a person should know that does not stop the work. Never a secret, never the content of a message.
    fn warn(&self, message: &str) {
        let _ = message;
    }
}

/// What a stage counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    Rows,
    Objects,
}

/// Hears nothing.
#[derive(Debug, Default)]
pub struct Silent;
impl Monitor for Silent {}

/// As it is handed through the library.
pub type SharedMonitor = Arc<dyn Monitor>;
