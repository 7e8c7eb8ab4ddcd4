//! What of a long conversation is left out when its sender allows it: whole turns, the oldest first. Instructions stay, the last turn
//! stays, and a call of a tool stays with its result or goes with it. Pure; whether something must be left out is decided elsewhere.

use config::wire::chat::{Message, Role};

/// The messages without the `turns` oldest turns, and how many messages are missing. The last turn is never left out.
pub fn without_oldest(messages: &[Message], turns: usize) -> (Vec<Message>, usize) {
    let all = count(messages);
    let turns = turns.min(all.saturating_sub(1));
    let mut turn = 0;
    let mut kept = Vec::with_capacity(messages.len());
    for (at, message) in messages.iter().enumerate() {
        turn += usize::from(begins(messages, at));
        // Instructions belong to no turn.
        if message.role == Role::System || turn > turns {
            kept.push(message.clone());
        }
    }
    let missing = messages.len() - kept.len();
    (kept, missing)
}

/// How many turns there are.
pub fn count(messages: &[Message]) -> usize {
    (0..messages.len())
        .filter(|at| begins(messages, *at))
        .count()
}

/// The turns to leave out so that about `excess` of `total` tokens go; at least one.
pub fn turns_for(messages: &[Message], excess: usize, total: usize) -> usize {
    let bytes: usize = messages.iter().map(|message| message.text().len()).sum();
    let wanted = bytes.saturating_mul(excess) / total.max(1);
    let (mut turns, mut gone) = (0, 0);
    for (at, message) in messages.iter().enumerate() {
        if begins(messages, at) {
            if turns > 0 && gone >= wanted {
                break;
            }
            turns += 1;
        }
        if message.role != Role::System {
            gone += message.text().len();
        }
    }
    turns.max(1)
}

/// A turn begins where the user speaks after somebody else did, and where the conversation itself begins.
fn begins(messages: &[Message], at: usize) -> bool {
    let spoken = |message: &&Message| message.role != Role::System;
    let Some(message) = messages.get(at).filter(spoken) else {
        return false;
    };
    let before = messages
        .get(..at)
        .unwrap_or_default()
        .iter()
        .rev()
        .find(spoken);
    match before {
        None => true,
        Some(before) => message.role == Role::User && before.role != Role::User,
    }
}

#[cfg(test)]
mod tests {
    use config::wire::chat::Content;

    use super::*;

    fn talk(roles: &[Role]) -> Vec<Message> {
        let messages = roles.iter().enumerate().map(|(at, role)| Message {
            role: *role,
            content: Some(Content::Text(format!("{at:04}"))),
            name: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            reasoning_content: None,
        });
        messages.collect()
    }

    const LONG: [Role; 9] = [
        Role::System,
        Role::User,
        Role::Assistant,
        Role::Tool,
        Role::Assistant,
        Role::User,
        Role::User,
        Role::Assistant,
        Role::User,
    ];

    #[test]
    fn whole_turns_go_and_instructions_and_the_last_turn_stay() {
        let messages = talk(&LONG);
        assert_eq!(count(&messages), 3);
        for (turns, left) in [
            (0, vec![0, 1, 2, 3, 4, 5, 6, 7, 8]),
            (1, vec![0, 5, 6, 7, 8]),
            (2, vec![0, 8]),
            (9, vec![0, 8]),
        ] {
            let (kept, missing) = without_oldest(&messages, turns);
            let texts: Vec<String> = kept.iter().map(Message::text).collect();
            let want: Vec<String> = left.iter().map(|at| format!("{at:04}")).collect();
            assert_eq!(texts, want);
            assert_eq!(missing, 9 - left.len());
        }
    }

    #[test]
    fn as_many_turns_go_as_hold_the_excess() {
        let messages = talk(&LONG);
        assert_eq!(turns_for(&messages, 1, 100), 1);
        assert_eq!(turns_for(&messages, 50, 100), 2);
        assert_eq!(turns_for(&messages, 100, 100), 3);
    }
}
