//! Dials the proxy over HTTPS whenever the tunnel wants a carrier beside UDP, and holds it as long as the tunnel does. When it is wanted and which way
//! is used, the tunnel decides.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tunnel::{CarrierRole, Tunnel};

use super::Uplink;
use crate::hub::HubError;
use crate::register::Backoff;

/// A carrier that was held for so long and broke is replaced at once: load balancers end every connection some time.
const LONG: Duration = Duration::from_secs(30);
/// The hub as a peer may be replaced by one with other keys; then it is looked at again.
const REPLACED: Duration = Duration::from_millis(100);

/// Runs until the tunnel closes.
pub(super) async fn keep(uplink: Uplink, tunnel: Tunnel, hub: Ipv6Addr) {
    let mut backoff = Backoff::default();
    let mut told = false;
    loop {
        let mut wanted = match tunnel.watch_carrier(hub).await {
            Ok(wanted) => wanted,
            Err(tunnel::Error::UnknownPeer(_)) => {
                sleep(REPLACED).await;
                continue;
            }
            Err(_closed) => return,
        };
        if !*wanted.borrow_and_update() {
            backoff.reset();
        }
        if wanted.wait_for(|wanted| *wanted).await.is_err() {
            sleep(REPLACED).await;
            continue;
        }
        match ride(&uplink, &tunnel, hub).await {
            Ok(held) if held >= LONG => {
                backoff.reset();
                continue;
            }
            Ok(_) => {}
            Err(error) => {
                if std::mem::replace(&mut told, true) {
                    tracing::debug!(%error, "no tunnel over HTTPS");
                } else {
                    tracing::warn!(%error, "UDP to the proxy is not answered, and there is no tunnel over HTTPS either");
                }
            }
        }
        sleep(backoff.pause()).await;
    }
}

/// Opens a carrier and holds it to its end; how long that was.
async fn ride(uplink: &Uplink, tunnel: &Tunnel, hub: Ipv6Addr) -> Result<Duration, HubError> {
    let who = &uplink.member.node_id;
    let opened = uplink.hub.open_carrier(&uplink.identity, who).await?;
    let began = Instant::now();
    let carrier = match tunnel.open_carrier(hub, opened.remote).await {
        Ok(carrier) => carrier,
        Err(error) => {
            tracing::debug!(%error, "the tunnel takes no carrier");
            return Ok(Duration::ZERO);
        }
    };
    tracing::info!(
        proxy = uplink.hub.url(),
        "UDP to the proxy is not answered: trying the tunnel over HTTPS"
    );
    match carrier.run(opened.stream, CarrierRole::Client).await {
        Ok(()) => tracing::info!("UDP to the proxy works again: the tunnel over HTTPS is closed"),
        Err(error) => tracing::info!(%error, "the tunnel over HTTPS broke"),
    }
    Ok(began.elapsed())
}
