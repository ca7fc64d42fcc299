#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("flows"), |input: &[u8]| (ambit_fuzz::named("flows").run)(input));
