#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("head"), |input: &[u8]| (ambit_fuzz::named("head").run)(input));
