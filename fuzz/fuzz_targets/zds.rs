#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("zds"), |input: &[u8]| (ambit_fuzz::named("zds").run)(input));
