#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("certificates"), |input: &[u8]| (ambit_fuzz::named("certificates").run)(input));
