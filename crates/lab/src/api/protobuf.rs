//! Reading Kubernetes' protobuf: newer kubectl creates some built-in kinds with it, without asking first. Bodies
//! become JSON here and nobody else sees the difference; nothing is ever written as protobuf. What the messages
//! look like is in `protobuf/messages.txt`.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine;
use serde_json::{Map, Value};

use super::failure::Failure;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";

const MAGIC: &[u8] = b"k8s\0";
/// Deeper than any type here; only a hostile body goes further.
const DEEPEST: usize = 40;

struct Field {
    name: &'static str,
    repeated: bool,
    map: bool,
    /// Whether zero is a value of its own rather than absence.
    explicit: bool,
    of: &'static str,
}

type Message = HashMap<u64, Field>;

static MESSAGES: LazyLock<HashMap<&'static str, Message>> = LazyLock::new(|| {
    let mut messages: HashMap<&str, Message> = HashMap::new();
    let mut current = "";
    for line in include_str!("protobuf/messages.txt").lines().filter(|l| !l.starts_with('#')) {
        if !line.starts_with(' ') {
            current = line;
            messages.entry(current).or_default();
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(Ok(number)), Some(name), Some(of)) =
            (words.next().map(str::parse::<u64>), words.next(), words.next())
        else {
            continue;
        };
        let bare = of.trim_start_matches(['*', '[', ']', '{', '}']);
        let field = Field {
            name,
            repeated: of.contains("[]"),
            map: of.contains("{}"),
            explicit: of.starts_with('*'),
            of: bare,
        };
        messages.entry(current).or_default().insert(number, field);
    }
    messages
});

/// Reads an object from its protobuf envelope.
pub fn decode(body: &[u8]) -> Result<Value, Failure> {
    read(body).map_err(|why| Failure::bad_request(format!("the protobuf body cannot be read: {why}")))
}

