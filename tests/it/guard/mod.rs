//! The guard: what it refuses, what it does when it is killed, what it finds afterwards, and that nobody starts a server behind its back.

mod changes;
mod elsewhere;
mod kills;
mod refusals;
mod repairs;
mod scene;
mod supervisors;
mod upgrade;
