//! Reads llama.cpp's grammar notation, to say at which line and column a grammar is wrong.
//!
//! It accepts what llama.cpp's own parser accepts. It recurses once per bracket, whose depth must be known to be small.

use std::collections::HashMap;
use std::collections::HashSet;

/// What a rule or a group may be: sequences of items.
pub(super) type Alternatives = Vec<Vec<Item>>;

/// The most times that llama.cpp repeats an item; a higher upper limit means none.
const REPEATS_MAX: u64 = 2_000;

/// A part of a sequence.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) what: What,
    /// It may be left out.
    pub(super) optional: bool,
    /// It may stand more than once.
    pub(super) repeated: bool,
}

/// What a part is.
#[derive(Debug)]
pub(super) enum What {
    /// The empty text.
    Empty,
    /// At least one character or token.
    Solid,
    /// A rule by its name, and where it is named.
    Rule(String, usize),
    /// A group in brackets.
    Group(Alternatives),
}

/// A rule of a grammar.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: String,
    /// Where it is defined, in bytes.
    pub(super) place: usize,
    pub(super) alternatives: Alternatives,
}

/// Something wrong at a place, in bytes.
struct Fault {
    place: usize,
    reason: String,
}

/// Reads a whole grammar, or says with line and column what is wrong.
pub(super) fn read(text: &str) -> Result<Vec<Rule>, String> {
    let mut reader = Reader { text, place: 0 };
    let read = reader.rules().and_then(|rules| {
        check_names(&rules)?;
        Ok(rules)
    });
    read.map_err(|fault| at(text, fault.place, &fault.reason))
}

/// Puts the line and the column, in characters, before what is wrong there.
pub(super) fn at(text: &str, place: usize, reason: &str) -> String {
    let before = text.get(..place).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let column = before.get(start..).unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}: {reason}")
}

fn fault<T>(place: usize, reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault {
        place,
        reason: reason.into(),
    })
}

/// Every rule that is named exists, `root` among them.
fn check_names(rules: &[Rule]) -> Result<(), Fault> {
    let known: HashSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    for rule in rules {
        check_named(&rule.alternatives, &known)?;
    }
    if known.contains("root") {
        return Ok(());
    }
    fault(0, "no rule is named root, where every answer begins")
}

fn check_named(alternatives: &Alternatives, known: &HashSet<&str>) -> Result<(), Fault> {
    for item in alternatives.iter().flatten() {
        match &item.what {
            What::Rule(name, place) if !known.contains(name.as_str()) => {
                return fault(*place, format!("no rule is named {name}"));
            }
            What::Group(inside) => check_named(inside, known)?,
            What::Empty | What::Solid | What::Rule(..) => {}
        }
    }
    Ok(())
}

/// The first rule that begins with itself, if there is one.
pub(super) fn left_recursion<'rules>(
    rules: &'rules [Rule],
    empty: &HashSet<&str>,
) -> Option<&'rules Rule> {
    let mut begins: HashMap<&str, Vec<&str>> = HashMap::new();
    for rule in rules {
        let mut found = Vec::new();
        first_rules(&rule.alternatives, empty, &mut found);
        begins.insert(&rule.name, found);
    }
    rules.iter().find(|rule| {
        let mut seen = HashSet::new();
        let mut next = begins.get(rule.name.as_str()).cloned().unwrap_or_default();
        while let Some(name) = next.pop() {
            if name == rule.name {
                return true;
            }
            if seen.insert(name) {
                next.extend(begins.get(name).into_iter().flatten());
            }
        }
        false
    })
}

/// The rules that alternatives may begin with.
fn first_rules<'rules>(
    alternatives: &'rules Alternatives,
    empty: &HashSet<&str>,
    found: &mut Vec<&'rules str>,
) {
    for items in alternatives {
        for item in items {
            match &item.what {
                What::Rule(name, _place) => found.push(name),
                What::Group(inside) => first_rules(inside, empty, found),
                What::Empty | What::Solid => {}
            }
            if !item.optional && !is_empty(&item.what, empty) {
                break;
            }
        }
    }
}

/// Whether something may be the empty text, when these rules may.
pub(super) fn is_empty(what: &What, empty: &HashSet<&str>) -> bool {
    match what {
        What::Empty => true,
        What::Solid => false,
        What::Rule(name, _place) => empty.contains(name.as_str()),
        What::Group(alternatives) => may_be_empty(alternatives, empty),
    }
}

/// Whether one of these alternatives may be the empty text.
pub(super) fn may_be_empty(alternatives: &Alternatives, empty: &HashSet<&str>) -> bool {
    alternatives.iter().any(|items| {
        items
            .iter()
            .all(|item| item.optional || is_empty(&item.what, empty))
    })
}