fn read(body: &[u8]) -> Result<Value, String> {
    let envelope = body.strip_prefix(MAGIC).ok_or("it does not start with the Kubernetes prefix")?;
    let (mut api_version, mut kind, mut raw): (String, String, &[u8]) = Default::default();
    for item in Items(envelope) {
        match item? {
            (1, Wire::Bytes(meta)) => {
                for item in Items(meta) {
                    match item? {
                        (1, Wire::Bytes(text)) => api_version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let package = match group.split('.').next().unwrap_or("") {
        _ if kind == "DeleteOptions" => "meta",
        "" => "core",
        first => first,
    };
    if version != "v1" || !MESSAGES.contains_key(format!("{package}.{kind}").as_str()) {
        return Err(format!("{kind} of {api_version} is known here as JSON and YAML only"));
    }
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.as_str().into());
    object.insert("kind".into(), kind.as_str().into());
    fill(&mut object, &format!("{package}.{kind}"), raw, 0)?;
    Ok(Value::Object(object))
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message as they come.
struct Items<'a>(&'a [u8]);

impl<'a> Iterator for Items<'a> {
    type Item = Result<(u64, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = self.item();
        if item.is_err() {
            self.0 = &[];
        }
        Some(item)
    }
}

impl<'a> Items<'a> {
    fn item(&mut self) -> Result<(u64, Wire<'a>), String> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a length is too large")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Bytes(self.take(4)?),
            other => return Err(format!("wire type {other} is not used by Kubernetes")),
        };
        Ok((tag >> 3, value))
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.take(1)? else { return Err("it ends early".into()) };
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long".into())
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self.0.split_at_checked(n).ok_or("it ends early")?;
        self.0 = rest;
        Ok(head)
    }
}

fn string(bytes: &[u8]) -> Result<String, String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a string is not UTF-8".into())
}

fn fill(object: &mut Map<String, Value>, message: &str, bytes: &[u8], depth: usize) -> Result<(), String> {
    if depth > DEEPEST {
        return Err("it is nested too deeply".into());
    }
    let fields = MESSAGES.get(message).ok_or_else(|| format!("{message} is not known"))?;
    for item in Items(bytes) {
        let (number, wire) = item?;
        let Some(field) = fields.get(&number) else { continue };
        if field.name == "-" {
            if let Wire::Bytes(inner) = wire {
                fill(object, field.of, inner, depth + 1)?;
            }
        } else if field.map {
            let Wire::Bytes(entry) = wire else { return Err(format!("{} is not a map", field.name)) };
            let slot = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            let (key, value) = entry_of(field, entry, depth)?;
            super::object::as_map(slot).insert(key, value);
        } else if field.repeated {
            let slot = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            let items = values(field, wire, depth)?;
            if let Value::Array(list) = slot {
                list.extend(items);
            }
        } else if let Some(value) = value(field.of, wire, depth)? {
            let zero = value == 0 || value == "" || value == false;
            if field.explicit || !zero {
                object.insert(field.name.into(), value);
            }
        }
    }
    Ok(())
}

fn entry_of(field: &Field, entry: &[u8], depth: usize) -> Result<(String, Value), String> {
    let (mut key, mut found) = (String::new(), None);
    for item in Items(entry) {
        match item? {
            (1, Wire::Bytes(text)) => key = string(text)?,
            (2, wire) => found = value(field.of, wire, depth)?,
            _ => {}
        }
    }
    let empty = || if matches!(field.of, "s" | "y") { Value::from("") } else { Value::Null };
    Ok((key, found.unwrap_or_else(empty)))
}

/// The element, or the elements of a packed list of numbers.
fn values(field: &Field, wire: Wire<'_>, depth: usize) -> Result<Vec<Value>, String> {
    if let ("i", Wire::Bytes(packed)) = (field.of, &wire) {
        let mut items = Items(packed);
        let mut out = Vec::new();
        while !items.0.is_empty() {
            out.push(Value::from(items.varint()? as i64));
        }
        return Ok(out);
    }
    Ok(value(field.of, wire, depth)?.into_iter().collect())
}

fn value(of: &str, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, String> {
    let bytes = match (of, wire) {
        ("i", Wire::Number(n)) => return Ok(Some((n as i64).into())),
        ("b", Wire::Number(n)) => return Ok(Some((n != 0).into())),
        (_, Wire::Number(_)) => return Err("a number stands where none is expected".into()),
        (_, Wire::Bytes(bytes)) => bytes,
    };
    let number = |wanted: u64| -> Result<i64, String> {
        let mut found = 0;
        for item in Items(bytes) {
            if let (number, Wire::Number(n)) = item?
                && number == wanted
            {
                found = n as i64;
            }
        }
        Ok(found)
    };
    let first = |wanted: u64| -> Result<&[u8], String> {
        let mut found: &[u8] = &[];
        for item in Items(bytes) {
            if let (number, Wire::Bytes(bytes)) = item?
                && number == wanted
            {
                found = bytes;
            }
        }
        Ok(found)
    };
    Ok(match of {
        "s" => Some(string(bytes)?.into()),
        "y" => Some(base64::engine::general_purpose::STANDARD.encode(bytes).into()),
        "Q" => Some(string(first(1)?)?.into()),
        "I" if number(1)? == 0 => Some(number(2)?.into()),
        "I" => Some(string(first(3)?)?.into()),
        "T" | "M" if bytes.is_empty() => None,
        "T" | "M" => {
            let (seconds, nanos) = (number(1)?, i32::try_from(number(2)?).unwrap_or(0));
            let at = jiff::Timestamp::new(seconds, nanos).map_err(|e| e.to_string())?;
            let format = if of == "T" { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
            Some(at.strftime(format).to_string().into())
        }
        "R" | "F" => {
            let raw = first(1)?;
            if raw.is_empty() { None } else { Some(serde_json::from_slice(raw).map_err(|e| e.to_string())?) }
        }
        "L" => {
            let mut list = Vec::new();
            for item in Items(bytes) {
                if let (1, Wire::Bytes(text)) = item? {
                    list.push(Value::from(string(text)?));
                }
            }
            Some(list.into())
        }
        message => {
            let mut object = Map::new();
            fill(&mut object, message, bytes, depth + 1)?;
            Some(Value::Object(object))
        }
    })
}

#[cfg(test)]
mod tests;
