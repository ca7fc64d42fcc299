//! A node proxy and nothing else, configured by its environment: what the benchmark measures while the whole binary is
//! not at hand.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = proxy::Config::from_env()?;
    let log = proxy::logging::init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(proxy::run_with_log(config, log, std::future::pending()))?;
    Ok(())
}
