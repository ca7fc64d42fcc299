#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("dns"), |input: &[u8]| (ambit_fuzz::named("dns").run)(input));
