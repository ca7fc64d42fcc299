//! The SPDY wire of exec and attach, `v4.channel.k8s.io`: one stream for each of error, stdin, stdout, stderr and
//! resize, named by their `streamtype` header. API servers speak it to kubelets on behalf of newer clients.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Client, Ends, Exit, Input, Output, channels, pair};
use crate::node::server::request::ExecOptions;
use crate::node::server::spdy::{Connection, Stream};

/// Served stream protocols.
pub(in crate::node::server) const PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];

/// How long the client may take to open all streams.
const OPEN_WITHIN: Duration = Duration::from_secs(30);

/// Connects the client behind `io` to `program`, and ends with the `Status` of how that ended.
pub(in crate::node::server) async fn serve<P, F>(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    options: &ExecOptions,
    program: P,
) where
    P: FnOnce(Ends) -> F,
    F: Future<Output = Exit>,
{
    let mut connection = Connection::new(io);
    let streams = tokio::time::timeout(OPEN_WITHIN, gather(&mut connection, options)).await;
    let Ok(Some(Streams { error, stdin, stdout, stderr, resize })) = streams else {
        tracing::debug!("an exec client did not open its streams");
        return;
    };
    let (Client { input, mut output }, ends) = pair();
    let reading = async {
        let typing = async {
            let Some(mut stdin) = stdin else { return };
            while let Some(bytes) = stdin.data.recv().await {
                if input.send(Input::Stdin(bytes)).await.is_err() {
                    return;
                }
            }
            let _ = input.send(Input::StdinClosed).await;
        };
        let resizing = async {
            let Some(mut resize) = resize else { return };
            while let Some(bytes) = resize.data.recv().await {
                if let Some(size) = channels::resize(bytes.trim_ascii())
                    && input.send(size).await.is_err()
                {
                    return;
                }
            }
        };
        // More streams are not expected; the end of them is the end of the connection.
        let connected = async { while connection.streams.recv().await.is_some() {} };
        let carrying = async {
            futures::join!(typing, resizing);
            std::future::pending::<()>().await
        };
        tokio::select! { () = carrying => {}, () = connected => {} }
    };
    let writing = async {
        while let Some(piece) = output.recv().await {
            let (stream, bytes) = match &piece {
                Output::Stdout(bytes) => (&stdout, bytes),
                Output::Stderr(bytes) => (&stderr, bytes),
            };
            if let Some(stream) = stream
                && stream.writer.send(bytes).await.is_err()
            {
                output.close();
                return;
            }
        }
    };
    let exit = {
        let mut running = pin!(async { futures::join!(program(ends), writing).0 });
        let first = tokio::select! {
            exit = &mut running => Some(exit),
            () = reading => None,
        };
        drop(input);
        match first {
            Some(exit) => exit,
            None => running.await,
        }
    };
    let goodbye = async {
        error.writer.send(&exit.status()).await?;
        for stream in [Some(&error), stdout.as_ref(), stderr.as_ref()].into_iter().flatten() {
            stream.writer.finish().await?;
        }
        Ok::<_, std::io::Error>(())
    };
    // A client that is gone already has no use for it.
    let _ = tokio::time::timeout(Duration::from_secs(5), goodbye).await;
}

struct Streams {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Waits until every stream the options call for is open.
async fn gather(connection: &mut Connection, options: &ExecOptions) -> Option<Streams> {
    let wanted = [
        ("error", true),
        ("stdin", options.stdin),
        ("stdout", options.stdout),
        ("stderr", options.stderr),
        ("resize", options.tty),
    ];
    let mut found: [Option<Stream>; 5] = Default::default();
    while wanted.iter().zip(&found).any(|((_, wanted), found)| *wanted && found.is_none()) {
        let stream = connection.streams.recv().await?;
        let index = wanted.iter().position(|(kind, _)| stream.header("streamtype") == Some(kind));
        if let Some(index) = index {
            found[index] = Some(stream);
        }
    }
    let [error, stdin, stdout, stderr, resize] = found;
    Some(Streams { error: error?, stdin, stdout, stderr, resize })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::server::spdy::client::Client as SpdyClient;

    #[tokio::test]
    async fn a_session_carries_both_ways_and_ends_with_the_status() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let options = ExecOptions { stdin: true, stdout: true, ..ExecOptions::default() };
        let server = tokio::spawn(async move {
            let echo = |mut ends: Ends| async move {
                while let Some(Input::Stdin(bytes)) = ends.input.recv().await {
                    ends.output.send(Output::Stdout(bytes)).await.unwrap();
                }
                Exit::Code(0)
            };
            serve(ours, &options, echo).await;
        });
        let mut client = SpdyClient::new(theirs);
        let error = client.open(false, &[("streamtype", "error")]).await;
        let stdin = client.open(false, &[("streamtype", "stdin")]).await;
        let stdout = client.open(true, &[("streamtype", "stdout")]).await;
        client.send(stdin, true, b"hello").await;
        let got = client.collect(&[error, stdout]).await;
        server.await.unwrap();
        assert_eq!(got[&stdout], b"hello");
        assert_eq!(got[&error], Exit::Code(0).status());
    }
}
