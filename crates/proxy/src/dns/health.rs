//! Which name servers of a pod answer: those that do not are asked last, until they answer again.
//!
//! Plain data; time is passed in. Health is kept for each pod, since a network policy of one pod says nothing of the
//! others.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// One silence may be a lost packet.
const TOLERATED: u32 = 1;
/// A pod that asks everybody does not make us remember everybody.
const MOST: usize = 64;
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// A probe that was forgotten does not keep the next from being sent.
const PROBE: Duration = Duration::from_secs(10);

/// What is known of the name servers.
#[derive(Debug, Default)]
pub(crate) struct Health {
    servers: HashMap<SocketAddr, State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    failures: u32,
    /// Not to be relied upon; from this time on it may be probed.
    probe_at: Option<Instant>,
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In this order: those that answer as they are configured, then the others.
    pub(crate) order: Vec<SocketAddr>,
    /// To be tried beside the others, without anybody waiting for it.
    pub(crate) probe: Option<SocketAddr>,
}

impl Health {
    /// Whom to ask at `now`. A probe that is returned is due again only much later.
    pub(crate) fn plan(&mut self, servers: &[SocketAddr], now: Instant) -> Plan {
        if self.servers.len() > MOST {
            self.servers.retain(|server, _| servers.contains(server));
        }
        let resting =
            |server: &SocketAddr| self.servers.get(server).is_some_and(|state| state.probe_at.is_some());
        let (bad, good): (Vec<SocketAddr>, Vec<SocketAddr>) =
            servers.iter().partition(|server| resting(server));
        // When nobody answers, asking is the probe.
        let due = |server: &&SocketAddr| {
            !good.is_empty()
                && self.servers.get(*server).and_then(|state| state.probe_at).is_some_and(|at| at <= now)
        };
        let probe = bad.iter().find(due).copied();
        if let Some(state) = probe.and_then(|server| self.servers.get_mut(&server)) {
            state.probe_at = Some(now + PROBE);
        }
        Plan { order: good.into_iter().chain(bad).collect(), probe }
    }

    /// `server` answered. True: it had been given up before.
    pub(crate) fn answered(&mut self, server: SocketAddr) -> bool {
        self.servers.remove(&server).is_some_and(|state| state.probe_at.is_some())
    }

    /// `server` did not answer, or not in time. True: it is given up by this.
    pub(crate) fn failed(&mut self, server: SocketAddr, now: Instant) -> bool {
        let state = self.servers.entry(server).or_default();
        state.failures = state.failures.saturating_add(1);
        if state.failures <= TOLERATED {
            return false;
        }
        let doublings = (state.failures - TOLERATED - 1).min(8);
        let first = state.probe_at.is_none();
        state.probe_at = Some(now + (FIRST_REST * 2u32.pow(doublings)).min(LONGEST_REST));
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers() -> Vec<SocketAddr> {
        ["10.0.0.1:53", "10.0.0.2:53"].map(|s| s.parse().unwrap()).into()
    }

    #[test]
    fn one_silence_is_forgiven_and_the_second_is_not() {
        let (mut health, servers, now) = (Health::default(), servers(), Instant::now());
        assert!(!health.failed(servers[0], now));
        assert_eq!(health.plan(&servers, now).order, servers);
        assert!(health.failed(servers[0], now), "this is worth a line in the log");
        assert_eq!(health.plan(&servers, now), Plan { order: vec![servers[1], servers[0]], probe: None });
    }

    #[test]
    fn a_silent_server_is_probed_beside_the_others_once_in_a_while() {
        let (mut health, servers, now) = (Health::default(), servers(), Instant::now());
        health.failed(servers[0], now);
        health.failed(servers[0], now);
        let later = now + FIRST_REST;
        let plan = health.plan(&servers, later);
        assert_eq!(plan, Plan { order: vec![servers[1], servers[0]], probe: Some(servers[0]) });
        assert_eq!(health.plan(&servers, later).probe, None, "one probe at a time");
        health.failed(servers[0], later);
        assert_eq!(health.plan(&servers, later + FIRST_REST).probe, None, "the rest gets longer");
        assert_eq!(health.plan(&servers, later + FIRST_REST * 2).probe, Some(servers[0]));
        assert!(health.answered(servers[0]));
        assert_eq!(health.plan(&servers, later).order, servers, "it is the first again");
    }

    #[test]
    fn when_nobody_answers_everybody_is_asked() {
        let (mut health, servers, now) = (Health::default(), servers(), Instant::now());
        for server in &servers {
            for _ in 0..100 {
                health.failed(*server, now);
            }
        }
        let plan = health.plan(&servers, now + LONGEST_REST);
        assert_eq!(plan, Plan { order: servers, probe: None });
    }

    #[test]
    fn only_so_many_servers_are_remembered() {
        let (mut health, servers, now) = (Health::default(), servers(), Instant::now());
        health.failed(servers[0], now);
        for port in 1000..2000 {
            health.failed(SocketAddr::new(servers[0].ip(), port), now);
            health.plan(&servers, now);
        }
        assert!(health.servers.len() <= MOST);
        health.failed(servers[0], now);
        assert_eq!(health.plan(&servers, now).order[0], servers[1], "those that are asked are");
    }
}
