//! How tokens are chosen: what the request says, else what the tier says, else what the engine does by itself.

use config::settings::node::SamplingDefaults;
use config::wire::valid;
use engine::{Dry, Mirostat, MirostatVersion, Sampling};

/// Target of mirostat in bits and how fast it is approached, where only its version is given; llama.cpp's values.
const MIROSTAT_TAU: f32 = 5.0;
const MIROSTAT_ETA: f32 = 0.1;

/// Puts the three together.
pub(super) fn merge(asked: &valid::Sampling, tier: &SamplingDefaults) -> Sampling {
    let engine = Sampling::default();
    let first = |asked: Option<f64>, tier: Option<f32>, engine: f32| {
        asked.map(narrow).or(tier).unwrap_or(engine)
    };
    Sampling {
        temperature: first(asked.temperature, tier.temperature, engine.temperature),
        dynatemp_range: first(
            asked.dynatemp_range,
            tier.dynatemp_range,
            engine.dynatemp_range,
        ),
        dynatemp_exponent: first(
            asked.dynatemp_exponent,
            tier.dynatemp_exponent,
            engine.dynatemp_exponent,
        ),
        top_k: asked.top_k.or(tier.top_k).unwrap_or(engine.top_k),
        top_p: first(asked.top_p, tier.top_p, engine.top_p),
        min_p: first(asked.min_p, tier.min_p, engine.min_p),
        typical_p: first(asked.typical_p, tier.typical_p, engine.typical_p),
        top_n_sigma: first(asked.top_n_sigma, tier.top_n_sigma, engine.top_n_sigma),
        xtc_probability: first(
            asked.xtc_probability,
            tier.xtc_probability,
            engine.xtc_probability,
        ),
        xtc_threshold: first(
            asked.xtc_threshold,
            tier.xtc_threshold,
            engine.xtc_threshold,
        ),
        repeat_penalty: first(
            asked.repeat_penalty,
            tier.repeat_penalty,
            engine.repeat_penalty,
        ),
        repeat_last_n: asked.repeat_last_n.or(tier.repeat_last_n),
        presence_penalty: first(
            asked.presence_penalty,
            tier.presence_penalty,
            engine.presence_penalty,
        ),
        frequency_penalty: first(
            asked.frequency_penalty,
            tier.frequency_penalty,
            engine.frequency_penalty,
        ),
        dry: dry(asked, tier),
        mirostat: mirostat(asked, tier),
        logit_bias: asked
            .logit_bias
            .iter()
            .filter_map(|(token, bias)| Some((i32::try_from(*token).ok()?, narrow(*bias))))
            .collect(),
        seed: asked.seed.map(i64::cast_unsigned),
    }
}

fn dry(asked: &valid::Sampling, tier: &SamplingDefaults) -> Option<Dry> {
    let engine = Dry::default();
    let multiplier = asked.dry_multiplier.map(narrow).or(tier.dry_multiplier);
    let multiplier = multiplier.filter(|multiplier| *multiplier > 0.0)?;
    let breakers = asked
        .dry_sequence_breakers
        .as_ref()
        .or(tier.dry_sequence_breakers.as_ref());
    Some(Dry {
        multiplier,
        base: asked
            .dry_base
            .map(narrow)
            .or(tier.dry_base)
            .unwrap_or(engine.base),
        allowed_length: asked
            .dry_allowed_length
            .or(tier.dry_allowed_length)
            .unwrap_or(engine.allowed_length),
        last_n: asked
            .dry_penalty_last_n
            .or(tier.dry_penalty_last_n)
            .unwrap_or(engine.last_n),
        breakers: breakers.cloned().unwrap_or(engine.breakers),
    })
}

fn mirostat(asked: &valid::Sampling, tier: &SamplingDefaults) -> Option<Mirostat> {
    let version = match asked.mirostat.or(tier.mirostat)? {
        1 => MirostatVersion::One,
        2 => MirostatVersion::Two,
        _off => return None,
    };
    let tau = asked.mirostat_tau.map(narrow).or(tier.mirostat_tau);
    let eta = asked.mirostat_eta.map(narrow).or(tier.mirostat_eta);
    Some(Mirostat {
        version,
        tau: tau.unwrap_or(MIROSTAT_TAU),
        eta: eta.unwrap_or(MIROSTAT_ETA),
    })
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "sampling values are small and need no more than seven digits"
)]
const fn narrow(value: f64) -> f32 {
    value as f32
}

