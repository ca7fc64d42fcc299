//! Pods that come and go by the hundred, in full size by the thousand, leave nothing behind.

use std::time::{Duration, Instant};

use crate::harness::{World, call, echo, eventually, workload};
use crate::namespaces::in_a_node;
use crate::{descriptors, resident, sized};

/// Threads of this process.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn pods_come_and_go_by_the_hundred_and_leave_nothing_and_most_are_served_at_once() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        // Namespaces are reused, as pods are not: each time it is another pod, with listeners of its own.
        let places: Vec<_> = (10..20).map(|last| node.pod(last)).collect();
        // One in ten is also called, so that it has a certificate and its peer a tunnel.
        let called = places.len() - 1;
        places[called].redirect();
        echo(places[called].listen(9000));
        let mut took = Vec::new();
        let mut count = 0;
        let mut round = async |took: &mut Vec<Duration>| {
            for (place, pod) in places.iter().enumerate() {
                count += 1;
                let name = format!("p{count}");
                let one = workload(&name, "node-a", pod);
                world.control.workload(&one);
                let start = Instant::now();
                assert_eq!(world.pa.agent.add(&name, &name, pod).await, "");
                took.push(start.elapsed());
                if place == called {
                    eventually("the new pod answers", async || {
                        call(&world.b, pod.at(9000), b"hello").await.is_ok_and(|answer| answer == b"hello")
                    })
                    .await;
                }
                assert_eq!(world.pa.agent.delete(&name).await, "");
                world.control.remove(&one.uid);
            }
        };
        for _ in 0..5 {
            round(&mut took).await;
        }
        let before = (descriptors(), resident(), threads());
        for _ in 0..sized(30, 500) {
            round(&mut took).await;
        }
        eventually("they are forgotten", async || {
            let dump = world.pa.dump().await;
            dump["workloads"].as_array().unwrap().len() == 3
                && dump["workloadState"].as_object().unwrap().len() == 1
                && dump["certificates"].as_array().unwrap().len() == 1
        })
        .await;
        eventually("descriptors are back", async || descriptors() <= before.0 + 20).await;
        eventually("memory is back", async || resident() <= before.1 * 5 / 4 + (24 << 10)).await;
        assert!(threads() <= before.2 + 4, "{} threads before, {} after", before.2, threads());
        took.sort();
        println!(
            "{} pods: listeners stood after {:?} (median), {:?} (99 of 100); {} descriptors and {} KiB before, {} and {} KiB after",
            took.len(),
            took[took.len() / 2],
            took[took.len() * 99 / 100],
            before.0,
            before.1,
            descriptors(),
            resident()
        );
        // The machine is shared; what is promised is that nothing has to be waited for.
        assert!(took[took.len() / 2] < Duration::from_millis(100), "{:?}", took[took.len() / 2]);
        assert_eq!(call(&world.a, world.b.at(8080), b"still").await.unwrap(), b"still");
    });
}
