//! `route explain`: what the classifier thinks of a text, and where the running proxy would send it. The text stays in this process:
//! only the class goes to the proxy.

use std::io::Read as _;
use std::path::Path;

use config::settings::proxy::Settings;
use policy::classify::{Features, Thresholds, Verdict, classify};
use serde_json::json;

use super::args::{Output, RouteCommand};
use super::print;
use super::{CliError, settings};
use crate::admin::client::{AdminClient, ClientError};
use crate::admin::explain::{RouteAsk, RouteView};
use crate::admin::routes::encoded;
use crate::gateway::classify::features_of;

/// Bytes of standard input that are classified.
const INPUT_MAX: u64 = 4 * 1024 * 1024;
/// Places left out that are printed; `--json` has them all.
const SKIPPED_SHOWN: usize = 20;
/// Bytes of a token, in a rough estimate of a text's length.
const BYTES_PER_TOKEN: usize = 4;

pub(super) async fn run(
    file: Option<&Path>,
    command: &RouteCommand,
    output: Output,
) -> Result<(), CliError> {
    let RouteCommand::Explain {
        text,
        tier,
        model,
        local_only,
    } = command;
    let asked = RouteAsk {
        tier: *tier,
        model: model.clone(),
        class: None,
        local_only: *local_only,
        prompt_tokens: 0,
    };
    explain(&settings(file)?, text, asked, output).await
}

async fn explain(
    settings: &Settings,
    text: &str,
    asked: RouteAsk,
    output: Output,
) -> Result<(), CliError> {
    let mut input = String::new();
    let text = match text {
        "-" => {
            let mut stdin = std::io::stdin().take(INPUT_MAX);
            stdin.read_to_string(&mut input)?;
            input.as_str()
        }
        text => text,
    };
    let features = features_of(text);
    let thresholds = Thresholds::from(&settings.routing);
    let verdict = classify(&features, thresholds);
    let asked = RouteAsk {
        class: Some(verdict.tier),
        prompt_tokens: u32::try_from(features.bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX),
        ..asked
    };
    let route = planned(settings, &asked).await?;
    if output == Output::Json {
        return print::json(&json!({ "verdict": verdict, "features": features, "route": route }));
    }
    let mut lines = told(&verdict, &features, thresholds);
    match &route {
        Some(route) => lines.extend(told_route(route)),
        None => lines.push("route     no proxy runs here: this is the classifier alone".to_owned()),
    }
    print::line(&lines.join("\n"))
}

/// What the running proxy would do; `None` if none runs.
async fn planned(settings: &Settings, asked: &RouteAsk) -> Result<Option<RouteView>, CliError> {
    let mut proxy = match AdminClient::connect(&settings.server.state_dir).await {
        Ok(proxy) => proxy,
        Err(ClientError::NotRunning(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut path = format!(
        "/admin/v1/route?local_only={}&prompt_tokens={}",
        asked.local_only, asked.prompt_tokens
    );
    let tiers = [("tier", asked.tier), ("class", asked.class)];
    for (name, tier) in tiers {
        if let Some(tier) = tier {
            path.extend(["&", name, "=", tier.as_str()]);
        }
    }
    if let Some(model) = &asked.model {
        path.extend(["&model=", &encoded(model)]);
    }
    Ok(Some(proxy.get(&path).await?))
}

fn told(verdict: &Verdict, features: &Features, thresholds: Thresholds) -> Vec<String> {
    let (category, bytes, words) = (verdict.category.as_str(), features.bytes, features.words);
    let mut lines = vec![
        format!("class     {}", verdict.tier),
        format!("category  {category}"),
        format!(
            "score     {:.2} (fast up to {:.2}, heavy from {:.2}; {bytes} bytes, {words} words)",
            verdict.score, thresholds.fast_to, thresholds.heavy_from
        ),
    ];
    for (at, reason) in verdict.reasons.iter().enumerate() {
        let head = if at == 0 { "reasons" } else { "" };
        lines.push(format!("{head:9} {:+.3}  {}", reason.weight, reason.rule));
    }
    lines
}

fn told_route(route: &RouteView) -> Vec<String> {
    let wanted = route.wanted.map_or("nobody", |tier| tier.as_str());
    let mut lines = vec![format!("route     {wanted} ({})", route.reason)];
    for (at, step) in route.steps.iter().enumerate() {
        let (place, tier, wait) = (at + 1, step.tier, step.wait_ms);
        let (node, model) = (&step.node, &step.model);
        lines.push(format!(
            "  {place:2}. {node}/{tier}  {model}  waits {wait} ms"
        ));
        let parts = step.predicted;
        let state = if step.cold { "cold" } else { "awake" };
        lines.push(format!(
            "      {state}; first token after {} ms: slot {} + prefill {} + round trip {} + waking {}; {} of {} tokens cached",
            parts.total_ms,
            parts.slot_ms,
            parts.prefill_ms,
            parts.round_trip_ms,
            parts.waking_ms,
            parts.cached_tokens,
            parts.prompt_tokens
        ));
    }
    for skip in route.skipped.iter().take(SKIPPED_SHOWN) {
        let lasts = skip
            .for_ms
            .map_or_else(String::new, |ms| format!(", {ms} ms"));
        let (node, tier, reason) = (&skip.node, skip.tier, &skip.reason);
        lines.push(format!("  not {node}/{tier}: {reason}{lasts}"));
    }
    if let Some(more @ 1..) = route.skipped.len().checked_sub(SKIPPED_SHOWN) {
        lines.push(format!("  and {more} more that cannot"));
    }
    lines
}
