//! What a peer says over SPDY: frames and header blocks. What must hold is in the library, whose unit tests try each seed
//! too.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| coracle::stream::spdy::fuzzing::spdy_frames(bytes));
