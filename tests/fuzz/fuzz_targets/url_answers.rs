//! What a server of manifests answers: understood or refused. What must hold is in the library, whose unit tests try each
//! seed too.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| coracle::source::url::fuzzing::url_answers(bytes));
