use proptest::prelude::*;

use super::{Ask, Features, Speaker, Thresholds, Turn, Verdict, classify};
use config::settings::classifier::Weights;
use config::tier::Tier::{self, Fast, Heavy, Primary};
use config::wire::valid::{ValidChat, ValidCompletion};

fn defaults() -> Thresholds {
    Thresholds {
        fast_to: 0.33,
        heavy_from: 0.66,
        weights: Weights::default(),
    }
}

/// Prompts as people write them, with the tier that a reader would choose. Every rule and language has its share.
const CORPUS: &[(Tier, &str)] = &[
    // greetings and small talk
    (Fast, "Hi"),
    (Fast, "Hello there!"),
    (Fast, "hey, how are you?"),
    (Fast, "Thanks a lot"),
    (Fast, "good morning"),
    (Fast, "ok cool"),
    (Fast, "Hallo, wie geht es dir?"),
    (Fast, "Guten Morgen!"),
    (Fast, "¡Hola! ¿Qué tal?"),
    (Fast, "Bonjour, ça va ?"),
    (Fast, "你好"),
    (Fast, "こんにちは"),
    // facts and small transformations
    (Fast, "What is the capital of France?"),
    (Fast, "How many days are in a leap year?"),
    (Fast, "Who wrote Don Quixote?"),
    (Fast, "Translate 'good night' to Italian"),
    (Fast, "Convert 10 miles to kilometres"),
    (Fast, "2+2"),
    (Fast, "Give me a synonym for happy"),
    (Fast, "Spell accommodation"),
    (Fast, "When was the Eiffel Tower built?"),
    (Fast, "Is water wet? yes or no"),
    (Fast, "Tell me a joke"),
    (Fast, "Was ist die Hauptstadt von Portugal?"),
    (Fast, "Übersetze 'Danke' ins Japanische"),
    (Fast, "¿Cuál es la capital de Perú?"),
    (Fast, "Quelle est la capitale du Canada ?"),
    (Fast, "法国的首都是哪里？"),
    (Fast, "日本の首都はどこですか？"),
    (Fast, "Remind me what day comes after Tuesday"),
    // everyday work
    (Primary, "Explain how a refrigerator works"),
    (
        Primary,
        "Write an email to my landlord about the broken heating",
    ),
    (Primary, "Why is the sky blue?"),
    (
        Primary,
        "Write a python script that renames all files in a folder",
    ),
    (Primary, "What is the difference between TCP and UDP?"),
    (Primary, "Write a poem about autumn"),
    (
        Primary,
        "Summarise the plot of Hamlet for a twelve year old",
    ),
    (Primary, "Describe the water cycle and name its four stages"),
    (Primary, "Write a regex that matches an IPv4 address"),
    (Primary, "Solve for x: 3x + 5 = 20, the equation is linear"),
    (Primary, "Erkläre mir, wie ein Dieselmotor funktioniert"),
    (Primary, "Warum ist der Himmel blau?"),
    (
        Primary,
        "Schreibe einen Brief an meinen Vermieter wegen der Heizung",
    ),
    (Primary, "Explica cómo funciona un motor de combustión"),
    (Primary, "Escribe un poema sobre el mar"),
    (Primary, "Explique le fonctionnement d'un réfrigérateur"),
    (
        Primary,
        "Écris une lettre à mon propriétaire au sujet du chauffage",
    ),
    (Primary, "解释一下光合作用"),
    (Primary, "なぜ空は青いのですか？"),
    (Primary, "写一个关于秋天的故事"),
    // several steps of thought
    (
        Heavy,
        "Prove that the square root of 2 is irrational, step by step",
    ),
    (
        Heavy,
        "Analyse the trade-offs between microservices and a monolith for a team of five, in detail",
    ),
    (
        Heavy,
        "Compare three strategies for cache invalidation, evaluate their consistency guarantees and justify which one you would choose",
    ),
    (
        Heavy,
        "Design a distributed rate limiter. Analyse race conditions and prove that it never admits more than the limit",
    ),
    (
        Heavy,
        "Derive the Euler-Lagrange equation and think carefully about the boundary terms",
    ),
    (
        Heavy,
        "Find the root cause of this deadlock and refactor the code:\n```rust\nfn main() {\n    let a = lock(x);\n    let b = lock(y);\n}\n```\nWhy does it hang?",
    ),
    (
        Heavy,
        "Critically evaluate the argument, assess each hypothesis and compare the implications for monetary policy",
    ),
    (
        Heavy,
        "Beweise Schritt für Schritt, dass es unendlich viele Primzahlen gibt",
    ),
    (
        Heavy,
        "Analysiere ausführlich die Vor- und Nachteile der Kernenergie und begründe deine Bewertung",
    ),
    (
        Heavy,
        "Demuestra paso a paso que hay infinitos números primos",
    ),
    (
        Heavy,
        "Analiza en detalle las ventajas y desventajas de la energía nuclear y justifica tu estrategia",
    ),
    (
        Heavy,
        "Démontre étape par étape que racine de 2 est irrationnelle",
    ),
    (
        Heavy,
        "Analyse en détail les avantages de chaque stratégie et justifie ton choix",
    ),
    (Heavy, "请一步一步证明根号2是无理数"),
    (Heavy, "详细分析微服务架构的优缺点并比较不同的策略"),
    (Heavy, "素数が無限に存在することを段階的に証明してください"),
    (
        Heavy,
        "マイクロサービスの利点と欠点を詳しく比較し、戦略を評価してください",
    ),
    (
        Heavy,
        "Evaluate ∫ x² e^x dx and prove that the series ∑ 1/n² converges, show your work",
    ),
];

