use std::os::fd::AsFd;

use super::*;

fn raw_send(socket: &SeqPacket, bytes: &[u8], fds: &[RawFd]) {
    sendmsg::<UnixAddr>(
        socket.io.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &[ControlMessage::ScmRights(fds)],
        MsgFlags::empty(),
        None,
    )
    .unwrap();
}

#[tokio::test]
async fn a_packet_arrives_whole_with_its_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("z.sock");
    let listener = SeqPacketListener::bind(&path, 0o660).unwrap();
    let client = SeqPacket::connect(&path).await.unwrap();
    let server = listener.accept().await.unwrap();
    let file = tempfile::tempfile().unwrap();
    client.send(b"one", Some(file.as_fd())).await.unwrap();
    client.send(b"two", None).await.unwrap();
    let (bytes, fd) = server.recv().await.unwrap();
    assert_eq!(bytes, b"one");
    let got = std::fs::File::from(fd.unwrap()).metadata().unwrap();
    assert_eq!(got.ino(), file.metadata().unwrap().ino());
    let (bytes, fd) = server.recv().await.unwrap();
    assert_eq!(bytes, b"two");
    assert!(fd.is_none());
    drop(client);
    assert!(matches!(server.recv().await, Err(RecvError::Closed)));
}

#[tokio::test]
async fn a_packet_that_is_too_long_is_reported_and_never_handed_on() {
    let (a, b) = SeqPacket::pair().unwrap();
    assert_eq!(a.send(&[1; MAX_PACKET + 1], None).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(a.send(&[], None).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    raw_send(&a, &[1; MAX_PACKET + 1], &[]);
    a.send(b"next", None).await.unwrap();
    assert!(matches!(b.recv().await, Err(RecvError::Truncated)));
    assert_eq!(b.recv().await.unwrap().0, b"next");
}

#[tokio::test]
async fn descriptors_that_nobody_asked_for_are_closed() {
    let (a, b) = SeqPacket::pair().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    raw_send(&a, b"x", &[writer.as_raw_fd(), writer.as_raw_fd(), writer.as_raw_fd()]);
    drop(writer);
    assert!(matches!(b.recv().await, Err(RecvError::TooManyDescriptors(3))));
    // The pipe reads as ended only when no copy of its writing end is left anywhere.
    let mut reader = std::fs::File::from(std::os::fd::OwnedFd::from(reader));
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut rest).unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_successor_keeps_its_path_when_the_predecessor_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("z.sock");
    let old = SeqPacketListener::bind(&path, 0o666).unwrap();
    let new = SeqPacketListener::bind(&path, 0o666).unwrap();
    drop(old);
    assert!(path.exists());
    drop(new);
    assert!(!path.exists());
    std::fs::write(&path, "a file of somebody else").unwrap();
    assert!(SeqPacketListener::bind(&path, 0o666).is_err());
    assert!(path.exists());
}
