//! Policies hold whoever enforces them and whoever calls.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::support::eventually;
use crate::traffic::{answering, ask, pair, refused};
use crate::world::{OUTSIDE, PORT, Place, Side, World};

fn principal(place: &Place) -> String {
    place.identity().trim_start_matches("spiffe://").to_owned()
}

/// Waits until a call is answered, or refused.
async fn until(what: &str, from: &Place, to: &Place, answered: bool) {
    eventually(what, || async {
        let answer = ask(from, to.at(PORT), "let me in").await;
        let holds = if answered { answer.as_deref() == Ok("LET ME IN") } else { refused(&answer) };
        if holds { Ok(()) } else { Err(format!("{} to {}: {answer:?}", from.name, to.name)) }
    })
    .await;
}

async fn denied(world: &World, side: Side) -> f64 {
    let labels = [("reporter", "destination"), ("response_flags", "DENY")];
    world.metrics(side).await.sum("istio_tcp_connections_failed_total", &labels)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a foreign proxy in AMBIT_FOREIGN_PROXY"]
async fn strict_and_authorization_hold_at_either_side() {
    let mut world = World::new("z1r").await;
    world.start_in(OUTSIDE, Side::Ours, "stranger").await;
    let _answering = Side::BOTH.map(|side| answering(world.place(side, 0).listen(PORT)));
    let stranger = world.named("stranger");

    // Plaintext is let in while nothing forbids it, and then no more; mutual TLS is.
    for side in Side::BOTH {
        until("plaintext before STRICT", stranger, world.place(side, 0), true).await;
    }
    world.apply("PeerAuthentication", "strict", json!({"mtls": {"mode": "STRICT"}})).await;
    for side in Side::BOTH {
        let before = denied(&world, side).await;
        until("plaintext under STRICT", stranger, world.place(side, 0), false).await;
        until("mutual TLS under STRICT", world.place(side.other(), 0), world.place(side, 0), true).await;
        assert!(denied(&world, side).await > before, "{side:?} counts a denial");
    }
    world.remove("PeerAuthentication", "strict").await;
    for side in Side::BOTH {
        until("plaintext after STRICT", stranger, world.place(side, 0), true).await;
    }

    // ALLOW names one; everybody else is out.
    for side in Side::BOTH {
        let (server, [friend, other]) =
            (world.place(side, 0), [0, 1].map(|number| world.place(side.other(), number)));
        let rules = json!({"selector": {"matchLabels": {"app": server.name}}, "action": "ALLOW",
            "rules": [{"from": [{"source": {"principals": [principal(friend)]}}]}]});
        world.apply("AuthorizationPolicy", "friends", rules).await;
        until("a stranger to an ALLOW policy", other, server, false).await;
        until("the one it names", friend, server, true).await;

        // DENY wins, and is no longer there when it is gone.
        let rules = json!({"selector": {"matchLabels": {"app": server.name}}, "action": "DENY",
            "rules": [{"from": [{"source": {"principals": [principal(friend)]}}],
                "to": [{"operation": {"ports": [PORT.to_string()]}}]}]});
        world.apply("AuthorizationPolicy", "enemies", rules).await;
        until("the one a DENY policy names", friend, server, false).await;
        world.remove("AuthorizationPolicy", "enemies").await;
        until("it again without that policy", friend, server, true).await;
        world.remove("AuthorizationPolicy", "friends").await;
        until("everybody without policies", other, server, true).await;
    }

    // A connection that is open ends when a policy of the whole namespace forbids it. (One that selects its pod only
    // later does not end it at a ztunnel, which looks at the pod as it was when the connection opened.)
    let listeners = Side::BOTH.map(|side| world.place(side, 0).listen(9000));
    let mut open = Vec::new();
    for (side, listener) in Side::BOTH.iter().zip(&listeners) {
        let (server, client) = (world.place(*side, 0), world.place(side.other(), 1));
        open.push((*side, pair(client, server.at(9000), listener).await));
    }
    let rules = json!({"action": "DENY", "rules": [{"to": [{"operation": {"ports": ["9000"]}}]}]});
    world.apply("AuthorizationPolicy", "nobody", rules).await;
    for (side, (mut near, mut far)) in open {
        for (end, stream) in [("client", &mut near), ("server", &mut far)] {
            let ended = tokio::time::timeout(Duration::from_secs(30), stream.read(&mut [0; 8])).await;
            let ended = ended.unwrap_or_else(|_| panic!("{side:?} ends it, also for the {end}"));
            assert!(matches!(ended, Ok(0) | Err(_)), "{side:?}, {end}: {ended:?}");
        }
    }
}
