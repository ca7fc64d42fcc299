#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("node_files"), |input: &[u8]| (ambit_fuzz::named("node_files").run)(input));
