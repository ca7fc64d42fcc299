//! Single steps of a connection's path, without sockets: to be timed here, and to have their instructions counted by
//! callgrind, which no noise of the machine disturbs (`cargo xtask bench micro`).
//!
//! `micro list`, `micro time [NAME]`, `micro run NAME COUNT`.

mod carry;
mod decisions;

use std::time::{Duration, Instant};

/// One step: a name, and what makes it ready to be run again and again.
type Step = (&'static str, fn() -> anyhow::Result<Box<dyn FnMut()>>);

const STEPS: [Step; 8] = [
    ("decide_direct_100", || decisions::decide(100)),
    ("decide_direct_10000", || decisions::decide(10_000)),
    ("decide_service_20", || decisions::service(20)),
    ("authorize_no_policy", || decisions::authorize(0)),
    ("authorize_10_policies", || decisions::authorize(10)),
    ("stream_opened_and_closed", carry::stream),
    ("carry_100_bytes", || carry::carry(100)),
    ("carry_16384_bytes", || carry::carry(16_384)),
];

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => STEPS.iter().for_each(|(name, _)| println!("{name}")),
        ["time"] => STEPS.iter().try_for_each(time)?,
        ["time", name] => time(find(name)?)?,
        ["run", name, count] => {
            let mut step = find(name)?.1()?;
            repeat(&mut *step, count.parse()?);
        }
        _ => anyhow::bail!("usage: micro list | time [NAME] | run NAME COUNT"),
    }
    Ok(())
}

/// The only function in which callgrind counts: what made the step ready (keys, handshakes) is never twice the same.
#[inline(never)]
fn repeat(step: &mut dyn FnMut(), count: u32) {
    for _ in 0..count {
        step();
    }
}

fn find(name: &str) -> anyhow::Result<&'static Step> {
    STEPS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| anyhow::anyhow!("no step {name}: see `micro list`"))
}

/// The best of some rounds: what was slower was disturbed.
fn time((name, make): &Step) -> anyhow::Result<()> {
    const ROUNDS: u32 = 20;
    let mut step = make()?;
    let mut once = Duration::MAX;
    for _ in 0..50 {
        let start = Instant::now();
        step();
        once = once.min(start.elapsed());
    }
    let count = (Duration::from_millis(20).as_nanos() / once.as_nanos().max(1)).clamp(1, 1_000_000) as u32;
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..count {
            step();
        }
        best = best.min(start.elapsed() / count);
    }
    println!("{name:<28} {:>9.1} ns", best.as_nanos() as f64);
    Ok(())
}
