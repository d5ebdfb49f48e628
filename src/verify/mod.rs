//! (layer head)
