//! The map of the program: arguments, command, exit status.
mod error;
fn main() {}
