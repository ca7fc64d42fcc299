//! HTTP/2, as a client and as a server, in any cut.

pub fn run(input: &[u8]) {
    hbone::h2::exercise(input);
}

pub fn examples() -> Vec<Vec<u8>> {
    hbone::h2::exercise_examples()
}
