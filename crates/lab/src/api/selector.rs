//! Label and field selectors: parsed once from a query, then asked about each object. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::failure::Failure;

/// A requirement on one key.
#[derive(Clone, Debug, PartialEq)]
enum Requirement {
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
}

/// What a list, watch or collection delete is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    labels: Vec<Requirement>,
    /// (path, value, equal?)
    fields: Vec<(String, String, bool)>,
}

impl Selector {
    /// Parses the two query parameters.
    pub fn parse(labels: &str, fields: &str) -> Result<Selector, Failure> {
        Ok(Selector { labels: parse_labels(labels)?, fields: parse_fields(fields)? })
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Narrows it to one name, for a watch of one object.
    pub fn also_named(&mut self, name: &str) {
        self.fields.push(("metadata.name".into(), name.into(), true));
    }

    /// Paths that the field selector asks about.
    pub fn field_paths(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|(path, _, _)| path.as_str())
    }

    /// Whether this object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| {
            object
                .get("metadata")
                .and_then(|m| m.get("labels"))
                .and_then(|l| l.get(key))
                .and_then(Value::as_str)
        };
        self.labels.iter().all(|requirement| requirement.holds(&label))
            && self.fields.iter().all(|(path, want, equal)| (field(object, path) == *want) == *equal)
    }
}

impl Requirement {
    fn holds<'a>(&self, label: &impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Requirement::In(key, values) => label(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| !values.contains(v)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
            Requirement::Greater(key, n) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *n)
            }
            Requirement::Less(key, n) => {
                label(key).and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *n)
            }
        }
    }
}

/// The value at a dotted path as a field selector sees it: missing is "", booleans and numbers are text.
fn field(object: &Value, path: &str) -> String {
    let mut at = object;
    for step in path.split('.') {
        match at.get(step) {
            Some(next) => at = next,
            None => return if path == "spec.unschedulable" { "false".into() } else { String::new() },
        }
    }
    match at {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn bad(text: &str, why: &str) -> Failure {
    Failure::bad_request(format!("unable to parse requirement: {why} in selector {text:?}"))
}

fn valid_key(key: &str) -> bool {
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    !name.is_empty()
        && key.matches('/').count() <= 1
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
}

/// Splits at commas that are not inside parentheses.
fn clauses(text: &str) -> Vec<&str> {
    let (mut out, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth <= 0 => {
                out.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, Failure> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    clauses(text).into_iter().map(|clause| parse_clause(text, clause.trim())).collect()
}

fn parse_clause(text: &str, clause: &str) -> Result<Requirement, Failure> {
    let key = |key: &str| {
        let key = key.trim();
        if valid_key(key) {
            Ok(key.to_owned())
        } else {
            Err(bad(text, &format!("invalid label key {key:?}")))
        }
    };
    let one = |value: &str| BTreeSet::from([value.trim().to_owned()]);
    if let Some(open) = clause.find('(') {
        let list = clause[open + 1..].strip_suffix(')').ok_or_else(|| bad(text, "')' expected"))?;
        let values = list.split(',').map(|v| v.trim().to_owned()).collect();
        let mut words = clause[..open].split_whitespace();
        let (name, operator) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        return match operator {
            "in" => Ok(Requirement::In(key(name)?, values)),
            "notin" => Ok(Requirement::NotIn(key(name)?, values)),
            _ => Err(bad(text, "'in' or 'notin' expected")),
        };
    }
    if let Some((k, v)) = clause.split_once("!=") {
        return Ok(Requirement::NotIn(key(k)?, one(v)));
    }
    if let Some((k, v)) = clause.split_once("==").or_else(|| clause.split_once('=')) {
        if v.contains('=') {
            return Err(bad(text, "unexpected '='"));
        }
        return Ok(Requirement::In(key(k)?, one(v)));
    }
    for (sign, greater) in [('>', true), ('<', false)] {
        if let Some((k, v)) = clause.split_once(sign) {
            let n = v.trim().parse().map_err(|_| bad(text, "an integer expected"))?;
            return Ok(if greater {
                Requirement::Greater(key(k)?, n)
            } else {
                Requirement::Less(key(k)?, n)
            });
        }
    }
    match clause.strip_prefix('!') {
        Some(k) => Ok(Requirement::Absent(key(k)?)),
        None => Ok(Requirement::Exists(key(clause)?)),
    }
}

fn parse_fields(text: &str) -> Result<Vec<(String, String, bool)>, Failure> {
    text.split(',')
        .filter(|clause| !clause.trim().is_empty())
        .map(|clause| {
            let parts = match clause.split_once("!=") {
                Some((k, v)) => Some((k, v, false)),
                None => clause.split_once("==").or_else(|| clause.split_once('=')).map(|(k, v)| (k, v, true)),
            };
            let (path, value, equal) = parts.ok_or_else(|| {
                Failure::bad_request(format!("invalid selector: {text:?}; can't understand {clause:?}"))
            })?;
            let value = value.replace("\\,", ",").replace("\\=", "=").replace("\\\\", "\\");
            Ok((path.trim().to_owned(), value, equal))
        })
        .collect()
}

#[cfg(test)]
mod tests;
