//! Whatever a pod asks and whatever a name server answers: it is passed on as it is, it fits, and nothing panics.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (question, answer) = input;
    proxy::exercise_dns(&question, &answer);
});
