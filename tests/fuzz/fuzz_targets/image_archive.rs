//! Image archives, packed or not: imported or refused, with nothing made outside the store. What must hold is in the library, whose
//! unit tests try each seed too.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| coracle::image::fuzzing::image_archive(bytes));
