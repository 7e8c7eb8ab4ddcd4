//! The names are a promise to dashboards.

use super::*;

#[test]
fn everything_counted_is_rendered() {
    let metrics = Metrics::new();
    let second = Duration::from_secs(1);
    metrics.request("chat_completions", 200, Some(Tier::Fast), second);
    metrics.request("not_found", 404, None, second);
    metrics.tokens(Tier::Heavy, 3, 4);
    metrics.queue_depth(Tier::Fast, 2);
    metrics.queue_wait(second);
    metrics.first_token(Tier::Fast, second);
    metrics.token_time(Tier::Fast, second);
    metrics.attempt(Tier::Fast, "ok");
    metrics.fallback(Tier::Heavy, Tier::Primary);
    metrics.limit_rejection("text-min");
    metrics.auth_failure("expired_credential");
    metrics.jwks_fetch("ok");
    metrics.store_error("unavailable");
    metrics.breaker(Tier::Fast, BreakerGauge::HalfOpen);
    metrics.node_prefixes("den", 2);
    metrics.node("den", &status());
    metrics.node_refused("node_pending");
    metrics.tunnel_drops("bad_mac", 3);
    metrics.migrated(Tier::Fast);
    metrics.connections(5);
    metrics.certificate_expiry(2_524_607_999);
    let one = metrics.enter();
    let two = metrics.enter();
    drop(one);
    let text = metrics.render();
    for line in [
        "hearth_requests_total{route=\"chat_completions\",code=\"200\",tier=\"fast\"} 1",
        "hearth_requests_total{route=\"not_found\",code=\"404\",tier=\"none\"} 1",
        "hearth_tokens_total{direction=\"output\",tier=\"heavy\"} 4",
        "hearth_queue_depth{tier=\"fast\"} 2",
        "hearth_queue_wait_seconds_count 1",
        "gen_ai_server_request_duration_seconds_count{tier=\"fast\"} 1",
        "gen_ai_server_time_to_first_token_seconds_count{tier=\"fast\"} 1",
        "gen_ai_server_time_per_output_token_seconds_count{tier=\"fast\"} 1",
        "hearth_attempts_total{tier=\"fast\",outcome=\"ok\"} 1",
        "hearth_fallbacks_total{from=\"heavy\",to=\"primary\"} 1",
        "hearth_limit_rejections_total{policy=\"text-min\"} 1",
        "hearth_breaker_state{tier=\"fast\"} 2",
        "hearth_wg_last_handshake_seconds{node=\"den\"} 1.0",
        "hearth_node_carried{node=\"den\"} 1",
        "hearth_node_mtu_bytes{node=\"den\"} 1280",
        "hearth_node_round_trip_seconds{node=\"den\"} 0.25",
        "hearth_node_received_bytes{node=\"den\"} 3",
        "hearth_node_prefixes{node=\"den\"} 2",
        "hearth_node_refusals_total{reason=\"node_pending\"} 1",
        "hearth_tunnel_drops{reason=\"bad_mac\"} 3",
        "hearth_migrations_total{tier=\"fast\"} 1",
        "hearth_inflight 1",
        "hearth_connections 5",
        "hearth_cert_expiry_timestamp_seconds 2524607999",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    insta::assert_snapshot!("names", names.join("\n"));
    drop(two);
    metrics.forget_node("den");
    let text = metrics.render();
    assert!(text.contains("hearth_inflight 0") && !text.contains("node=\"den\""));
}

fn status() -> ::tunnel::PeerStatus {
    ::tunnel::PeerStatus {
        public_key: ::tunnel::PublicKey::from_bytes([1; 32]),
        endpoint: None,
        remote: None,
        path: ::tunnel::PathKind::Carried,
        mtu: 1_280,
        since_handshake: Some(Duration::from_secs(1)),
        since_heard: None,
        rx_bytes: 3,
        tx_bytes: 4,
        streams: 0,
        round_trip: Some(Duration::from_millis(250)),
        loss_per_mille: None,
        rejected: ::tunnel::Counters::default(),
    }
}
