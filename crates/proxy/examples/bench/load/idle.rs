//! Connections that are open and say nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::json;

use crate::serve::{ANSWER, REQUEST};

/// Opens connections, uses each once, says so, and keeps them until its input ends.
pub fn run(target: SocketAddr, count: usize) -> anyhow::Result<()> {
    let mut open = Vec::with_capacity(count);
    let mut bytes = [0; ANSWER];
    for _ in 0..count {
        let mut stream = TcpStream::connect(target)?;
        stream.write_all(&[b'r'; REQUEST])?;
        stream.read_exact(&mut bytes)?;
        open.push(stream);
    }
    println!("{}", json!({ "open": open.len() }));
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
