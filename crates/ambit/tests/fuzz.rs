//! Everything that reads what another process wrote, given damaged examples of good input: the fuzz targets without
//! coverage guidance, in the build that the other tests have already paid for.
//!
//! The mutations are drawn from a fixed seed, so that two runs without a time limit try the same. `AMBIT_FUZZ_SECONDS`
//! gives each target that long instead, and a new seed, which a failure names. Coverage-guided runs: `cargo xtask fuzz`.

#[path = "../../../fuzz/targets/mod.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Without a time limit.
const RUNS: u64 = 20_000;
/// Longer input is cut.
const LONGEST: usize = 8_192;

/// SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.throw() % end.max(1) as u64) as usize
    }
}

/// Damages `input` in one to eight places; `other` lends parts of itself.
fn mutate(dice: &mut Dice, mut input: Vec<u8>, other: &[u8]) -> Vec<u8> {
    const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'"', b':', b'.'];
    for _ in 0..=dice.below(8) {
        let at = dice.below(input.len() + 1);
        let length = 1 + dice.below(16);
        let end = (at + length).min(input.len());
        match dice.below(8) {
            0 if at < input.len() => input[at] ^= 1 << dice.below(8),
            1 if at < input.len() => input[at] = TELLING[dice.below(TELLING.len())],
            2 if at < input.len() => {
                input[at] = input[at].wrapping_add(1).wrapping_sub(2 * (length as u8 & 1))
            }
            3 => drop(input.drain(at..end)),
            4 => drop(input.splice(at..at, std::iter::repeat_n(dice.throw() as u8, length))),
            5 => {
                let from = dice.below(other.len() + 1);
                let part = &other[from..(from + 4 * length).min(other.len())];
                drop(input.splice(at..at, part.iter().copied()));
            }
            6 => {
                let part = input[at..end].to_vec();
                drop(input.splice(at..at, part));
            }
            _ => input.truncate(at.max(1)),
        }
    }
    input.truncate(LONGEST);
    input
}

fn bear(name: &str) {
    let target = targets::named(name);
    let examples = (target.examples)();
    let limit =
        std::env::var("AMBIT_FUZZ_SECONDS").ok().map(|text| text.parse().expect("AMBIT_FUZZ_SECONDS"));
    let limit = limit.map(Duration::from_secs);
    let seed = limit.map_or(1, |_| std::process::id().into());
    let (mut dice, start, mut runs) = (Dice(seed), Instant::now(), 0u64);
    let attempt = |input: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            panic!("{name} (seed {seed}): {}: {input:02x?}", text.unwrap_or_default());
        }
    };
    for example in &examples {
        attempt(example);
    }
    // What was tried last is damaged further now and then, so that damage adds up.
    let mut last = Vec::new();
    while limit.map_or(runs < RUNS, |limit| start.elapsed() < limit) {
        let from = if runs % 4 == 3 { last } else { examples[dice.below(examples.len())].clone() };
        let other = &examples[dice.below(examples.len())];
        last = mutate(&mut dice, from, other);
        attempt(&last);
        runs += 1;
    }
    println!("{name}: {runs} runs in {:.1} s", start.elapsed().as_secs_f64());
}

macro_rules! bears {
    ($($name:ident),*) => {
        /// The tests are those of [`targets::ALL`].
        #[test]
        fn no_target_is_left_out() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(targets::ALL.map(|target| target.name), tested);
        }

        mod any_bytes_are_borne_by {
            $(#[test] fn $name() { super::bear(stringify!($name)); })*
        }
    };
}

bears!(dns, head, h2, resources, xds, zds, flows, cni_plugin, cni_event, node_files, certificates);
