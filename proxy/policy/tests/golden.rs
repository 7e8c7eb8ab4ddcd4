//! How often the classifier agrees with a reader, per class, category and language, beside a peer that only looks at the length.
//! `cargo test -p policy --test golden -- --nocapture` prints the figures.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use config::settings::classifier::Weights;
use config::tier::Tier;
use policy::classify::{Ask, Category, Features, Speaker, Thresholds, Turn, Verdict, classify};

const GOLDEN: &str = include_str!("golden.txt");
/// Below these a change has made the classifier worse. Per cent of the classes.
const FLOOR_TUNED: usize = 90;
const FLOOR_HELD_OUT: usize = 80;
const FLOOR_LANGUAGE: usize = 80;
/// Per cent of the categories, of all prompts.
const FLOOR_CATEGORY: usize = 80;

struct Case {
    language: &'static str,
    class: Tier,
    category: &'static str,
    text: String,
    is_held_out: bool,
}

fn cases() -> Vec<Case> {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    let prompts = GOLDEN.lines().filter(|line| !line.starts_with('#'));
    let read = |line: &'static str| {
        let mut columns = line.splitn(4, ' ');
        let mut next = || {
            columns
                .next()
                .unwrap_or_else(|| panic!("too short: {line}"))
        };
        let language = next();
        let seen = lines.entry(language).or_default();
        *seen += 1;
        Case {
            language,
            class: next()
                .parse()
                .unwrap_or_else(|_| panic!("no class: {line}")),
            category: next(),
            text: next().replace("\\n", "\n"),
            is_held_out: seen.is_multiple_of(3),
        }
    };
    prompts.map(read).collect()
}

fn verdict(text: &str) -> Verdict {
    let turns = [Turn {
        speaker: Speaker::User,
        text,
    }];
    let features = Features::of_ask(&Ask {
        turns: &turns,
        ..Ask::default()
    });
    let thresholds = Thresholds {
        fast_to: 0.33,
        heavy_from: 0.66,
        weights: Weights::default(),
    };
    classify(&features, thresholds)
}

/// The peer: nothing but characters, with the two bounds that fit the tuned part best.
struct LengthOnly {
    fast_to: usize,
    heavy_from: usize,
}

impl LengthOnly {
    fn fitted(cases: &[Case]) -> Self {
        let bounds = || (0..=40).map(|step| step * 5);
        let pairs =
            bounds().flat_map(|fast_to| bounds().map(move |more| (fast_to, fast_to + more)));
        let peers = pairs.map(|(fast_to, heavy_from)| Self {
            fast_to,
            heavy_from,
        });
        peers
            .max_by_key(|peer| {
                let tuned = cases.iter().filter(|case| !case.is_held_out);
                tuned
                    .filter(|case| peer.class(&case.text) == case.class)
                    .count()
            })
            .expect("there are bounds")
    }

    fn class(&self, text: &str) -> Tier {
        match text.chars().count() {
            length if length <= self.fast_to => Tier::Fast,
            length if length >= self.heavy_from => Tier::Heavy,
            _ => Tier::Primary,
        }
    }
}

#[derive(Default)]
struct Share {
    right: usize,
    all: usize,
}

impl Share {
    fn add(&mut self, is_right: bool) {
        self.right += usize::from(is_right);
        self.all += 1;
    }

    fn percent(&self) -> usize {
        self.right * 100 / self.all.max(1)
    }
}

/// The shares of everything that is printed, by what they are about.
fn shares(cases: &[Case]) -> BTreeMap<String, Share> {
    let peer = LengthOnly::fitted(cases);
    let mut shares: BTreeMap<String, Share> = BTreeMap::new();
    for case in cases {
        let got = verdict(&case.text);
        let is_right = got.tier == case.class;
        let names_work = got.category.as_str() == case.category;
        let part = if case.is_held_out {
            "held out"
        } else {
            "tuned"
        };
        for name in [
            part.to_owned(),
            format!("class {}", case.class),
            format!("language {}", case.language),
        ] {
            shares.entry(name).or_default().add(is_right);
        }
        for name in [
            "category".to_owned(),
            format!("category {part}"),
            format!("category {}", case.category),
        ] {
            shares.entry(name).or_default().add(names_work);
        }
        let guess = peer.class(&case.text);
        let peer = shares.entry(format!("length only {part}")).or_default();
        peer.add(guess == case.class);
    }
    shares
}

fn wrong(cases: &[Case]) -> String {
    let mut out = String::new();
    for case in cases.iter().filter(|case| !case.is_held_out) {
        let got = verdict(&case.text);
        if got.tier != case.class || got.category.as_str() != case.category {
            let short: String = case.text.chars().take(70).collect();
            let (class, category) = (case.class, case.category);
            let (tier, kind, score, why) = (got.tier, got.category.as_str(), got.score, got.why());
            writeln!(
                out,
                "{class} {category}, got {tier} {kind} {score:.2} ({why}): {short}"
            )
            .expect("a string");
        }
    }
    out
}

#[test]
fn the_classifier_agrees_with_a_reader() {
    let cases = cases();
    let shares = shares(&cases);
    let mut table = String::new();
    for (name, share) in &shares {
        let (percent, right, all) = (share.percent(), share.right, share.all);
        writeln!(table, "{name:24} {percent:3} %  {right}/{all}").expect("a string");
    }
    if std::env::var_os("GOLDEN_WRONG").is_some() {
        table += &wrong(&cases);
    }
    std::io::Write::write_all(&mut std::io::stderr(), table.as_bytes()).expect("stderr takes it");
    let percent = |name: &str| shares.get(name).map_or(0, Share::percent);
    assert!(cases.len() >= 300, "{} prompts", cases.len());
    assert!(percent("tuned") >= FLOOR_TUNED);
    assert!(percent("held out") >= FLOOR_HELD_OUT);
    assert!(percent("held out") > percent("length only held out") + 20);
    assert!(percent("category") >= FLOOR_CATEGORY);
    for (name, share) in shares
        .iter()
        .filter(|(name, _)| name.starts_with("language "))
    {
        assert!(
            share.percent() >= FLOOR_LANGUAGE,
            "{name} {}",
            share.percent()
        );
    }
}

#[test]
fn every_language_has_every_class_and_category() {
    let cases = cases();
    for language in ["en", "de", "es", "fr", "zh", "ja"] {
        let ours = || cases.iter().filter(|case| case.language == language);
        assert!(ours().count() >= 50, "{language}");
        for tier in Tier::ALL {
            assert!(ours().any(|case| case.class == tier), "{language} {tier}");
        }
        for category in Category::ALL {
            let wanted = category.as_str();
            assert!(
                ours().any(|case| case.category == wanted),
                "{language} {wanted}"
            );
        }
    }
}
