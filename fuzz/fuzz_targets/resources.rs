#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("resources"), |input: &[u8]| (ambit_fuzz::named("resources").run)(input));