struct Reader<'text> {
    text: &'text str,
    place: usize,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.place..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.place += character.len_utf8();
        Some(character)
    }

    fn take(&mut self, what: &str) -> bool {
        let found = self.rest().starts_with(what);
        self.place += if found { what.len() } else { 0 };
        found
    }

    /// Skips spaces and comments, and line ends where they mean nothing.
    fn space(&mut self, line_ends: bool) {
        while let Some(character) = self.peek() {
            match character {
                ' ' | '\t' => self.place += 1,
                '\r' | '\n' if line_ends => self.place += 1,
                '#' => {
                    let comment = self.rest().find(['\r', '\n']);
                    self.place += comment.unwrap_or(self.rest().len());
                }
                _other => return,
            }
        }
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let start = self.place;
        let rest = self.rest();
        let length = rest.find(|character| !wanted(character));
        self.place += length.unwrap_or(rest.len());
        self.text.get(start..self.place).unwrap_or_default()
    }

    fn name(&mut self) -> &str {
        self.take_while(is_of_name)
    }

    fn rules(&mut self) -> Result<Vec<Rule>, Fault> {
        let mut rules = Vec::new();
        self.space(true);
        while self.peek().is_some() {
            rules.push(self.rule()?);
            self.space(true);
        }
        Ok(rules)
    }

    fn rule(&mut self) -> Result<Rule, Fault> {
        let place = self.place;
        let name = self.name().to_owned();
        if name.is_empty() {
            return fault(
                place,
                "a rule begins with its name: letters, digits and hyphens",
            );
        }
        self.space(false);
        if !self.take("::=") {
            return fault(self.place, format!("::= must follow the name {name}"));
        }
        self.space(true);
        let alternatives = self.alternatives(false)?;
        match self.peek() {
            None | Some('\r' | '\n') => Ok(Rule {
                name,
                place,
                alternatives,
            }),
            Some(other) => fault(
                self.place,
                format!("{other:?} cannot stand here; a rule ends with its line"),
            ),
        }
    }

    fn alternatives(&mut self, nested: bool) -> Result<Alternatives, Fault> {
        let mut all = vec![self.sequence(nested)?];
        while self.take("|") {
            self.space(true);
            all.push(self.sequence(nested)?);
        }
        Ok(all)
    }

    fn sequence(&mut self, nested: bool) -> Result<Vec<Item>, Fault> {
        let mut items: Vec<Item> = Vec::new();
        while let Some(character) = self.peek() {
            let place = self.place;
            if matches!(character, '*' | '+' | '?' | '{') {
                let (optional, repeated) = self.repetition(nested)?;
                let Some(last) = items.last_mut() else {
                    return fault(place, format!("nothing stands before {character:?}"));
                };
                last.optional |= optional;
                last.repeated |= repeated;
            } else if let Some(what) = self.item(character)? {
                items.push(Item {
                    what,
                    optional: false,
                    repeated: false,
                });
            } else {
                break;
            }
            self.space(nested);
        }
        Ok(items)
    }

    /// One item; `None` if none begins here.
    fn item(&mut self, first: char) -> Result<Option<What>, Fault> {
        let place = self.place;
        let what = match first {
            '"' => {
                self.place += 1;
                match self.quoted('"', place)? {
                    0 => What::Empty,
                    _characters => What::Solid,
                }
            }
            '[' => {
                self.place += 1;
                self.take("^");
                self.quoted(']', place)?;
                What::Solid
            }
            '.' => {
                self.place += 1;
                What::Solid
            }
            '<' | '!' => {
                self.token()?;
                What::Solid
            }
            '(' => {
                self.place += 1;
                self.space(true);
                let inside = self.alternatives(true)?;
                if !self.take(")") {
                    return fault(place, "this bracket is never closed");
                }
                What::Group(inside)
            }
            letter if is_of_name(letter) => What::Rule(self.name().to_owned(), place),
            _other => return Ok(None),
        };
        Ok(Some(what))
    }

    /// Reads on to the closing quote or bracket; says how many characters stand before it.
    fn quoted(&mut self, end: char, opened: usize) -> Result<usize, Fault> {
        let mut characters = 0;
        loop {
            let place = self.place;
            match self.next() {
                None => return fault(opened, format!("this is never closed with {end:?}")),
                Some(character) if character == end => return Ok(characters),
                Some('\\') => self.escape(place)?,
                Some(_plain) => {}
            }
            characters += 1;
        }
    }

    fn escape(&mut self, place: usize) -> Result<(), Fault> {
        let digits = match self.next() {
            Some('t' | 'r' | 'n' | '\\' | '"' | '[' | ']' | '-') => return Ok(()),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(other) => return fault(place, format!("\\{other} is no escape")),
            None => return fault(place, "nothing follows the backslash"),
        };
        for _digit in 0..digits {
            if !self.next().is_some_and(|digit| digit.is_ascii_hexdigit()) {
                return fault(place, format!("{digits} hexadecimal digits must follow"));
            }
        }
        Ok(())
    }

    /// `<name>`, `<[number]>`, and either with a `!` before it.
    fn token(&mut self) -> Result<(), Fault> {
        let place = self.place;
        self.take("!");
        if !self.take("<") {
            return fault(place, "a token such as <[42]> must follow the !");
        }
        if self.take("[") {
            let number = self.take_while(|c| c.is_ascii_digit());
            if number.parse::<u32>().is_err() || !self.take("]>") {
                return fault(place, "the number of a token is written <[42]>");
            }
            return Ok(());
        }
        self.take_while(|character| character != '>');
        if !self.take(">") {
            return fault(place, "this token is never closed with >");
        }
        Ok(())
    }

    /// `*`, `+`, `?`, `{m}`, `{m,}` or `{m,n}`: whether the item may be left out, and whether it may stand more than once.
    fn repetition(&mut self, nested: bool) -> Result<(bool, bool), Fault> {
        let place = self.place;
        match self.next() {
            Some('*') => return Ok((true, true)),
            Some('+') => return Ok((false, true)),
            Some('?') => return Ok((true, false)),
            _brace => {}
        }
        self.space(nested);
        let least = self.count(place)?;
        self.space(nested);
        let mut most = Some(least);
        if self.take(",") {
            self.space(nested);
            let open = !self.peek().is_some_and(|digit| digit.is_ascii_digit());
            most = if open { None } else { Some(self.count(place)?) };
            self.space(nested);
        }
        if !self.take("}") {
            return fault(place, "a repetition is written {2}, {2,} or {2,5}");
        }
        if least > REPEATS_MAX {
            return fault(place, format!("{least} times; at most {REPEATS_MAX}"));
        }
        if most.is_some_and(|most| most < least) {
            return fault(place, "the upper limit is below the lower one");
        }
        Ok((least == 0, most.is_none_or(|most| most > 1)))
    }

    fn count(&mut self, place: usize) -> Result<u64, Fault> {
        let digits = self.take_while(|digit| digit.is_ascii_digit());
        match digits.parse() {
            Ok(count) => Ok(count),
            Err(_none) => fault(place, "a repetition is written {2}, {2,} or {2,5}"),
        }
    }
}

