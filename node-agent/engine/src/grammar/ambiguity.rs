//! Refuses repetitions of something that may be empty, such as `(("a"?){40}){40}`, and rules that begin with themselves.
//!
//! llama.cpp follows all ways through a grammar at once. Where an empty item is repeated, their number explodes, and one
//! token takes longer than anybody waits.

use std::collections::HashSet;

use super::syntax;
use super::syntax::Alternatives;
use super::syntax::Rule;
use super::syntax::What;
use super::syntax::is_empty;
use super::syntax::may_be_empty;

/// Says where something can be followed in endless ways, if it can.
pub(super) fn check(text: &str, rules: &[Rule]) -> Result<(), String> {
    let mut empty = HashSet::new();
    loop {
        let before = empty.len();
        for rule in rules {
            if may_be_empty(&rule.alternatives, &empty) {
                empty.insert(rule.name.as_str());
            }
        }
        if empty.len() == before {
            break;
        }
    }
    if let Some(rule) = syntax::left_recursion(rules, &empty) {
        let reason = format!("rule {} begins with itself, so it never ends", rule.name);
        return Err(syntax::at(text, rule.place, &reason));
    }
    for rule in rules {
        if repeats_empty(&rule.alternatives, &empty) {
            let reason = format!("rule {} repeats something that may be empty", rule.name);
            return Err(syntax::at(text, rule.place, &reason));
        }
    }
    Ok(())
}

fn repeats_empty(alternatives: &Alternatives, empty: &HashSet<&str>) -> bool {
    alternatives.iter().flatten().any(|item| {
        let inside = match &item.what {
            What::Group(alternatives) => repeats_empty(alternatives, empty),
            What::Empty | What::Solid | What::Rule(..) => false,
        };
        inside || (item.repeated && is_empty(&item.what, empty))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<(), String> {
        check(text, &syntax::read(text)?)
    }

    #[test]
    fn repetitions_of_nothing_are_found() {
        for bad in [
            "root ::= ((\"a\"?){40}){40} \"b\"",
            "root ::= ([a-z]* [a-z]*)*",
            "root ::= (\"\" | \"a\")+",
            "root ::= x{2,}\nx ::= y # here\ny ::= \"a\"* | \"b\"",
            "root ::= (<think>? !<[7]>{0,3})*",
        ] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ordinary_grammars_pass() {
        for good in [
            "root ::= \"yes\" | \"no\"",
            "root ::= (\"a\"? \"b\")* [x\\]]{0,20}",
            "root ::= ([a-z]*)? x{1}\nx ::= \"\"",
            "root ::= \"[\" ws ( item (\",\" ws item)* )? \"]\"\nws ::= | \" \" | \"\\n\"{1,2} [ \\t]{0,20}\nitem ::= [0-9]+",
        ] {
            assert_eq!(checked(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn rules_that_begin_with_themselves_are_found() {
        for bad in [
            "root ::= root \"a\" | \"b\"",
            "root ::= x\nx ::= \"\" y\ny ::= (x | \"b\")",
        ] {
            let said = checked(bad).expect_err(bad);
            assert!(said.contains("begins with itself"), "{said}");
        }
        assert_eq!(checked("root ::= \"a\" root | \"b\""), Ok(()));
    }
}
