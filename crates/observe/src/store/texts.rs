//! Texts that many records share are kept once.

use std::collections::HashSet;
use std::sync::Arc;

use crate::flow::Text;

/// All shared texts.
#[derive(Debug, Default)]
pub struct Texts(HashSet<Text>);

impl Texts {
    /// The shared copy of a text.
    pub fn share(&mut self, text: &str) -> Text {
        match self.0.get(text) {
            Some(shared) => shared.clone(),
            None => {
                let shared: Text = text.into();
                self.0.insert(shared.clone());
                shared
            }
        }
    }

    /// Forgets what nobody holds any more.
    pub fn collect(&mut self) {
        self.0.retain(|text| Arc::strong_count(text) > 1);
    }

    /// Memory on the heap, estimated.
    pub fn heap_bytes(&self) -> usize {
        self.0.iter().map(|text| text.len() + 16).sum::<usize>() + self.0.capacity() * 17
    }
}
