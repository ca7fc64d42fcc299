//! What must hold for anything that a node agent sends: for fuzzing.

use std::collections::BTreeSet;

use super::order::{Order, Step};

/// Takes `packets`, each with or without a descriptor, as those of one connection. Panics where a promise is broken.
pub fn exercise<'a>(packets: impl IntoIterator<Item = (bool, &'a [u8])>) {
    let mut order = Order::default();
    let (mut named, mut complete) = (BTreeSet::new(), false);
    for (with_descriptor, bytes) in packets {
        match order.take(bytes, with_descriptor) {
            Ok(Step::Add(uid, _)) => {
                assert!(with_descriptor, "a pod without a network namespace");
                named.insert(uid);
            }
            Ok(Step::Keep) => assert!(!complete, "the snapshot goes on after its end"),
            Ok(Step::Stop(uid)) => {
                named.remove(&uid);
            }
            Ok(Step::Complete(listed)) => {
                assert!(!complete, "a snapshot that ends twice");
                assert!(named.is_subset(&listed), "a pod that was added would be stopped");
                complete = true;
            }
            // The connection ends with the first of these.
            Err(error) => {
                assert!(error.starts_with("failure to "), "{error}");
                return;
            }
        }
    }
}
