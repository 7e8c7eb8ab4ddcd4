//! Methods and tests of Python's values that templates use and minijinja and its companion do not have, or have otherwise. Pure.

use minijinja::value::{Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Methods of Python's strings and lists: ours first, then those of minijinja's companion.
pub(super) fn unknown(
    state: &State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let ours = match value.as_str() {
        Some(text) => of_text(text, method, args),
        None => None,
    };
    match ours {
        Some(result) => result,
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn of_text(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let first = args.first().and_then(Value::as_str);
    match (method, args.len(), first) {
        ("rsplit", 1 | 2, Some(separator)) if !separator.is_empty() => {
            Some(rsplit(text, separator, args.get(1)))
        }
        ("removeprefix", 1, Some(prefix)) => {
            let rest = text.strip_prefix(prefix).unwrap_or(text);
            Some(Ok(rest.into()))
        }
        ("removesuffix", 1, Some(suffix)) => {
            let rest = text.strip_suffix(suffix).unwrap_or(text);
            Some(Ok(rest.into()))
        }
        ("partition", 1, Some(separator)) => {
            let parts = match text.split_once(separator) {
                Some((before, after)) => [before, separator, after],
                None => [text, "", ""],
            };
            Some(Ok(Value::from_iter(parts)))
        }
        ("rpartition", 1, Some(separator)) => {
            let parts = match text.rsplit_once(separator) {
                Some((before, after)) => [before, separator, after],
                None => ["", "", text],
            };
            Some(Ok(Value::from_iter(parts)))
        }
        _ => None,
    }
}

/// From the end, at most as often as said; the parts in the order of the text.
fn rsplit(text: &str, separator: &str, most: Option<&Value>) -> Result<Value, Error> {
    let most = match most {
        None => None,
        Some(most) => {
            let most = i64::try_from(most.clone())?;
            // A negative number means no bound, as in Python.
            usize::try_from(most).ok()
        }
    };
    let mut parts: Vec<&str> = match most {
        Some(most) => text.rsplitn(most.saturating_add(1), separator).collect(),
        None => text.rsplit(separator).collect(),
    };
    parts.reverse();
    Ok(Value::from_iter(parts))
}

/// `is sequence`: whatever has a length and an index, which in Python texts and objects have too.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::String | ValueKind::Map
    )
}

/// `is iterable`: `none` is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// `int`, with what to take for a text that is no number.
#[expect(
    clippy::needless_pass_by_value,
    reason = "minijinja's filters take their arguments so"
)]
pub(super) fn int(
    state: &State<'_, '_>,
    value: &Value,
    default: Rest<Value>,
) -> Result<Value, Error> {
    match minijinja::filters::int(state, value) {
        Err(error) if error.kind() == ErrorKind::InvalidOperation => {
            Ok(default.first().cloned().unwrap_or_else(|| Value::from(0)))
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str) -> String {
        let mut environment = minijinja::Environment::new();
        environment.set_unknown_method_callback(unknown);
        environment.add_test("sequence", is_sequence);
        environment.add_test("iterable", is_iterable);
        environment.add_filter("int", int);
        environment.render_str(template, ()).expect("renders")
    }

    #[test]
    fn texts_have_the_methods_of_python() {
        for (template, want) in [
            ("{{ 'a,b,c'.rsplit(',') | join('|') }}", "a|b|c"),
            ("{{ 'a,b,c'.rsplit(',', 1) | join('|') }}", "a,b|c"),
            ("{{ 'a,b,c'.rsplit(',', -1) | join('|') }}", "a|b|c"),
            ("{{ 'a=b=c'.partition('=') | join('|') }}", "a|=|b=c"),
            ("{{ 'a=b=c'.rpartition('=') | join('|') }}", "a=b|=|c"),
            ("{{ 'abc'.partition('=') | join('|') }}", "abc||"),
            (
                "{{ 'x_y'.removeprefix('x_') }}{{ 'y'.removeprefix('x_') }}",
                "yy",
            ),
            ("{{ 'y.x'.removesuffix('.x') }}", "y"),
            ("{{ 'abc'.upper() }}", "ABC"),
        ] {
            assert_eq!(render(template), want, "{template}");
        }
    }

    #[test]
    fn sequences_and_iterables_are_pythons() {
        let tests = "{{ 'a' is sequence }} {{ {} is sequence }} {{ [] is sequence }} {{ none is sequence }} {{ 1 is sequence }} \
                     {{ 'a' is iterable }} {{ none is iterable }} {{ 1 is iterable }}";
        assert_eq!(render(tests), "True True True False False True False False");
    }

    #[test]
    fn what_is_no_number_is_what_is_said_instead() {
        assert_eq!(
            render("{{ 'x' | int(5) }} {{ 'x' | int }} {{ '12' | int }} {{ 3.9 | int }}"),
            "5 0 12 3"
        );
    }
}
