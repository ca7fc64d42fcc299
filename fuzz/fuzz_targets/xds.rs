#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("xds"), |input: &[u8]| (ambit_fuzz::named("xds").run)(input));
