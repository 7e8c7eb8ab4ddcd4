//! Holds every query and every body against the table that the description is made from: one place, all routes, before an act
//! sees anything. What an act checks besides is what no schema can say.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::openapi;
use crate::admin::operations::AdminError;
use crate::admin::routes::{IDEMPOTENCY_KEY, Param, ROUTES, Route};
use crate::admin::schema::Schema;

type Compiled = Result<Schema, String>;

/// By the text of a parameter's schema, and by the name of a body's.
struct Checks {
    params: HashMap<&'static str, Compiled>,
    orders: HashMap<&'static str, Compiled>,
}

static CHECKS: LazyLock<Checks> = LazyLock::new(|| {
    let description = openapi::description();
    let named = description.pointer("/components/schemas");
    let named = named.and_then(Value::as_object).cloned();
    let named: Map<String, Value> = named.unwrap_or_default();
    let written = |text: &str| serde_json::from_str(text).map_err(|error| error.to_string());
    let params = ROUTES.iter().flat_map(|route| route.asks);
    let params = params.chain([&IDEMPOTENCY_KEY]).map(|param| {
        let compiled = written(param.schema).and_then(|written| Schema::compile(&written, &named));
        (param.schema, compiled)
    });
    let orders = ROUTES.iter().filter_map(|route| route.order).map(|name| {
        let written = named.get(name).ok_or_else(|| format!("no schema {name}"));
        (
            name,
            written.and_then(|written| Schema::compile(written, &named)),
        )
    });
    Checks {
        params: params.collect(),
        orders: orders.collect(),
    }
});

/// Refuses a parameter that the description forbids.
pub(super) fn param(param: &Param, value: &str) -> Result<(), AdminError> {
    let schema = ready(CHECKS.params.get(param.schema))?;
    schema
        .check_text(param.name, value)
        .map_err(AdminError::Invalid)
}

/// Refuses a body that the description forbids.
pub(super) fn order(route: &Route, order: &Value) -> Result<(), AdminError> {
    let named = route.order.and_then(|name| CHECKS.orders.get(name));
    ready(named)?
        .check("the order", order)
        .map_err(|why| AdminError::Invalid(format!("the order is wrong: {why}")))
}

/// Closed when there is nothing to check with: a test below keeps that from happening.
fn ready(compiled: Option<&'static Compiled>) -> Result<&'static Schema, AdminError> {
    match compiled {
        Some(Ok(schema)) => Ok(schema),
        Some(Err(why)) => Err(AdminError::Invalid(format!(
            "this cannot be checked, so it is refused: {why}"
        ))),
        None => Err(AdminError::Invalid(
            "this takes no order: send no body".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_the_table_takes_can_be_checked() {
        let all = CHECKS.params.iter().chain(&CHECKS.orders);
        for (name, compiled) in all {
            assert!(compiled.is_ok(), "{name}: {compiled:?}");
        }
        let orders = ROUTES.iter().filter(|route| route.order.is_some()).count();
        assert!(orders >= 7, "{orders} orders");
    }

    #[test]
    fn no_order_has_a_member_that_nobody_reads() {
        for route in ROUTES.iter().filter(|route| route.order.is_some()) {
            let unknown = serde_json::json!({"colour": 1});
            assert!(order(route, &unknown).is_err(), "{}", route.name);
        }
    }
}
