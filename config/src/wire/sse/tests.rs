//! Stories of event streams.

use proptest::prelude::*;

use super::*;

fn decode(bytes: &[u8], cuts: &[usize]) -> Vec<Event> {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    let mut from = 0;
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    for cut in cuts {
        decoder
            .push(&bytes[from..cut], &mut events)
            .expect("small enough");
        from = cut;
    }
    events
}

fn data(text: &str) -> Event {
    Event {
        data: text.to_owned(),
        ..Event::default()
    }
}

#[test]
fn every_form_of_line_end_bom_comment_and_colon_is_read() {
    let cases: [(&str, Vec<Event>); 11] = [
        ("data: a\n\n", vec![data("a")]),
        ("data:a\r\n\r\n", vec![data("a")]),
        ("data: a\r\r", vec![data("a")]),
        ("\u{feff}data: a\n\n", vec![data("a")]),
        (": keep-alive\n\ndata: a\n\n", vec![data("a")]),
        ("data: a\ndata: b\n\n", vec![data("a\nb")]),
        ("data:  a\n\n", vec![data(" a")]),
        ("data\n\n", vec![data("")]),
        ("id: 1\nretry: 5\n\n", vec![]),
        ("data: cut", vec![]),
        (
            "event: error\ndata: x\n\ndata: [DONE]\n\n",
            vec![
                Event {
                    name: Some("error".to_owned()),
                    data: "x".to_owned(),
                    ..Event::default()
                },
                data("[DONE]"),
            ],
        ),
    ];
    for (text, want) in cases {
        assert_eq!(decode(text.as_bytes(), &[]), want, "{text:?}");
    }
}

#[test]
fn tokens_named_in_comments_belong_to_the_next_event() {
    let mut bytes = Vec::new();
    write_tokens(&mut bytes, &[12, 7]);
    bytes.extend_from_slice(KEEP_ALIVE);
    write_tokens(&mut bytes, &[]);
    write_tokens(&mut bytes, &[9]);
    write_data(&mut bytes, "a");
    write_data(&mut bytes, "b");
    bytes.extend_from_slice(b": tokens x,,-1,99999999999\n");
    write_data(&mut bytes, "c");
    let found: Vec<Vec<i32>> = decode(&bytes, &[3, 8])
        .into_iter()
        .map(|event| event.tokens)
        .collect();
    assert_eq!(found, [vec![12, 7, 9], vec![], vec![-1]]);
}

#[test]
fn event_name_does_not_leak_into_the_next_event() {
    let events = decode(b"event: ping\n\ndata: a\n\n", &[]);
    assert_eq!(events, vec![data("a")]);
}

#[test]
fn an_event_past_the_bound_fails_and_stays_failed() {
    let mut decoder = Decoder::new(16);
    let mut events = Vec::new();
    decoder
        .push(b"data: 0123456789\n", &mut events)
        .expect("fits");
    assert!(decoder.push(b"data: 0123456789\n", &mut events).is_err());
    assert!(decoder.push(b"\n\n", &mut events).is_err());
    assert!(events.is_empty());
}

#[test]
fn many_small_events_do_not_add_up_to_the_bound() {
    let mut decoder = Decoder::new(32);
    let mut events = Vec::new();
    for _ in 0..100 {
        decoder
            .push(b"data: 0123456789\n\n", &mut events)
            .expect("fits");
    }
    assert_eq!(events.len(), 100);
}

#[test]
fn a_cut_stream_is_noticed() {
    let mut decoder = Decoder::default();
    let mut events = Vec::new();
    decoder.push(b"data: a\n\n", &mut events).expect("fits");
    assert!(!decoder.is_mid_event());
    decoder.push(b"data: b\n", &mut events).expect("fits");
    assert!(decoder.is_mid_event(), "the empty line is missing");
}

#[test]
fn json_is_written_on_one_line() {
    let mut out = Vec::new();
    write_json(&mut out, &serde_json::json!({"a": "x\ny"})).expect("serialises");
    assert_eq!(out, b"data: {\"a\":\"x\\ny\"}\n\n");
}

fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("data: ".to_owned()),
        Just("data:".to_owned()),
        Just("event: ".to_owned()),
        Just("\n".to_owned()),
        Just("\r".to_owned()),
        Just("\r\n".to_owned()),
        Just("\n\n".to_owned()),
        Just(": note\n".to_owned()),
        Just("\u{feff}".to_owned()),
        "[a-zé€ ]{0,4}",
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn any_split_gives_the_same_events(bytes in stream(), cuts in prop::collection::vec(any::<usize>(), 0..12)) {
        prop_assert_eq!(decode(&bytes, &cuts), decode(&bytes, &[]));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..256), cuts in prop::collection::vec(any::<usize>(), 0..6)) {
        decode(&bytes, &cuts);
    }

    #[test]
    fn what_is_written_is_read_back(text in "[^\r]{0,60}") {
        let mut out = Vec::new();
        write_data(&mut out, &text);
        prop_assert_eq!(decode(&out, &[]), vec![data(&text)]);
    }
}
