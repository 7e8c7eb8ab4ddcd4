//! The `OpenAPI` 3.1 description of `/admin/v1`, made from the table of routes and the schemas beside this file.

use config::settings::plan::Zone;
use serde_json::{Map, Value, json};

use crate::admin::routes::{IDEMPOTENCY_KEY, PREFIX, Param, ROUTES, Route};

/// Names in paths hold no control characters.
const NAMES: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$";
const SCHEMAS: &str = include_str!("schemas.json");

/// The whole description.
pub(crate) fn description() -> Value {
    let mut paths = Map::new();
    for route in &ROUTES {
        let path = format!("{PREFIX}{}", route.path);
        let place = paths.entry(path).or_insert_with(|| json!({}));
        if let Some(place) = place.as_object_mut() {
            let method = route.method.to_ascii_lowercase();
            place.insert(method, operation(route));
        }
    }
    let mut schemas: Value = serde_json::from_str(SCHEMAS).unwrap_or_default();
    if let Some(zone) = schemas.pointer_mut("/Plan/properties/time_zone") {
        let known = Zone::names().map(Value::from).chain([Value::Null]);
        *zone = json!({"enum": known.collect::<Vec<_>>()});
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Hearth administration",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Keys, people, nodes, usage and the audit log. Locally over admin.sock without a password, remotely with an administrator's key.",
        },
        "paths": paths,
        "security": [{"key": []}],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
            "responses": {"Problem": {
                "description": "Why it did not work (RFC 9457).",
                "content": {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}},
                    // What is no request is refused before anybody knows what it asks for.
                    "application/json": {"schema": {"$ref": "#/components/schemas/Refused"}},
                },
            }},
        },
    })
}

fn operation(route: &Route) -> Value {
    let (status, schema) = route.answer;
    let mut content = Map::new();
    let schema = json!({"schema": {"$ref": format!("#/components/schemas/{schema}")}});
    content.insert("application/json".into(), schema);
    if route.asks.iter().any(|param| param.name == "format") {
        content.insert("text/csv".into(), json!({"schema": {"type": "string"}}));
    }
    let mut responses = Map::new();
    responses.insert(
        status.to_string(),
        json!({"description": route.summary, "content": content}),
    );
    for status in problems(route) {
        responses.insert(
            status.to_string(),
            json!({"$ref": "#/components/responses/Problem"}),
        );
    }
    let mut operation = json!({
        "operationId": route.name,
        "summary": route.summary,
        "parameters": parameters(route),
        "responses": responses,
    });
    if let (Some(order), Some(operation)) = (route.order, operation.as_object_mut()) {
        let optional = matches!(order, "RotateOrder" | "InviteOrder");
        operation.insert(
            "requestBody".into(),
            json!({"required": !optional, "content": {"application/json": {"schema": {"$ref": format!("#/components/schemas/{order}")}}}}),
        );
    }
    operation
}

fn problems(route: &Route) -> Vec<u16> {
    let mut all = vec![400, 401, 403, 408, 414, 429, 431, 503];
    let is_paged = route.asks.iter().any(|param| param.name == "cursor");
    let is_named = route.path.contains("{id}");
    // Of a model that nobody has there is no route.
    let asks_model = route.asks.iter().any(|param| param.name == "model");
    if is_named || is_paged || asks_model {
        all.push(404);
    }
    // A name may be that of two.
    if is_named || route.method != "GET" {
        all.push(409);
    }
    if route.order.is_some() {
        all.extend([413, 415]);
    }
    if route.method == "PATCH" {
        all.extend([412, 428]);
    }
    all.sort_unstable();
    all
}

fn parameters(route: &Route) -> Vec<Value> {
    let mut all = Vec::new();
    if route.path.contains("{id}") {
        all.push(json!({"name": "id", "in": "path", "required": true,
            "schema": {"type": "string", "minLength": 1, "maxLength": 512, "pattern": NAMES}}));
    }
    if route.method == "PATCH" {
        all.push(json!({"name": "If-Match", "in": "header", "required": true,
            "description": "The ETag of what was read, or *.", "schema": {"type": "string"}}));
    }
    if route.answer.0 == 201 && route.name.ends_with(".create") {
        all.push(parameter(&IDEMPOTENCY_KEY, "header"));
    }
    all.extend(route.asks.iter().map(|param| parameter(param, "query")));
    all
}

fn parameter(param: &Param, place: &str) -> Value {
    let schema: Value = serde_json::from_str(param.schema).unwrap_or_default();
    json!({"name": param.name, "in": place, "required": false,
        "description": param.about, "schema": schema})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_that_is_named_exists() {
        let text = description().to_string();
        let schemas: Value = serde_json::from_str(SCHEMAS).expect("schemas.json is JSON");
        for part in text.split("#/components/schemas/").skip(1) {
            let name: String = part
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .collect();
            assert!(schemas.get(&name).is_some(), "no schema {name}");
        }
        for route in &ROUTES {
            for param in route.asks {
                let schema: Result<Value, _> = serde_json::from_str(param.schema);
                assert!(schema.is_ok(), "{} of {}", param.name, route.name);
            }
        }
    }

    /// A whole number without bounds promises what no 64-bit field keeps: -2e20 fits the description and not the
    /// order. What only goes out needs none.
    #[test]
    fn every_whole_number_that_may_be_sent_has_its_bounds() {
        let whole = description();
        let schemas = &whole["components"]["schemas"];
        let mut open = Vec::new();
        for (name, schema) in schemas.as_object().expect("schemas have names") {
            if name.ends_with("Order") || name.ends_with("Patch") {
                unbounded(schema, name, &mut open);
            }
        }
        let params = ROUTES.iter().flat_map(|route| route.asks.iter());
        for param in params {
            let schema = serde_json::from_str(param.schema).expect("a schema is JSON");
            unbounded(&schema, param.name, &mut open);
        }
        for (path, ways) in whole["paths"].as_object().expect("paths have names") {
            for (way, operation) in ways.as_object().expect("a path has its methods") {
                unbounded(
                    &operation["requestBody"],
                    &format!("{way} {path}"),
                    &mut open,
                );
            }
        }
        assert_eq!(open, Vec::<String>::new());
    }

    fn unbounded(schema: &Value, at: &str, open: &mut Vec<String>) {
        let kinds = &schema["type"];
        let is_whole = *kinds == "integer"
            || kinds
                .as_array()
                .is_some_and(|all| all.iter().any(|kind| kind == "integer"));
        if is_whole && (schema["minimum"].is_null() || schema["maximum"].is_null()) {
            open.push(at.to_owned());
        }
        let inner: Vec<(String, &Value)> = match schema {
            Value::Object(members) => members
                .iter()
                .map(|(name, value)| (name.clone(), value))
                .collect(),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .map(|(index, value)| (index.to_string(), value))
                .collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
        };
        for (name, value) in inner {
            unbounded(value, &format!("{at}/{name}"), open);
        }
    }
}
