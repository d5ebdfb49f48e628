//! What Restante knows of mail: where the MIME parts of a message lie, how a wrapped base64 body is taken apart and put
//! together again byte for byte, and what makes two mails the same.
//!
//! The layer works on bytes in memory and does no input or output; it uses nothing else of Restante. `snapshot` cuts
//! values with [`cut`], `restore` writes them again with [`base64`], `compare` asks [`identity`] and [`matching`].
//! Nothing here panics, whatever the bytes, and nothing here puts the content of a message into an error or a log.

pub mod base64;
#[cfg(test)]
mod corpus;
pub mod cut;
pub mod identity;
pub mod matching;
mod mime;
mod parts;
