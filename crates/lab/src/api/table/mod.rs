//! Objects as rows for people: what `kubectl get` prints is computed here, by the server.

mod age;
mod columns;
mod jsonpath;
mod rows;

use serde_json::{Value, json};

pub use age::age;

use super::object::{array_at, str_at};
use super::registry::Kind;

/// What of each object a row carries along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// A column: name, type, priority (0 is always shown, 1 with `-o wide`).
pub(super) type Column = (&'static str, &'static str, i64);

/// A table of these objects; without `columns` only their rows.
pub fn of<'a>(
    kind: &Kind,
    objects: impl Iterator<Item = &'a Value>,
    include: Include,
    columns: bool,
) -> Value {
    let now = jiff::Timestamp::now();
    let custom = kind.custom().map(|version| array_at(version, "/additionalPrinterColumns"));
    let rows: Vec<Value> = objects
        .map(|object| {
            let cells = match custom {
                Some(columns) => custom_cells(columns, object, now),
                None => rows::cells(&kind.resource, object, now),
            };
            let mut row = json!({ "cells": cells });
            match include {
                Include::None => {}
                Include::Metadata => row["object"] = super::convert::metadata_only(object),
                Include::Object => row["object"] = object.clone(),
            }
            row
        })
        .collect();
    let definitions: Vec<Value> = match (columns, custom) {
        (false, _) => Vec::new(),
        (true, Some(columns)) => custom_columns(columns),
        (true, None) => columns::columns(&kind.resource)
            .into_iter()
            .map(|(name, of_type, priority)| definition(name, of_type, "", priority))
            .collect(),
    };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": definitions, "rows": rows,
    })
}

fn definition(name: &str, of_type: &str, format: &str, priority: i64) -> Value {
    let format = if name == "Name" { "name" } else { format };
    json!({ "name": name, "type": of_type, "format": format, "description": "", "priority": priority })
}

fn custom_columns(columns: &[Value]) -> Vec<Value> {
    let mut out = vec![definition("Name", "string", "", 0)];
    for column in columns {
        let priority = column.get("priority").and_then(Value::as_i64).unwrap_or(0);
        out.push(definition(
            str_at(column, "/name"),
            str_at(column, "/type"),
            str_at(column, "/format"),
            priority,
        ));
    }
    if columns.is_empty() {
        out.push(definition("Age", "date", "", 0));
    }
    out
}

fn custom_cells(columns: &[Value], object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut cells = vec![Value::from(super::object::name(object))];
    for column in columns {
        let found = jsonpath::find(object, str_at(column, "/jsonPath"));
        cells.push(match (str_at(column, "/type"), found) {
            ("date", Some(Value::String(at))) => age(&at, now).into(),
            (_, Some(value)) => value,
            (_, None) => Value::Null,
        });
    }
    if columns.is_empty() {
        cells.push(age(str_at(object, "/metadata/creationTimestamp"), now).into());
    }
    cells
}

#[cfg(test)]
mod tests;
