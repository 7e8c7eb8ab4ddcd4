//! What llama-server's clients look at: `/props` and `/slots`. Wakes nobody, names no file's folder.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Body, Front, json_response};
use crate::tiers::{Phase, TierRoom};

impl Front {
    /// `/props`: of the first tier at the top, as llama-server has it, and of each below.
    pub(super) fn props(&self) -> Value {
        let tiers: Vec<Value> = self
            .tiers
            .rooms()
            .iter()
            .map(|room| props_of(room))
            .collect();
        let mut props = tiers.first().cloned().unwrap_or_else(|| json!({}));
        props["build_info"] = json!(concat!("hearth-node ", env!("CARGO_PKG_VERSION")));
        props["is_draining"] = json!(self.work.is_draining());
        props["requests_running"] = json!(self.work.running());
        props["tiers"] = json!(tiers);
        props
    }

    /// `/slots`: one entry each; with `fail_on_no_slot=1`, 503 when all are at work.
    pub(super) fn slots(&self, query: Option<&str>) -> Response<Body> {
        let slots: Vec<Value> = self
            .tiers
            .rooms()
            .iter()
            .flat_map(|room| slots_of(room))
            .collect();
        let must_be_idle = query.is_some_and(|query| {
            query
                .split('&')
                .any(|pair| matches!(pair, "fail_on_no_slot=1" | "fail_on_no_slot=true"))
        });
        let idle = slots.iter().any(|slot| slot["is_processing"] == false);
        if must_be_idle && !idle {
            let mut response = json_response(&json!({
                "error": {
                    "code": "overloaded",
                    "message": "no slot is idle; ask again in a moment",
                    "type": "unavailable_error",
                    "param": null,
                }
            }));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return response;
        }
        json_response(&slots)
    }
}

fn props_of(room: &TierRoom) -> Value {
    let settings = room.settings();
    let ready = room.ready().ok();
    let card = ready.as_ref().map(|ready| &ready.card);
    let file = settings.model.file_name();
    let takes = |kind: &str| {
        let report = room.report();
        let model = report.model.as_ref();
        model.is_some_and(|model| model.modalities.iter().any(|known| known == kind))
    };
    let n_ctx = card.map(|card| card.n_ctx);
    json!({
        "report": room.report(),
        "default_generation_settings": {"n_ctx": n_ctx, "params": settings.sampling},
        "total_slots": settings.slots,
        "model_path": file.map(|name| name.to_string_lossy()),
        "model_alias": settings.model_id,
        "chat_template": ready.as_ref().map(|ready| ready.template.source()),
        "bos_token": card.map(|card| &card.bos_token),
        "eos_token": card.map(|card| &card.eos_token),
        "modalities": {"vision": takes("image"), "audio": takes("audio")},
        "is_sleeping": matches!(room.phase(), Phase::Sleeping),
        "kind": settings.kind.as_str(),
        "devices": card.map(|card| {
            card.devices.iter().map(|device| &device.name).collect::<Vec<_>>()
        }),
        "sampling": settings.sampling,
        "system_fingerprint": room.fingerprint(false),
    })
}

/// The worker says how many are at work, not which: the first ones stand for them.
fn slots_of(room: &TierRoom) -> Vec<Value> {
    let Ok(ready) = room.ready() else {
        return Vec::new();
    };
    let stats = room.stats();
    let slots = (0..ready.card.slots).map(|id| {
        json!({
            "id": id,
            "tier": room.tier(),
            "n_ctx": ready.card.n_ctx,
            "speculative": stats.drafted_tokens_total > 0,
            "is_processing": id < stats.slots_busy,
        })
    });
    slots.collect()
}
