//! The machine without any process.
