//! Chaos by a printed seed: what homes and networks do, done to a whole town while fifty people talk to it. Every answer that somebody
//! could go on with is byte for byte the unbroken one, nobody takes a broken answer for a whole one, the books say what was
//! delivered, and nothing leaks.

mod acts;
mod books;
mod crowd;
mod dice;
mod everywhere;
mod many;
mod town;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use acts::{Deed, Round};
use books::Verdict;
use crowd::{End, Question, Told};
use dice::Dice;
use tests::client::Client;
use town::Town;

const PEOPLE: usize = 50;
/// Long enough to be broken in the middle.
const TOKENS: u64 = 400;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// A line for whoever watches.
fn say(line: &str) {
    let _closed = writeln!(std::io::stdout(), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half a minute and the whole machine: tests/chaos.sh runs it"]
async fn whatever_homes_do_every_answer_is_whole_or_says_that_it_is_not() {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let by_clock = clock.map_or(1, |since| since.subsec_nanos());
    let seed = setting("HEARTH_CHAOS_SEED", u64::from(by_clock));
    let lasts = Duration::from_secs(setting("HEARTH_CHAOS_SECS", 30));
    say(&format!(
        "chaos: HEARTH_CHAOS_SEED={seed} HEARTH_CHAOS_SECS={}",
        lasts.as_secs()
    ));
    let mut town = Town::built(seed).await;
    let questions: Arc<[Question]> = questions(&town.doors[0]).await.into();
    let before = warm(&mut town, &questions, seed).await;

    let over = Arc::new(AtomicBool::new(false));
    let people: Vec<_> = (0..PEOPLE)
        .map(|number| {
            let doors = town.doors.clone();
            let (questions, over) = (Arc::clone(&questions), Arc::clone(&over));
            tokio::spawn(crowd::person(doors, questions, (number, seed), over))
        })
        .collect();
    let (began, mut dice, mut left) = (Instant::now(), Dice::new(seed), Vec::new());
    let mut deeds: Vec<Deed> = Vec::new();
    while began.elapsed() < lasts {
        let round = Round::drawn(&mut dice, &mut left);
        deeds.extend(round.done(&mut town).await);
    }
    over.store(true, Ordering::Relaxed);
    let mut told: Vec<Told> = Vec::new();
    for person in people {
        told.extend(person.await.expect("a person does not panic"));
    }

    table(&deeds, &told, began);
    let mut verdict = Verdict::default();
    verdict.answers(&told, &deeds, &questions);
    verdict.books(&town, (&told, &deeds), &questions).await;
    verdict.leaks(&mut town, &before).await;
    verdict.said(&mut town).await;
}

/// The answers without chaos; every machine gives the same.
async fn questions(door: &Client) -> Vec<Question> {
    let mut questions = Vec::new();
    for body in crowd::bodies(TOKENS) {
        let told = crowd::ask(door, &body, (0, 0)).await;
        assert_eq!(told.end, End::Whole, "{body}");
        let leads = crowd::leads(door, &body, &told.text).await;
        questions.push(Question {
            body,
            leads,
            answer: told.text,
            tokens: told.tokens.expect("usage was asked for"),
        });
    }
    questions
}

/// The same crowd in calm weather: what everybody holds then is what nobody may hold much more of afterwards.
async fn warm(
    town: &mut Town,
    questions: &Arc<[Question]>,
    seed: u64,
) -> Vec<(String, town::Footprint)> {
    let over = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let people: Vec<_> = (0..PEOPLE)
        .map(|number| {
            let doors = town.doors.clone();
            let (questions, over) = (Arc::clone(questions), Arc::clone(&over));
            tokio::spawn(crowd::person(doors, questions, (number, seed), over))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    over.store(true, Ordering::Relaxed);
    let mut streams = 0;
    for person in people {
        let told = person.await.expect("a person does not panic");
        for told in &told {
            assert_eq!(told.end, End::Whole, "in calm weather: {told:?}");
            let question = &questions[told.question];
            let may_part = books::parts_at_tie(told, question);
            assert!(told.text == question.answer || may_part, "{told:?}");
        }
        streams += told.len();
    }
    say(&format!(
        "calm: {streams} streams in {:.1} s, all whole",
        began.elapsed().as_secs_f64()
    ));
    town.footprints()
}

/// What was done to whom, and what came of it.
fn table(deeds: &[Deed], told: &[Told], began: Instant) {
    say(
        "     at  what                     to       held   back  | streams  whole  moved  error    cut  refused  gap",
    );
    for deed in deeds {
        let during: Vec<&Told> = told
            .iter()
            .filter(|told| told.began < deed.ended && told.ended > deed.began)
            .collect();
        let count = |is: fn(&End) -> bool| during.iter().filter(|told| is(&told.end)).count();
        let moved = during.iter().filter(|told| told.attempts > 1).count();
        let gap = during.iter().filter(|told| told.end == End::Whole);
        let gap = gap.map(|told| told.gap).max().unwrap_or_default();
        say(&format!(
            "{:>6.1}s  {:<24} {:<8} {:>4.1}s {:>5.1}s  | {:>7} {:>6} {:>6} {:>6} {:>6} {:>8} {:>5.1}s",
            (deed.began - began).as_secs_f64(),
            deed.act,
            deed.victim(),
            deed.held.as_secs_f64(),
            deed.back.as_secs_f64(),
            during.len(),
            count(|end| *end == End::Whole),
            moved,
            count(|end| matches!(end, End::Told(_))),
            count(|end| *end == End::Cut),
            count(|end| matches!(end, End::Refused(..) | End::Nobody)),
            gap.as_secs_f64(),
        ));
    }
}
