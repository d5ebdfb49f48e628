//! The SQL that an administrator pastes, and the checks of `doctor`.
