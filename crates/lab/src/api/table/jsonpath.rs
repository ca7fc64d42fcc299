//! The part of JSONPath that printer columns use: names, indices, `[*]` and `[?(@.a=="b")]` filters.

use serde_json::Value;

/// The first value at the path; None when there is none or the path is beyond this reader.
pub fn find(object: &Value, path: &str) -> Option<Value> {
    let mut found = vec![object];
    let mut rest = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let end = closing(after)?;
            found = bracket(found, &after[..end])?;
            rest = &after[end + 1..];
        } else {
            let after = rest.strip_prefix('.')?;
            let (name, end) = name(after);
            if name.is_empty() {
                return None;
            }
            found = found.into_iter().filter_map(|value| value.get(&name)).collect();
            rest = &after[end..];
        }
    }
    found.first().map(|value| (*value).clone()).filter(|value| !value.is_null())
}

/// A field name, in which a backslash escapes a dot, and its length in the text.
fn name(text: &str) -> (String, usize) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (out, i),
            c => out.push(c),
        }
    }
    (out, text.len())
}

/// Where the bracket ends, strings and nested brackets respected.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket<'a>(found: Vec<&'a Value>, inside: &str) -> Option<Vec<&'a Value>> {
    let inside = inside.trim();
    let elements = |value: &'a Value| value.as_array().map(Vec::as_slice).unwrap_or(&[]).iter();
    if inside == "*" {
        return Some(found.into_iter().flat_map(elements).collect());
    }
    if let Some(condition) = inside.strip_prefix("?(").and_then(|c| c.strip_suffix(')')) {
        let (path, want) = condition.split_once("==")?;
        let path = path.trim().strip_prefix('@')?;
        let want = want.trim().trim_matches(['\'', '"']);
        let holds = |value: &&Value| {
            find(value, path).is_some_and(|found| match found.as_str() {
                Some(text) => text == want,
                None => found.to_string().as_str() == want,
            })
        };
        return Some(found.into_iter().flat_map(elements).filter(holds).collect());
    }
    if let Some(name) = inside.strip_prefix(['\'', '"']).and_then(|n| n.strip_suffix(['\'', '"'])) {
        return Some(found.into_iter().filter_map(|value| value.get(name)).collect());
    }
    let index: i64 = inside.parse().ok()?;
    let at = |value: &'a Value| {
        let items = value.as_array()?;
        let index = if index < 0 { items.len() as i64 + index } else { index };
        items.get(usize::try_from(index).ok()?)
    };
    Some(found.into_iter().filter_map(at).collect())
}
