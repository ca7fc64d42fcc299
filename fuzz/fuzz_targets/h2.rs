#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("h2"), |input: &[u8]| (ambit_fuzz::named("h2").run)(input));
