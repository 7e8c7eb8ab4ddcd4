//! A JSON object whose member names are all different (RFC 7515 section 4, RFC 7519 section 4). With a name twice, two readers
//! of one token could see two different claims; arrays, which serde would take for a struct, are no object.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

/// The members of a token's header or of its claims.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Members(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object)
    }
}

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
        let mut members = Map::new();
        while let Some((name, value)) = access.next_entry::<String, Value>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("a member stands twice"));
            }
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_object_with_different_names_is_taken() {
        let read = |json: &str| serde_json::from_str::<Members>(json).ok();
        assert_eq!(
            read(r#"{"a":1,"b":{"a":2}}"#).map(|members| members.0.len()),
            Some(2)
        );
        for refused in [
            r#"{"sub":"ada","sub":"eve"}"#,
            r#"{"sub":"ada","\u0073ub":"eve"}"#,
            r#"{"crit":null,"crit":null}"#,
            r#"["EdDSA","key"]"#,
            "\"text\"",
            "null",
        ] {
            assert_eq!(read(refused), None, "{refused}");
        }
    }
}
