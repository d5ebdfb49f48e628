//! What is kept, forgotten, held and removed, by the program as people and timers call it.

pub mod commands;
