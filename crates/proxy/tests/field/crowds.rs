//! Many calls at once to one place.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::control::Control;
use crate::harness::{World, call, echo, eventually, workload};
use crate::namespaces::{Pod, in_a_node};
use crate::sized;

/// Tunnels that arrive at a pod, as its kernel knows them. A list that changes while it is read names some of them
/// twice, so they are told apart by where they come from.
fn tunnels(pod: &Pod) -> usize {
    let lines = |file: &str| {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = pod.netns.run(|| [lines("tcp"), lines("tcp6")].concat()).unwrap();
    let from = all.iter().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Local address 15008, state established.
        let here = words.get(1)?.ends_with(":3AA0") && words.get(3) == Some(&"01");
        here.then(|| words[2])
    });
    from.collect::<BTreeSet<_>>().len()
}

/// `count` calls that are all open at the same time, and the most tunnels that there were.
async fn crowd(world: &World, count: usize) -> usize {
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(count + 1));
    let calls: Vec<_> = (0..count as u32)
        .map(|number| {
            let (a, to, barrier) = (world.a.clone(), world.b.at(8080), barrier.clone());
            tokio::spawn(async move {
                let mut stream = a.connect(to).await?;
                stream.write_u32(number).await?;
                let answered = stream.read_u32().await? == number;
                barrier.wait().await;
                Ok::<_, std::io::Error>(answered)
            })
        })
        .collect();
    let mut most = 0;
    let all = barrier.wait();
    tokio::pin!(all);
    loop {
        tokio::select! {
            _ = &mut all => break,
            () = tokio::time::sleep(Duration::from_millis(5)) => most = most.max(tunnels(&world.b)),
        }
    }
    most = most.max(tunnels(&world.b));
    for call in calls {
        assert!(call.await.unwrap().expect("every call is answered"));
    }
    most
}

async fn bear(world: &World, count: usize, streams: usize) {
    let most = crowd(world, count).await;
    let demand = count.div_ceil(streams);
    println!(
        "{count} calls at once, {streams} streams a tunnel: at most {most} tunnels, {demand} are needed"
    );
    assert!(most >= demand && most <= 2 * demand, "{most} tunnels for a demand of {demand}");
    assert_eq!(world.pa.metrics().await.sum("istio_tcp_connections_failed_total", &[]), 0);
}

#[test]
fn a_crowd_makes_no_more_than_twice_the_tunnels_it_needs_and_they_go_afterwards() {
    in_a_node(|node| async move {
        let (control, address) = Control::start().await;
        let vars = [("POOL_UNUSED_RELEASE_TIMEOUT", "1s")];
        let world = World::with(&node, control, address, &vars).await;
        echo(world.b.listen(8080));
        bear(&world, 2000, 100).await;
        eventually("few are left", async || tunnels(&world.b) <= 1).await;
    });
}

#[test]
fn a_crowd_is_answered_where_a_tunnel_takes_ten_streams_only() {
    in_a_node(|node| async move {
        let (control, address) = Control::start().await;
        let vars = [("POOL_MAX_STREAMS_PER_CONNECTION", "10")];
        let world = World::with(&node, control, address, &vars).await;
        echo(world.b.listen(8080));
        bear(&world, sized(500, 2000), 10).await;
    });
}

#[test]
fn a_crowd_of_one_pod_does_not_make_another_pod_wait() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let (other, target) = (node.pod(10), node.pod(11));
        for (proxy, name, pod) in [(&world.pa, "other", &other), (&world.pb, "target", &target)] {
            let node = if name == "other" { "node-a" } else { "node-b" };
            world.control.workload(&workload(name, node, pod));
            assert_eq!(proxy.agent.add(name, name, pod).await, "");
            pod.redirect();
        }
        echo(target.listen(8080));
        eventually("they are known", async || {
            world.pa.dump().await["workloads"].as_array().unwrap().len() == 5
        })
        .await;
        assert_eq!(call(&other, target.at(8080), b"warm").await.unwrap(), b"warm");
        let (from, to) = (other.clone(), target.at(8080));
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let calling = tokio::spawn(async move {
            let mut took = Vec::new();
            while stopped.try_recv().is_err() {
                let start = Instant::now();
                assert_eq!(call(&from, to, b"meanwhile").await.unwrap(), b"meanwhile");
                took.push(start.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            took
        });
        for _ in 0..3 {
            crowd(&world, 1000).await;
        }
        let _ = stop.send(());
        let mut took = calling.await.unwrap();
        took.sort();
        println!(
            "{} calls meanwhile: median {:?}, longest {:?}",
            took.len(),
            took[took.len() / 2],
            took.last().unwrap()
        );
        // The machine is shared by all of them; what must not happen is to stand in the crowd's queue.
        assert!(*took.last().unwrap() < Duration::from_secs(5));
    });
}

#[test]
fn calls_that_keep_coming_are_answered_while_an_address_of_the_same_pod_is_dead() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let hole = world.hole(&node).await;
        let (count, within) = sized((500, Duration::from_secs(1)), (10_000, Duration::from_secs(10)));
        let places = std::sync::Arc::new(tokio::sync::Semaphore::new(2_000));
        let start = Instant::now();
        let mut calls = tokio::task::JoinSet::new();
        let mut stuck = Vec::new();
        for number in 0..count {
            // They come when they are due, as long as there are descriptors for them.
            tokio::time::sleep_until((start + within * number / count).into()).await;
            let (a, to) = (world.a.clone(), world.b.at(8080));
            let slot = places.clone().acquire_owned().await.unwrap();
            calls.spawn(async move {
                let (_slot, start) = (slot, Instant::now());
                let answer = call(&a, to, &number.to_be_bytes()).await;
                assert_eq!(answer.expect("every call is answered"), number.to_be_bytes());
                start.elapsed()
            });
            if number % (count / 10) == 0 {
                let (a, to) = (world.a.clone(), hole.at(80));
                stuck.push(tokio::spawn(async move { call(&a, to, b"x").await }));
            }
        }
        let mut took = calls.join_all().await;
        assert!(stuck.iter().any(|call| !call.is_finished()), "the dead address did not answer meanwhile");
        took.sort();
        println!(
            "{count} calls in {:?}: median {:?}, 99 of 100 within {:?}, longest {:?}; {} tunnels at the end",
            start.elapsed(),
            took[took.len() / 2],
            took[took.len() * 99 / 100],
            took.last().unwrap(),
            tunnels(&world.b)
        );
        // The dead address is given up after ten seconds; nobody else waits for that.
        assert!(*took.last().unwrap() < Duration::from_secs(8));
        let failed = [("response_flags", "CONNECT")];
        assert_eq!(world.pa.metrics().await.sum("istio_tcp_connections_failed_total", &failed), 0);
    });
}
