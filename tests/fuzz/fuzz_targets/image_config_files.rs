//! Files that a person puts on the node: understood or refused. What must hold is in the library, whose unit
//! tests try each seed too.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| coracle::image::fuzzing::image_config_files(bytes));
