//! A step whose model is still being loaded when the request's class has waited as long as it does, while others are warm: it is left, and the
//! next one asked. Nothing of the answer exists then, and nobody is to blame. Loads and wakes nothing.

use std::future::pending;

use config::ids::BackendId;
use config::wire::node::TierState;
use policy::router::Outcome;
use tokio::time::{Instant, sleep_until};

use super::{Asking, Failure, Tries};

impl Tries<'_> {
    /// Until when the step that was taken last may load its model; `None`: as long as it takes, for nobody behind it is warm.
    pub(super) fn loads_until(&self) -> Option<Instant> {
        let others = self.route.steps.get(self.next..).unwrap_or_default();
        let patience = self.dispatcher.rules.wake.of(self.job.priority);
        let has_warm = others.iter().any(|other| !other.cold);
        has_warm.then(|| Instant::now() + patience)
    }
}

impl Asking<'_> {
    /// What comes of asking a backend, unless its model is still not loaded by `until`.
    pub(super) async fn unless_it_loads_on<T>(
        self,
        (backend, until): (&BackendId, Option<Instant>),
        asking: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let Some(until) = until else {
            return asking.await;
        };
        let loads_on = async {
            sleep_until(until).await;
            if !self.is_loading(backend) {
                // The model is there: what is missing is the answer, and that has a deadline of its own.
                pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            answered = asking => answered,
            () = loads_on => Err(Failure::Next(Outcome::Loading)),
        }
    }

    fn is_loading(self, backend: &BackendId) -> bool {
        let state = self.dispatcher.fleet.with(|router| {
            let found = router.registry().backend(backend);
            found.map(|found| found.tier.state)
        });
        matches!(state, Some(TierState::Loading | TierState::Sleeping))
    }
}
