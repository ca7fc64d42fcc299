//! The WebSocket wire of exec and attach, `v4.channel.k8s.io` and `v5.channel.k8s.io`: each binary message is one
//! byte of channel and the data. v5 adds a channel that closes others, which is how standard input ends.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::{Client, Ends, Exit, Input, Output, pair};
use crate::node::server::request::ExecOptions;
use crate::node::server::upgrade::goodbye;

/// Served subprotocols, the better one first.
pub(in crate::node::server) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// How long the client may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// Connects the client behind `socket` to `program`, and ends with the `Status` of how that ended.
pub(in crate::node::server) async fn serve<S, P, F>(
    socket: WebSocketStream<S>,
    options: &ExecOptions,
    program: P,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    P: FnOnce(Ends) -> F,
    F: Future<Output = Exit>,
{
    let (mut sink, mut stream) = socket.split();
    let (Client { input, mut output }, ends) = pair();
    // Empty messages on the channels that will be written tell the client that the session stands.
    let channels = [(options.stdout, STDOUT), (options.stderr, STDERR), (true, ERROR)];
    for (_, channel) in channels.into_iter().filter(|(wanted, _)| *wanted) {
        if sink.send(message(channel, &[])).await.is_err() {
            return;
        }
    }
    let reading = async {
        while let Some(Ok(received)) = stream.next().await {
            let parsed = match received {
                Message::Binary(bytes) => parse(bytes, options),
                Message::Close(_) => break,
                _ => None,
            };
            if let Some(parsed) = parsed
                && input.send(parsed).await.is_err()
            {
                // The program takes no more input; its end is told by the other side of this session.
                continue;
            }
        }
        drop(input);
    };
    let writing = async {
        while let Some(piece) = output.recv().await {
            let piece = match &piece {
                Output::Stdout(bytes) => message(STDOUT, bytes),
                Output::Stderr(bytes) => message(STDERR, bytes),
            };
            if sink.send(piece).await.is_err() {
                output.close();
                return;
            }
        }
    };
    let exit = {
        let mut reading = pin!(reading);
        let mut running = pin!(async { futures::join!(program(ends), writing).0 });
        tokio::select! {
            exit = &mut running => exit,
            () = &mut reading => running.await,
        }
    };
    let goodbye = async {
        sink.send(message(ERROR, &exit.status())).await?;
        sink.send(goodbye()).await?;
        while let Some(Ok(_)) = stream.next().await {}
        Ok::<_, tokio_tungstenite::tungstenite::Error>(())
    };
    // A client that is gone already has no use for it.
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

fn parse(mut message: Bytes, options: &ExecOptions) -> Option<Input> {
    let channel = *message.first()?;
    let data = message.split_off(1);
    match channel {
        STDIN if options.stdin && !data.is_empty() => Some(Input::Stdin(data)),
        CLOSE if data.first() == Some(&STDIN) => Some(Input::StdinClosed),
        RESIZE => resize(&data),
        _ => None,
    }
}

/// `{"Width":80,"Height":24}`.
pub(super) fn resize(data: &[u8]) -> Option<Input> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let size: Size = serde_json::from_slice(data).ok()?;
    Some(Input::Resize { columns: size.width, rows: size.height })
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::Role;

    use super::*;

    fn options() -> ExecOptions {
        ExecOptions { stdin: true, stdout: true, stderr: true, ..ExecOptions::default() }
    }

    #[test]
    fn messages_in_no_known_form_are_ignored() {
        for bytes in
            [&b""[..], b"\x00", b"\x04", b"\x04{}", b"\x04{\"Width\":-1,\"Height\":2}", b"\x09x", b"\xff\x07"]
        {
            assert_eq!(parse(Bytes::copy_from_slice(bytes), &options()), None, "{bytes:?}");
        }
        assert_eq!(parse(Bytes::from_static(b"\x00x"), &ExecOptions::default()), None, "nobody reads it");
    }

    #[test]
    fn a_terminals_size_is_read() {
        let size = parse(Bytes::from_static(b"\x04{\"Width\":132,\"Height\":43}"), &options());
        assert_eq!(size, Some(Input::Resize { columns: 132, rows: 43 }));
    }

    #[tokio::test]
    async fn a_session_carries_both_ways_and_ends_with_the_status() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let server = tokio::spawn(async move {
            let socket = WebSocketStream::from_raw_socket(ours, Role::Server, None).await;
            let upper = |mut ends: Ends| async move {
                while let Some(input) = ends.input.recv().await {
                    match input {
                        Input::Stdin(bytes) => {
                            let bytes = bytes.to_ascii_uppercase().into();
                            ends.output.send(Output::Stdout(bytes)).await.unwrap();
                        }
                        _ => break,
                    }
                }
                Exit::Code(7)
            };
            serve(socket, &options(), upper).await;
        });
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        client.send(message(STDIN, b"hello")).await.unwrap();
        client.send(message(CLOSE, &[STDIN])).await.unwrap();
        let (mut stdout, mut status) = (Vec::new(), Vec::new());
        while let Some(Ok(received)) = client.next().await {
            match received {
                Message::Binary(bytes) if bytes[0] == STDOUT => stdout.extend_from_slice(&bytes[1..]),
                Message::Binary(bytes) if bytes[0] == ERROR => status.extend_from_slice(&bytes[1..]),
                _ => {}
            }
        }
        server.await.unwrap();
        assert_eq!(stdout, b"HELLO");
        assert_eq!(status, Exit::Code(7).status());
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_the_programs_input() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let socket = WebSocketStream::from_raw_socket(ours, Role::Server, None).await;
        drop(theirs);
        let until_gone = |mut ends: Ends| async move {
            while ends.input.recv().await.is_some() {}
            Exit::Failed("the client went away".into())
        };
        serve(socket, &ExecOptions::default(), until_gone).await;
    }
}
