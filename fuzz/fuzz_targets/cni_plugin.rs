#![no_main]

libfuzzer_sys::fuzz_target!(init: ambit_fuzz::begin("cni_plugin"), |input: &[u8]| (ambit_fuzz::named("cni_plugin").run)(input));