#[cfg(test)]
mod tests {
    use config::wire::valid::ChatRequest;
    use serde_json::{Value, json};

    use super::*;

    fn asked(mut body: Value) -> valid::Sampling {
        body["model"] = json!("auto");
        body["messages"] = json!([{"role": "user", "content": "x"}]);
        let chat = ChatRequest::parse(body.to_string().as_bytes()).expect("a request");
        chat.generation.sampling
    }

    /// Every rule by its name, all values unlike the defaults and exact in single precision.
    fn everything() -> Value {
        json!({
            "temperature": 0.75, "dynatemp_range": 0.25, "dynatemp_exponent": 1.5, "top_k": 30, "top_p": 0.875, "min_p": 0.125,
            "typical_p": 0.5, "top_n_sigma": 1.25, "xtc_probability": 0.375, "xtc_threshold": 0.25, "repeat_penalty": 1.125,
            "repeat_last_n": 77, "presence_penalty": 0.5, "frequency_penalty": -0.25, "dry_multiplier": 0.625, "dry_base": 2.5,
            "dry_allowed_length": 3, "dry_penalty_last_n": 99, "dry_sequence_breakers": ["|"], "mirostat": 1, "mirostat_tau": 4.5,
            "mirostat_eta": 0.0625, "seed": -7, "logit_bias": {"4": -100, "9": 1.5},
        })
    }

    fn defaults() -> SamplingDefaults {
        SamplingDefaults {
            temperature: Some(0.75),
            dynatemp_range: Some(0.25),
            dynatemp_exponent: Some(1.5),
            top_k: Some(30),
            top_p: Some(0.875),
            min_p: Some(0.125),
            typical_p: Some(0.5),
            top_n_sigma: Some(1.25),
            xtc_probability: Some(0.375),
            xtc_threshold: Some(0.25),
            repeat_penalty: Some(1.125),
            repeat_last_n: Some(77),
            presence_penalty: Some(0.5),
            frequency_penalty: Some(-0.25),
            dry_multiplier: Some(0.625),
            dry_base: Some(2.5),
            dry_allowed_length: Some(3),
            dry_penalty_last_n: Some(99),
            dry_sequence_breakers: Some(vec!["|".to_owned()]),
            mirostat: Some(1),
            mirostat_tau: Some(4.5),
            mirostat_eta: Some(0.0625),
        }
    }

    fn wanted() -> Sampling {
        Sampling {
            temperature: 0.75,
            dynatemp_range: 0.25,
            dynatemp_exponent: 1.5,
            top_k: 30,
            top_p: 0.875,
            min_p: 0.125,
            typical_p: 0.5,
            top_n_sigma: 1.25,
            xtc_probability: 0.375,
            xtc_threshold: 0.25,
            repeat_penalty: 1.125,
            repeat_last_n: Some(77),
            presence_penalty: 0.5,
            frequency_penalty: -0.25,
            dry: Some(Dry {
                multiplier: 0.625,
                base: 2.5,
                allowed_length: 3,
                last_n: 99,
                breakers: vec!["|".to_owned()],
            }),
            mirostat: Some(Mirostat {
                version: MirostatVersion::One,
                tau: 4.5,
                eta: 0.0625,
            }),
            logit_bias: vec![(4, -100.0), (9, 1.5)],
            seed: Some((-7_i64).cast_unsigned()),
        }
    }

    #[test]
    fn every_rule_of_a_request_reaches_the_engine() {
        let merged = merge(&asked(everything()), &SamplingDefaults::default());
        assert_eq!(merged, wanted());
    }

    #[test]
    fn every_rule_of_a_tier_reaches_the_engine_where_the_request_says_nothing() {
        let own = Sampling {
            logit_bias: Vec::new(),
            seed: None,
            ..wanted()
        };
        assert_eq!(merge(&asked(json!({})), &defaults()), own);
    }

    #[test]
    fn a_request_can_switch_off_each_rule_of_a_tier() {
        let off = asked(json!({
            "temperature": 1, "dynatemp_range": 0, "dynatemp_exponent": 1, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1,
            "top_n_sigma": 0, "xtc_probability": 0, "xtc_threshold": 0.1, "repeat_penalty": 1, "presence_penalty": 0,
            "frequency_penalty": 0, "dry_multiplier": 0, "mirostat": 0,
        }));
        let neutral = Sampling {
            repeat_last_n: Some(77),
            ..Sampling::default()
        };
        assert_eq!(merge(&off, &defaults()), neutral);
    }
}
