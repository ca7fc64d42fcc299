//! The environment of a container: `$(VAR)` expansion and the order in which variables come about.

use std::collections::BTreeMap;

/// Expands `$(NAME)` by what is known; `$$` is a `$`, and what is not known stays as it is.
pub fn expand(text: &str, known: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some(body) = after.strip_prefix('(') {
            match body.find(')') {
                Some(end) => {
                    match known.get(&body[..end]) {
                        Some(value) => out.push_str(value),
                        None => {
                            out.push_str("$(");
                            out.push_str(&body[..=end]);
                        }
                    }
                    rest = &body[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = body;
                }
            }
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Variables in the order they were first set; a later value replaces an earlier one.
#[derive(Clone, Debug, Default)]
pub struct Env {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Env {
    /// Sets a variable as it is.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        if self.values.insert(name.clone(), value.into()).is_none() {
            self.order.push(name);
        }
    }

    /// Sets a variable whose value may refer to those already set.
    pub fn set_expanded(&mut self, name: &str, value: &str) {
        let value = expand(value, &self.values);
        self.set(name, value);
    }

    /// Everything that is set, for expanding commands and paths.
    pub fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// `NAME=value` lines.
    pub fn lines(&self) -> Vec<String> {
        self.order.iter().map(|n| format!("{n}={}", self.values[n])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeMap<String, String> {
        BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B_C".to_owned(), "$(A)".to_owned())])
    }

    #[test]
    fn known_variables_are_replaced_once() {
        assert_eq!(expand("x$(A)y$(B_C)", &known()), "x1y$(A)");
    }

    #[test]
    fn unknown_and_escaped_references_stay() {
        assert_eq!(expand("$(NO) $$(A) $$ $ $A $(", &known()), "$(NO) $(A) $ $ $A $(");
    }

    #[test]
    fn a_variable_refers_to_those_before_it() {
        let mut env = Env::default();
        env.set_expanded("A", "1");
        env.set_expanded("B", "$(A)2$(C)");
        env.set_expanded("C", "3");
        env.set("A", "0");
        assert_eq!(env.lines(), ["A=0", "B=12$(C)", "C=3"]);
    }
}
