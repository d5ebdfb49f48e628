//! Rows as COPY BINARY, out and in.
//!
//! What the server sends is shipped as it is: a row is one `Bytes` with an index of where its fields lie. Nothing is
//! decoded but the two columns that Restante itself asks for in front: `ctid` and `xmin`.

mod frames;
mod reader;
mod writer;

pub use frames::{FieldBounds, FrameError, FrameSplitter};
pub use reader::{BlockRange, CopiedRow, CopyRows, IDENTITY_FIELDS, Tid};
pub use writer::CopyInWriter;
