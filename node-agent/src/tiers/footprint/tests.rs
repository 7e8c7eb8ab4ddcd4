//! Shares become contexts.

use config::settings::load;

use super::*;

const MIB: u64 = 1024 * 1024;

fn settings(context: Option<u32>) -> TierSettings {
    let model = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/models/tiny-heavy-q8_0.gguf"
    );
    let text = format!("[[tiers]]\ntier = \"fast\"\nmodel = \"{model}\"\n");
    let parsed = load::parse_node("tests", &text, &load::Outside::this());
    TierSettings {
        context,
        ..parsed.expect("right").tiers.remove(0)
    }
}

fn within(bytes: u64) -> Share {
    Share {
        bytes,
        bounded: true,
    }
}

#[test]
fn a_tier_without_a_context_gets_the_longest_that_its_share_holds() {
    let mut settings = settings(None);
    settings.engine.prompt_cache_bytes = 0;
    let whole = plan(&settings, &within(u64::MAX)).expect("fits");
    assert_eq!(whole.n_ctx, 2_048, "as long as it was trained for");
    let tight = whole.total() - whole.need.kv_cache / 2;
    let half = plan(&settings, &within(tight)).expect("fits");
    assert!((256..2_048).contains(&half.n_ctx), "{half:?}");
    assert!(half.total() <= tight, "{half:?}");
}

#[test]
fn a_share_that_holds_nothing_is_refused_with_both_numbers() {
    let refused = plan(&settings(None), &within(2 * MIB)).expect_err("is too small");
    let text = refused.to_string();
    assert!(text.contains("2.0 MB are its share"), "{text}");
    let set = plan(&settings(Some(512)), &within(2 * MIB)).expect("was asked for");
    assert_eq!(set.n_ctx, 512);
}

#[test]
fn caches_that_can_never_be_held_are_refused_with_what_would_fit() {
    let mut huge = settings(Some(2_048));
    huge.slots = u32::MAX;
    let text = plan(&huge, &within(u64::MAX))
        .expect_err("nobody has so much")
        .to_string();
    assert!(
        text.contains("2048 tokens for each of 4294967295 slots"),
        "{text}"
    );
    assert!(text.contains("set context to 256"), "{text}");
}

#[test]
fn prompts_that_are_kept_stay_an_eighth_of_a_bounded_share() {
    let planned = plan(&settings(None), &within(160 * MIB)).expect("fits");
    assert_eq!(planned.prompts, 20 * MIB);
    assert!(planned.total() <= 160 * MIB);
}