const fn is_of_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let cases = [
            ("root ::= \"a", "line 1, column 10: this is never closed"),
            (
                "root ::= a\nb ::= \"b\"",
                "line 1, column 10: no rule is named a",
            ),
            ("root = \"a\"", "line 1, column 6: ::= must follow"),
            (
                "root ::= \"a\"\n  b ::= [a-",
                "line 2, column 9: this is never",
            ),
            ("root ::= (\"é\" ]", "line 1, column 10: this bracket"),
            (
                "root ::= \"é\" ]",
                "line 1, column 14: ']' cannot stand here",
            ),
            ("root ::= \"\\q\"", "line 1, column 11: \\q is no escape"),
            ("root ::= \"\\x4\"", "line 1, column 11: 2 hexadecimal"),
            (
                "root ::= * \"a\"",
                "line 1, column 10: nothing stands before",
            ),
            ("root ::= \"a\"{3,1}", "line 1, column 13: the upper limit"),
            ("root ::= \"a\"{9999}", "line 1, column 13: 9999 times"),
            ("root ::= \"a\"{x}", "line 1, column 13: a repetition is"),
            ("start ::= \"a\"", "line 1, column 1: no rule is named root"),
            ("root ::= !a", "line 1, column 10: a token such as"),
            ("", "line 1, column 1: no rule is named root"),
        ];
        for (text, expected) in cases {
            let said = read(text).expect_err(text);
            assert!(said.starts_with(expected), "{text:?}: {said}");
        }
    }

    #[test]
    fn what_llama_cpp_reads_is_read() {
        for good in [
            "root ::= \"yes\" | \"no\"\n",
            "root ::= (\n \"a\"? \"b\" # here\n | \"c\"\n)* [x\\]]{0,20}\r\n",
            "# first\nroot ::= x{1}\nx ::= \"\"",
            "root ::= \"[\" ws ( item (\",\" ws item)* )? \"]\"\nws ::= | \" \" | \"\\n\"{1,2} [ \\t]{0,20}\nitem ::= [^0-9]+ . <[7]> !<think>",
            "root ::=\n  \"a\" |\n  \"b\"",
        ] {
            assert!(read(good).is_ok(), "{good}: {:?}", read(good).err());
        }
    }
}