fn verdict(prompt: &str) -> Verdict {
    let turns = [Turn {
        speaker: Speaker::User,
        text: prompt,
    }];
    let ask = Ask {
        turns: &turns,
        ..Ask::default()
    };
    classify(&Features::of_ask(&ask), defaults())
}

#[test]
fn the_corpus_goes_where_a_reader_would_send_it() {
    let wrong: Vec<String> = CORPUS
        .iter()
        .map(|(tier, prompt)| (tier, prompt, verdict(prompt)))
        .filter(|(tier, _, got)| got.tier != **tier)
        .map(|(tier, prompt, got)| {
            format!(
                "{prompt:?}: want {tier}, got {} {:.2} {:?}",
                got.tier, got.score, got.reasons
            )
        })
        .collect();
    assert!(CORPUS.len() >= 60, "the corpus stays broad");
    assert!(wrong.is_empty(), "{}\n", wrong.join("\n"));
}

#[test]
fn a_greeting_with_work_is_work() {
    let got = verdict("Hello! Prove that there are infinitely many primes, step by step");
    assert_eq!(got.tier, Heavy, "{got:?}");
}

#[test]
fn reasons_name_the_rules_strongest_first() {
    let got = verdict("Prove the theorem");
    assert_eq!(got.why(), "reasoning,maths", "{got:?}");
}

#[test]
fn a_wish_for_little_lowers_and_a_wish_for_care_raises_the_score() {
    let plain = verdict("Compare Rust and Go").score;
    let brief = verdict("Compare Rust and Go, briefly").score;
    let careful = verdict("Compare Rust and Go, in depth").score;
    assert!(
        brief < plain && plain < careful,
        "{brief} {plain} {careful}"
    );
}

#[test]
fn only_what_was_said_last_is_read_for_words() {
    let turns = [
        turn(
            Speaker::System,
            "You prove theorems step by step and analyse everything in detail.",
        ),
        turn(Speaker::User, "Prove Fermat's little theorem in depth"),
        turn(Speaker::Assistant, "..."),
        turn(Speaker::User, "thanks"),
    ];
    let ask = Ask {
        turns: &turns,
        ..Ask::default()
    };
    assert_eq!(classify(&Features::of_ask(&ask), defaults()).tier, Fast);
}

#[test]
fn a_tool_result_or_a_prefill_at_the_end_hides_nothing() {
    let asked = turn(
        Speaker::User,
        "Compare both strategies and justify your choice, step by step",
    );
    let called = turn(Speaker::Assistant, "");
    let result = turn(Speaker::Tool, "{}");
    for turns in [vec![asked, called, result], vec![asked, called]] {
        let ask = Ask {
            turns: &turns,
            ..Ask::default()
        };
        assert_eq!(classify(&Features::of_ask(&ask), defaults()).tier, Heavy);
    }
}

#[test]
fn a_checked_request_shows_its_texts_and_wishes() {
    let body = serde_json::json!({
        "model": "auto",
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [
                {"type": "text", "text": "Prove it"},
                {"type": "text", "text": "in detail"},
            ]},
        ],
        "response_format": {"type": "json_object"},
        "reasoning_effort": "high",
        "max_tokens": 64,
    });
    let chat = ValidChat::parse(body.to_string().as_bytes()).expect("a valid request");
    let features = Features::of(&chat);
    assert_eq!(
        (features.reason, features.thorough, features.user_turns),
        (1, 1, 1)
    );
    assert!(features.schema && features.effort_high);
    assert_eq!(features.max_tokens, Some(64));

    let body = serde_json::json!({"model": "auto", "prompt": "def fibonacci(n):"});
    let completion = ValidCompletion::parse(body.to_string().as_bytes()).expect("valid");
    assert_eq!(Features::of_completion(&completion).code, 1);
}

