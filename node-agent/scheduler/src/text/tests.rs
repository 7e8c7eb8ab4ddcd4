//! Splits, stop strings and broken bytes.

use proptest::prelude::*;

use super::*;

/// The text as it should be: all bytes at once, cut at the stop string that is completed first.
fn expected(bytes: &[u8], stops: &[String]) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let ends = text
        .char_indices()
        .map(|(start, character)| start + character.len_utf8());
    for end in ends {
        let (head, _tail) = text.split_at(end);
        let found = stops
            .iter()
            .filter(|stop| !stop.is_empty() && head.ends_with(stop.as_str()));
        if let Some(length) = found.map(String::len).max() {
            return head.split_at(end - length).0.to_owned();
        }
    }
    text
}

fn assemble(pieces: &[&[u8]], stops: &[String]) -> String {
    let mut assembler = TextAssembler::new(stops.to_vec());
    let mut text = String::new();
    for piece in pieces {
        text.push_str(&assembler.push(piece));
        if assembler.is_stopped() {
            break;
        }
    }
    text.push_str(&assembler.finish());
    assert_eq!(assembler.emitted(), text.len());
    text
}

#[test]
fn an_emoji_in_three_tokens_comes_out_whole() {
    let mut assembler = TextAssembler::new([]);
    let bytes = "\u{1F600}".as_bytes();

    assert_eq!(assembler.push(&bytes[..1]), "");
    assert_eq!(assembler.push(&bytes[1..3]), "");
    assert_eq!(assembler.push(&bytes[3..]), "\u{1F600}");
}

#[test]
fn the_beginning_of_a_stop_string_is_held_until_it_is_clear() {
    let mut assembler = TextAssembler::new(["</end>".to_owned()]);

    assert_eq!(assembler.push(b"a</"), "a");
    assert_eq!(assembler.push(b"en"), "");
    assert_eq!(assembler.push(b"x"), "</enx");
    assert_eq!(assembler.push(b"</end> more"), "");
    assert!(assembler.is_stopped());
    assert_eq!(assembler.push(b"never"), "");
    assert_eq!(assembler.finish(), "");
}

#[test]
fn an_answer_that_ends_in_half_a_character_says_so() {
    let mut assembler = TextAssembler::new([]);

    assert_eq!(assembler.push(&[b'a', 0xF0, 0x9F]), "a");
    assert_eq!(assembler.finish(), "\u{FFFD}");
}

fn stops() -> impl Strategy<Value = Vec<String>> {
    // Few letters, so that stop strings overlap with the text and with each other.
    prop::collection::vec("[abé]{0,4}", 0..4)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let letters = "[abcé\u{1F600}]{0,30}".prop_map(String::into_bytes);
    let broken = prop::collection::vec(
        prop_oneof![
            Just(0xC3_u8),
            Just(0xA9),
            Just(0xF0),
            Just(b'a'),
            any::<u8>()
        ],
        0..20,
    );
    prop_oneof![letters, broken]
}

proptest! {
    #[test]
    fn any_split_gives_the_same_text(bytes in bytes(), stops in stops(), cuts in prop::collection::vec(0_usize..30, 0..8)) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();

        prop_assert_eq!(assemble(&pieces, &stops), expected(&bytes, &stops));
    }

    #[test]
    fn nothing_is_handed_out_that_may_belong_to_a_stop_string(bytes in bytes(), stops in stops()) {
        let want = expected(&bytes, &stops);
        let mut assembler = TextAssembler::new(stops);
        let mut text = String::new();
        for byte in &bytes {
            text.push_str(&assembler.push(std::slice::from_ref(byte)));
            prop_assert!(want.starts_with(&text), "{:?} was handed out, but the answer is {:?}", text, want);
        }
    }
}
