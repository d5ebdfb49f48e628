//! What runs by itself for years: checks within a budget, healing, drills, and what monitoring reads of them.

mod drill;
mod live;
mod schedules;
mod verify;
