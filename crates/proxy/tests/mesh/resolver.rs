//! A name server of the tests, which answers well, badly or not at all, by what it is asked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// What it was asked: the bytes, who asked, and whether over TCP.
pub type Asked = Arc<Mutex<Vec<(Vec<u8>, SocketAddr, bool)>>>;

/// Serves both transports at `address`.
pub async fn serve(address: IpAddr) -> Asked {
    let asked = Asked::default();
    let udp = UdpSocket::bind((address, 53)).await.unwrap();
    let tcp = TcpListener::bind((address, 53)).await.unwrap();
    let seen = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 65535];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
            seen.lock().unwrap().push((buffer[..length].to_vec(), peer, false));
            for answer in answers(&buffer[..length], false) {
                udp.send_to(&answer, peer).await.unwrap();
            }
        }
    });
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = tcp.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut bytes = vec![0; usize::from(length)];
                    stream.read_exact(&mut bytes).await.unwrap();
                    seen.lock().unwrap().push((bytes.clone(), peer, true));
                    for answer in answers(&bytes, true) {
                        stream.write_u16(answer.len() as u16).await.unwrap();
                        stream.write_all(&answer).await.unwrap();
                    }
                }
            });
        }
    });
    asked
}

pub fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// A name of the test's world, without the dot at its end, in lower case.
fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn a(owner: &Name, last: u8) -> Record {
    Record::from_rdata(owner.clone(), 60, RData::A(A(Ipv4Addr::new(192, 0, 2, last))))
}

/// The answer that is right, and what else is sent with it.
fn answers(bytes: &[u8], tcp: bool) -> Vec<Vec<u8>> {
    let query = Message::from_vec(bytes).unwrap();
    let mut right = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    right.metadata.recursion_desired = query.metadata.recursion_desired;
    right.metadata.recursion_available = true;
    right.metadata.authentic_data = true;
    right.add_queries(query.queries.iter().cloned());
    let Some(question) = query.queries.first() else { return vec![right.to_vec().unwrap()] };
    let owner = question.name();
    if query.metadata.op_code == OpCode::Update {
        // Servers say no more than that it is done.
        return vec![right.to_vec().unwrap()];
    }
    let wrong = |id: u16, owner: &Name| {
        let mut wrong = right.clone();
        wrong.metadata.id = id;
        wrong.queries[0].set_name(owner.clone());
        wrong.add_answer(Record::from_rdata(owner.clone(), 60, RData::A(A(Ipv4Addr::new(203, 0, 113, 66)))));
        wrong.to_vec().unwrap()
    };
    match (plain(owner).as_str(), question.query_type()) {
        ("silent.example", _) => return Vec::new(),
        ("broken.example", _) => right.metadata.response_code = ResponseCode::ServFail,
        ("spoofed.example", _) => {
            let id = query.metadata.id;
            let (first, second) = (wrong(id ^ 1, owner), wrong(id, &name("other.example.")));
            right.add_answer(a(owner, 1));
            return vec![first, second, b"junk".to_vec(), right.to_vec().unwrap()];
        }
        ("case.example", _) if !tcp => {
            right.queries[0].set_name(owner.to_lowercase());
            right.add_answer(Record::from_rdata(
                owner.clone(),
                60,
                RData::A(A(Ipv4Addr::new(203, 0, 113, 66))),
            ));
        }
        ("long.example", RecordType::A) => {
            let target = name("target.of.the.long.name.example.");
            right.add_answer(Record::from_rdata(owner.clone(), 60, RData::CNAME(CNAME(target.clone()))));
            // As one datagram, whatever the client takes.
            right.add_answers((1..=42).map(|last| a(&target, last)));
        }
        ("_grpc._tcp.stores.mon.svc.cluster.local", RecordType::SRV) => {
            for last in 1..=4 {
                let target = name(&format!("store-{last}.stores.mon.svc.cluster.local."));
                let srv = RData::SRV(SRV::new(0, 25, 10901, target.clone()));
                right.add_answer(Record::from_rdata(owner.clone(), 30, srv));
                right.add_additional(a(&target, last));
            }
        }
        (_, RecordType::AXFR) => {
            // Several messages, of which only the first repeats the question.
            let messages = (1..=3).map(|last| {
                let mut part = right.clone();
                if last > 1 {
                    part.queries.clear();
                }
                part.add_answer(a(owner, last));
                part.to_vec().unwrap()
            });
            return messages.collect();
        }
        (_, RecordType::TXT) => {
            let text = RData::TXT(TXT::new(vec!["nobody touches this".into()]));
            right.add_answer(Record::from_rdata(owner.clone(), 60, text));
            right.add_authority(a(owner, 9));
        }
        (name, RecordType::A) if name.ends_with(".example") => {
            right.add_answer(a(owner, 1));
        }
        (name, _) if name.ends_with(".example") => {}
        _ => right.metadata.response_code = ResponseCode::NXDomain,
    }
    vec![right.to_vec().unwrap()]
}
