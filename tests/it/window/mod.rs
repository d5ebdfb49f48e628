//! The restore of lost mail as a whole, from a repository and by the program: what it reads, what it says, and names that attack it.

mod budget;
mod commands;
mod hostile;
mod options;
