//! Asking the control plane by name (`XDS_ON_DEMAND`): connections say what they need and wait, bounded; the client
//! sends the names and publishes what comes back.
//!
//! What is asked once stays asked: the control plane tells of changes by itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mesh::Lookup;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::failure::Failure;
use crate::views::Views;

/// How long a connection waits for an answer.
pub(crate) const WAIT: Duration = Duration::from_secs(5);
/// How long a connection that could do without waits for it.
const SHORT_WAIT: Duration = Duration::from_secs(1);
/// Names that wait for a control plane that is away.
const MOST: usize = 65_536;

/// The connections' end. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Demand(Option<Arc<Inner>>);

struct Inner {
    views: Views,
    wanted: Mutex<BTreeSet<Lookup>>,
    news: Notify,
}

impl Demand {
    /// Questions that are answered in `views`.
    pub(crate) fn new(views: Views) -> Self {
        Self(Some(Arc::new(Inner { views, wanted: Mutex::default(), news: Notify::new() })))
    }

    /// Asks, and waits for whatever is the answer. Where everything is followed there is nothing to ask.
    pub(crate) async fn ask(&self, lookup: &Lookup) -> Result<(), Failure> {
        self.ask_within(lookup, WAIT).await
    }

    /// The same for what is only nice to know.
    pub(crate) async fn hint(&self, lookup: Lookup) {
        let _ = self.ask_within(&lookup, SHORT_WAIT).await;
    }

    async fn ask_within(&self, lookup: &Lookup, within: Duration) -> Result<(), Failure> {
        let Some(inner) = &self.0 else { return Ok(()) };
        if !inner.views.load().lacks(lookup) {
            return Ok(());
        }
        let failed = || Failure::Undiscovered { what: lookup.to_string() };
        {
            let mut wanted = inner.wanted.lock();
            if wanted.len() >= MOST && !wanted.contains(lookup) {
                return Err(failed());
            }
            wanted.insert(lookup.clone());
        }
        inner.news.notify_one();
        let answered = inner.views.wait(within, |view| (!view.lacks(lookup)).then_some(())).await;
        answered.ok_or_else(failed)
    }

    /// Whether by name is how this proxy asks at all.
    pub(super) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Names that nobody has taken yet.
    pub(super) fn take(&self) -> BTreeSet<Lookup> {
        self.0.as_ref().map(|inner| std::mem::take(&mut *inner.wanted.lock())).unwrap_or_default()
    }

    /// Resolves when there may be such names.
    pub(super) async fn news(&self) {
        match &self.0 {
            Some(inner) => inner.news.notified().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh::{NetworkAddress, View};

    use super::*;

    fn lookup() -> Lookup {
        Lookup::Address(NetworkAddress::new("", "10.0.0.9".parse().unwrap()))
    }

    fn partial() -> View {
        let mut view = View::default();
        view.set_partial();
        view
    }

    #[tokio::test]
    async fn who_asks_is_told_as_soon_as_the_view_says_so() {
        let views = Views::default();
        views.publish(partial());
        let demand = Demand::new(views.clone());
        let what = lookup();
        let asking = demand.ask(&what);
        tokio::pin!(asking);
        assert!(futures::poll!(&mut asking).is_pending());
        demand.news().await;
        assert_eq!(demand.take().into_iter().collect::<Vec<_>>(), [lookup()]);
        assert!(demand.take().is_empty(), "taken once");
        let mut told = partial();
        told.note_absent(lookup());
        views.publish(told);
        asking.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_and_the_failure_names_what_was_asked() {
        let views = Views::default();
        views.publish(partial());
        let error = Demand::new(views).ask_within(&lookup(), Duration::ZERO).await.unwrap_err();
        assert_eq!(error.code(), "undiscovered");
        assert!(error.to_string().contains("/10.0.0.9"), "{error}");
    }

    #[tokio::test]
    async fn where_everything_is_followed_nothing_is_asked() {
        Demand::default().ask(&lookup()).await.unwrap();
        assert!(!Demand::default().is_on());
    }
}
