//! A fuzz target: the one that has this binary's name.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| wemixvisor::targets::run(env!("CARGO_BIN_NAME"), input));
