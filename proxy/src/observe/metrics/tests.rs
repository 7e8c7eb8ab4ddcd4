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
    metrics.wake("gpu", "start", "ok");
    metrics.burst("gpu", true, 0);
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
    let den = facts("den", "node_1", Some(&status()));
    metrics.nodes(&[den, facts("attic", "node_2", None)]);
    metrics.node_refused("node_pending");
    metrics.tunnel("netns", &counters(3));
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
        "hearth_node_connected{node=\"den\",id=\"node_1\"} 1",
        "hearth_node_connected{node=\"attic\",id=\"node_2\"} 0",
        "hearth_wg_last_handshake_seconds{node=\"den\",id=\"node_1\"} 1.0",
        "hearth_node_carried{node=\"den\",id=\"node_1\"} 1",
        "hearth_node_mtu_bytes{node=\"den\",id=\"node_1\"} 1280",
        "hearth_node_round_trip_seconds{node=\"den\",id=\"node_1\"} 0.25",
        "hearth_node_loss_ratio{node=\"den\",id=\"node_1\"} 0.125",
        "hearth_node_received_bytes_total{node=\"den\",id=\"node_1\"} 3",
        "hearth_node_sent_bytes_total{node=\"den\",id=\"node_1\"} 4",
        "hearth_node_rejected_packets_total{node=\"den\",id=\"node_1\",reason=\"bad_mac\"} 2",
        "hearth_node_prefixes{node=\"den\",id=\"node_1\"} 2",
        "hearth_node_refusals_total{reason=\"node_pending\"} 1",
        "hearth_tunnel_back_end{back_end=\"netns\"} 1",
        "hearth_tunnel_rejected_packets_total{reason=\"bad_mac\"} 3",
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
    assert!(metrics.render().contains("hearth_inflight 0"));
}

#[test]
fn a_node_without_a_session_keeps_its_counts_alone_and_one_that_is_gone_keeps_nothing() {
    let metrics = Metrics::new();
    let both = [
        facts("den", "node_1", Some(&status())),
        facts("den", "node_2", Some(&status())),
    ];
    metrics.nodes(&both);
    let text = metrics.render();
    assert_eq!(
        text.matches("hearth_node_received_bytes_total{").count(),
        2,
        "two machines may have one name: {text}"
    );
    let mut apart = status();
    apart.since_handshake = None;
    metrics.nodes(&[facts("den", "node_1", Some(&apart))]);
    let text = metrics.render();
    assert!(!text.contains("node_2"), "{text}");
    for line in [
        "hearth_node_connected{node=\"den\",id=\"node_1\"} 0",
        "hearth_node_received_bytes_total{node=\"den\",id=\"node_1\"} 3",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    for name in [
        "hearth_wg_last",
        "hearth_node_round",
        "hearth_node_loss",
        "hearth_node_mtu",
    ] {
        let series = text.lines().any(|line| line.starts_with(name));
        assert!(!series, "{name} of a session that is over:\n{text}");
    }
    metrics.nodes(&[]);
    assert!(!metrics.render().contains("node_1"));
}

fn facts(name: &str, id: &str, status: Option<&::tunnel::PeerStatus>) -> NodeFacts {
    NodeFacts {
        name: name.to_owned(),
        id: id.to_owned(),
        status: status.copied(),
        prefixes: 2,
    }
}

fn counters(bad_mac: u64) -> ::tunnel::Counters {
    let mut counters = ::tunnel::Counters::default();
    counters.bad_mac = bad_mac;
    counters
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
        loss_per_mille: Some(125),
        rejected: counters(2),
    }
}
