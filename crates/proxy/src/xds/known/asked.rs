//! What has been asked for by name, and what of it is known not to exist.
//!
//! A name that leads nowhere stays asked, so that the control plane tells when something appears there; but only so many
//! of them: an application that scans addresses must not make the proxy remember them all.

use std::collections::{BTreeSet, HashSet, VecDeque};

use mesh::{Lookup, View};

/// Names that lead nowhere, at most.
const MOST_ABSENT: usize = 65_536;

#[derive(Default)]
pub(super) struct Asked {
    names: HashSet<Lookup>,
    /// Those that lead nowhere, the oldest first; some may lead somewhere by now.
    absent: VecDeque<Lookup>,
    /// To be told to the control plane.
    subscribe: BTreeSet<Lookup>,
    unsubscribe: BTreeSet<Lookup>,
}

impl Asked {
    /// Wants to know of `lookup` from now on.
    pub(super) fn ask(&mut self, lookup: Lookup) {
        if self.names.insert(lookup.clone()) {
            self.unsubscribe.remove(&lookup);
            self.subscribe.insert(lookup);
        }
    }

    /// Something has happened to whatever goes by these names: what leads nowhere is noted in the view.
    pub(super) fn settle(&mut self, view: &mut View, touched: impl IntoIterator<Item = Lookup>) {
        for lookup in touched {
            if view.has(&lookup) {
                view.forget_absent(&lookup);
            } else if self.names.contains(&lookup) && view.lacks(&lookup) {
                view.note_absent(lookup.clone());
                self.absent.push_back(lookup);
            }
        }
        while self.absent.len() > MOST_ABSENT {
            let Some(oldest) = self.absent.pop_front() else { return };
            if !view.has(&oldest) && self.names.remove(&oldest) {
                view.forget_absent(&oldest);
                self.subscribe.remove(&oldest);
                self.unsubscribe.insert(oldest);
            }
        }
    }

    /// What is to be told: names to subscribe to and to unsubscribe from.
    pub(super) fn take(&mut self) -> Option<(Vec<String>, Vec<String>)> {
        let texts = |names: BTreeSet<Lookup>| names.iter().map(ToString::to_string).collect();
        let both = (std::mem::take(&mut self.subscribe), std::mem::take(&mut self.unsubscribe));
        (!both.0.is_empty() || !both.1.is_empty()).then(|| (texts(both.0), texts(both.1)))
    }

    /// Everything that is asked for, for a control plane that has not heard of it.
    pub(super) fn all(&mut self) -> Vec<String> {
        (self.subscribe, self.unsubscribe) = Default::default();
        self.names.iter().map(ToString::to_string).collect()
    }
}