#[test]
fn the_parts_of_one_message_count_as_one_turn() {
    let turns = [
        turn(Speaker::User, "Compare these,"),
        turn(Speaker::User, "in detail"),
    ];
    let ask = Ask {
        turns: &turns,
        ..Ask::default()
    };
    let features = Features::of_ask(&ask);
    assert_eq!(
        (features.user_turns, features.reason, features.thorough),
        (1, 1, 1)
    );
}

#[test]
fn tools_schema_and_images_lift_a_short_request_to_the_everyday_model() {
    let turns = [turn(Speaker::User, "What's the weather in Oslo?")];
    let base = Ask {
        turns: &turns,
        ..Ask::default()
    };
    let tier = |ask: &Ask<'_>| classify(&Features::of_ask(ask), defaults()).tier;
    assert_eq!(tier(&base), Fast);
    assert_eq!(tier(&Ask { tools: 2, ..base }), Primary);
    assert_eq!(
        tier(&Ask {
            schema: true,
            ..base
        }),
        Primary
    );
    assert_eq!(tier(&Ask { media: 1, ..base }), Primary);
    assert_eq!(
        tier(&Ask {
            effort_high: true,
            tools: 1,
            ..base
        }),
        Heavy
    );
}

#[test]
fn thresholds_come_from_the_settings() {
    let turns = [turn(Speaker::User, "Explain how a refrigerator works")];
    let features = Features::of_ask(&Ask {
        turns: &turns,
        ..Ask::default()
    });
    let all_heavy = Thresholds {
        fast_to: 0.0,
        heavy_from: 0.1,
        ..defaults()
    };
    let all_fast = Thresholds {
        fast_to: 0.99,
        heavy_from: 1.01,
        ..defaults()
    };
    assert_eq!(classify(&features, all_heavy).tier, Heavy);
    assert_eq!(classify(&features, all_fast).tier, Fast);
}

#[test]
fn a_long_message_is_read_at_both_ends_only() {
    let filler = "lorem ipsum dolor sit amet ".repeat(20_000);
    let text = format!("Analyse this text:\n{filler}\nAnswer in one word.");
    let features = features_of(&text);
    assert_eq!(
        (features.reason, features.brief),
        (1, 1),
        "head and tail are read"
    );
    assert!(
        features.words < 3_000,
        "the middle is not: {}",
        features.words
    );
    assert_eq!(features.bytes, text.len(), "but its length counts");
}

#[test]
fn words_match_whole_words_and_marked_stems() {
    assert_eq!(features_of("optimization").reason, 1);
    assert_eq!(
        features_of("improve").reason,
        0,
        "`prove` within a word is not it"
    );
    assert_eq!(features_of("classy defenders").code, 0);
    assert_eq!(
        features_of("ÉTAPE PAR ÉTAPE").thorough,
        1,
        "case of accented letters does not matter"
    );
}

fn turn(speaker: Speaker, text: &str) -> Turn<'_> {
    Turn { speaker, text }
}

fn features_of(text: &str) -> Features {
    let turns = [turn(Speaker::User, text)];
    Features::of_ask(&Ask {
        turns: &turns,
        ..Ask::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_has_a_verdict_within_bounds(text in "\\PC{0,400}", tools in 0_usize..200, media in 0_usize..50) {
        let turns = [turn(Speaker::User, &text), turn(Speaker::Assistant, &text), turn(Speaker::User, &text)];
        let ask = Ask { turns: &turns, tools, media, ..Ask::default() };
        let got = classify(&Features::of_ask(&ask), defaults());
        prop_assert!((0.0..=1.0).contains(&got.score));
        prop_assert!(!got.reasons.is_empty());
    }

    #[test]
    fn any_cut_of_mixed_scripts_is_read_without_panic(parts in proptest::collection::vec(prop_oneof![
        Just("证明"), Just("É"), Just("¿"), Just("²"), Just("ステ"), Just("étape par"), Just("```"), Just("∑"), Just("\u{1F600}"), Just("a"), Just(" "), Just("\n- "),
    ], 0..400)) {
        let text = parts.concat();
        let features = features_of(&text);
        prop_assert_eq!(features.bytes, text.len());
    }
}
