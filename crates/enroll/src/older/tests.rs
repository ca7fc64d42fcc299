use std::time::Duration;

use super::*;

fn socket(number: u8, local: &str, remote: &str) -> Socket {
    Socket {
        id: diag::Id::of_test(number),
        state: State::Established,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        mark: 0,
        unread: 0,
        unsent: 0,
        unacked: 0,
        since_sent: Duration::from_secs(3),
        since_received: Duration::from_secs(3),
    }
}

fn listener(local: &str) -> Socket {
    Socket { state: State::Listen, ..socket(0, local, "0.0.0.0:0") }
}

fn peers(connections: &[Connection]) -> Vec<(String, Side)> {
    connections.iter().map(|c| (c.socket.remote.to_string(), c.side)).collect()
}

#[test]
fn what_goes_past_the_proxy_is_older_and_what_goes_through_it_is_not() {
    let marked = |socket: Socket| Socket { mark: PROXY_MARK, ..socket };
    let sockets = [
        listener("0.0.0.0:9090"),
        listener("0.0.0.0:15001"),
        // dialled before the rules
        socket(1, "10.0.0.1:40000", "10.0.0.7:9100"),
        // accepted before the rules
        socket(2, "10.0.0.1:9090", "10.0.0.8:50000"),
        // dialled through the proxy: program, proxy's listening end, proxy's tunnel
        socket(3, "10.0.0.1:40001", "10.0.0.7:9100"),
        marked(socket(4, "127.0.0.1:15001", "10.0.0.1:40001")),
        marked(socket(5, "10.0.0.1:40002", "10.0.0.7:15008")),
        // accepted through the proxy: the proxy's end, with the caller's address, and the program's
        marked(socket(6, "10.0.0.8:50001", "10.0.0.1:9090")),
        socket(7, "10.0.0.1:9090", "10.0.0.8:50001"),
        marked(socket(8, "10.0.0.1:15006", "10.0.0.8:50002")),
        // never anybody's business
        socket(9, "127.0.0.1:40003", "127.0.0.1:9090"),
        socket(10, "10.0.0.1:9090", "169.254.7.127:50003"),
        socket(11, "10.0.0.1:40004", "10.96.0.1:443"),
    ];
    let exempt = Exempt {
        addresses: ["169.254.7.127".parse().unwrap()].into(),
        peers: ["10.96.0.1:443".parse().unwrap()].into(),
    };
    let expected = [("10.0.0.7:9100".to_owned(), Side::Client), ("10.0.0.8:50000".to_owned(), Side::Server)];
    assert_eq!(peers(&older(&sockets, &exempt)), expected);
    let expected = [("10.0.0.7:9100".to_owned(), Side::Client), ("10.0.0.8:50001".to_owned(), Side::Server)];
    assert_eq!(peers(&carried(&sockets, &exempt)), expected);
}

#[test]
fn a_client_that_asks_all_the_time_is_found_between_two_requests_and_a_stream_is_left_alone() {
    let policy = Policy::with_grace(Duration::from_secs(600));
    let ms = Duration::from_millis;
    let moved = |sent: u64, received: u64| {
        let base = socket(1, "10.0.0.1:40000", "10.0.0.7:9100");
        let socket = Socket { since_sent: ms(sent), since_received: ms(received), ..base };
        Connection { socket, side: Side::Client }
    };
    let busy = Verdict::Wait(Busy::JustMoved);
    let verdicts = |connection: Connection| {
        [2, 7, 15, 60].map(|seconds| due(&connection, Duration::from_secs(seconds), &policy))
    };
    // Asks every 200 ms and is answered within 5 ms, or within what the kernel can tell apart.
    assert_eq!(verdicts(moved(130, 125)), [busy, Verdict::EndIdle, Verdict::EndIdle, Verdict::EndIdle]);
    assert_eq!(verdicts(moved(130, 130)), [busy, busy, Verdict::EndIdle, Verdict::EndIdle]);
    // Asks every 20 ms.
    assert_eq!(verdicts(moved(12, 8)), [busy, busy, busy, Verdict::EndIdle]);
    // Receives an event now and then, and has asked for nothing lately.
    assert_eq!(verdicts(moved(9000, 150)), [busy; 4]);
}

#[test]
fn only_a_connection_with_nothing_in_flight_is_ended() {
    let policy = Policy::with_grace(Duration::from_secs(600));
    let ms = Duration::from_millis;
    let base = socket(1, "10.0.0.1:40000", "10.0.0.7:9100");
    let moved = |sent: u64, received: u64| Socket {
        since_sent: ms(sent),
        since_received: ms(received),
        ..base.clone()
    };
    let soon = ms(1500);
    let later = Duration::from_secs(5);
    let cases = [
        ("the answer came a while ago", Side::Client, moved(900, 850), soon, Verdict::EndIdle),
        ("the answer came just now", Side::Client, moved(900, 100), soon, Verdict::Wait(Busy::JustMoved)),
        (
            "a request awaits its answer",
            Side::Client,
            moved(900, 2000),
            soon,
            Verdict::Wait(Busy::AwaitingAnswer),
        ),
        (
            "both at once, could be a new request",
            Side::Client,
            moved(500, 500),
            soon,
            Verdict::Wait(Busy::JustMoved),
        ),
        ("both at once, long ago", Side::Client, moved(1500, 1500), soon, Verdict::EndIdle),
        (
            "the server works on a request",
            Side::Server,
            moved(2000, 900),
            later,
            Verdict::Wait(Busy::AwaitingAnswer),
        ),
        ("the server has answered", Side::Server, moved(850, 900), later, Verdict::EndIdle),
        ("the client's agent acts first", Side::Server, moved(850, 900), soon, Verdict::Wait(Busy::NotYet)),
        ("the mesh has not heard of it", Side::Client, moved(900, 850), ms(500), Verdict::Wait(Busy::NotYet)),
        (
            "the answer is not read yet",
            Side::Client,
            Socket { unread: 1, ..moved(900, 850) },
            soon,
            Verdict::Wait(Busy::Queued),
        ),
        (
            "the request is not sent yet",
            Side::Client,
            Socket { unsent: 1, ..moved(900, 850) },
            soon,
            Verdict::Wait(Busy::Queued),
        ),
        (
            "the request is not acknowledged",
            Side::Client,
            Socket { unacked: 1, ..moved(900, 850) },
            soon,
            Verdict::Wait(Busy::Queued),
        ),
        (
            "one end has closed",
            Side::Client,
            Socket { state: State::HalfClosed, ..moved(900, 850) },
            soon,
            Verdict::Wait(Busy::InTransition),
        ),
        (
            "the grace is over",
            Side::Client,
            Socket { unsent: 9, ..moved(1, 1) },
            Duration::from_secs(600),
            Verdict::EndOverdue,
        ),
    ];
    for (name, side, socket, age, expected) in cases {
        assert_eq!(due(&Connection { socket, side }, age, &policy), expected, "{name}");
    }
}
