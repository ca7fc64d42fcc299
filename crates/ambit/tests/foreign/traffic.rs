//! Connections between pods, made and served by the test.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::world::Place;

/// How long anything on one connection may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Byte `at` of stream `number`.
pub fn byte(number: usize, at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 9) ^ number) as u8
}

/// Sends `much` bytes of stream `number`, then FIN.
pub async fn send(to: &mut (impl AsyncWriteExt + Unpin), number: usize, much: usize) -> std::io::Result<()> {
    let mut at = 0;
    while at < much {
        let part: Vec<u8> = (at..(at + (64 << 10)).min(much)).map(|at| byte(number, at)).collect();
        to.write_all(&part).await?;
        at += part.len();
    }
    to.shutdown().await
}

/// Reads stream `number` to its end, which must come after `much` bytes.
pub async fn check(from: &mut (impl AsyncReadExt + Unpin), number: usize, much: usize) -> Result<(), String> {
    let (mut at, mut part) = (0, vec![0; 256 << 10]);
    loop {
        let read = from.read(&mut part).await.map_err(|error| format!("stream {number} at {at}: {error}"))?;
        if read == 0 {
            break;
        }
        if let Some(wrong) = (0..read).find(|&more| part[more] != byte(number, at + more)) {
            return Err(format!("stream {number} is not what was sent at byte {}", at + wrong));
        }
        at += read;
    }
    if at == much { Ok(()) } else { Err(format!("stream {number} ended after {at} of {much} bytes")) }
}

/// Answers each connection with what it sent, in capitals, once its sender has ended.
pub fn answering(listener: TcpListener) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = Vec::new();
                if stream.read_to_end(&mut asked).await.is_ok() {
                    asked.make_ascii_uppercase();
                    let _ = stream.write_all(&asked).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    })
}

/// Asks a place that is [`answering`]; the answer only comes after a half-close arrived there.
pub async fn ask(from: &Place, to: SocketAddr, words: &str) -> Result<String, String> {
    let work = async {
        let mut stream = from.connect(to).await?;
        stream.write_all(words.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    match tokio::time::timeout(Duration::from_secs(20), work).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in 20 s".to_owned()),
    }
}

/// Whether the call was refused: an error, or an end without a word.
pub fn refused(answer: &Result<String, String>) -> bool {
    match answer {
        Ok(words) => words.is_empty(),
        Err(error) => !error.starts_with("no answer"),
    }
}

/// Both ends of one connection.
pub async fn pair(from: &Place, to: SocketAddr, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let work = async {
        let mut client = from.connect(to).await.unwrap();
        client.write_u8(b'!').await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'!');
        (client, server)
    };
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("a connection within 20 s")
}
