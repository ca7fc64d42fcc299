#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("cni_event"), |input: &[u8]| (ambit_fuzz::named("cni_event").run)(input));
