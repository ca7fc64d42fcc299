//! The language of requests and answers: media types, query parameters, bodies. Pure except for reading a body.

use std::convert::Infallible;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use super::failure::Failure;
use super::protobuf;

/// What every handler returns.
pub type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The largest request body, as in the real server.
pub const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// Query parameters.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Reads those of a URI.
    pub fn of(uri: &Uri) -> Result<Params, Failure> {
        axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map(|query| Params(query.0))
            .map_err(|e| Failure::bad_request(format!("the query string cannot be read: {e}")))
    }

    /// The first value, or "".
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v.as_str())
    }

    /// All values.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.iter().filter(move |(k, _)| *k == name).map(|(_, v)| v)
    }

    /// Every pair.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// A boolean as Kubernetes reads it: present and neither false nor 0.
    pub fn flag(&self, name: &str) -> bool {
        self.0
            .iter()
            .any(|(k, v)| k == name && !matches!(v.as_str(), "false" | "0" | "False" | "f" | "F" | "FALSE"))
    }

    /// A number; absent is None, nonsense a bad request.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Failure::bad_request(format!(
                    "invalid value {text:?} of parameter {name}: a number is expected"
                ))
            }),
        }
    }
}

/// How objects are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What of an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All of it.
    Object,
    /// Rows for people.
    Table,
    /// `PartialObjectMetadata`.
    Metadata,
}

/// What the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// How.
    pub format: Format,
    /// What.
    pub shape: Shape,
}

impl Accept {
    /// The first acceptable media type of the header that this server speaks.
    pub fn of(headers: &HeaderMap) -> Result<Accept, Failure> {
        let all: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|h| h.to_str().ok()).collect();
        let all = all.join(",");
        if all.trim().is_empty() {
            return Ok(Accept { format: Format::Json, shape: Shape::Object });
        }
        all.split(',').find_map(accept_one).ok_or_else(Failure::not_acceptable)
    }
}

fn accept_one(item: &str) -> Option<Accept> {
    let mut parts = item.split(';').map(str::trim);
    let format = match parts.next()? {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let mut shape = Shape::Object;
    for part in parts {
        match part.split_once('=') {
            Some(("as", "Table")) => shape = Shape::Table,
            Some(("as", "PartialObjectMetadata" | "PartialObjectMetadataList")) => shape = Shape::Metadata,
            Some(("as", _)) => return None,
            Some(("v", version)) if shape != Shape::Object && version != "v1" => return None,
            _ => {}
        }
    }
    Some(Accept { format, shape })
}

/// The media type of a body, without parameters; "" when the client said none.
pub fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim()
}

/// Reads a whole body within the limit. What is too large is still read for a while, so that its sender gets to see
/// the answer.
pub async fn read_body(mut body: hyper::body::Incoming) -> Result<Bytes, Failure> {
    let reading = async {
        let (mut whole, mut length) = (BytesMut::new(), 0);
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|e| Failure::bad_request(format!("the body could not be read: {e}")))?;
            let Some(data) = frame.data_ref() else { continue };
            length += data.len();
            if length > 4 * BODY_LIMIT {
                break;
            }
            if length <= BODY_LIMIT {
                whole.extend_from_slice(data);
            }
        }
        if length > BODY_LIMIT {
            let message = format!("Request entity too large: limit is {BODY_LIMIT}");
            return Err(Failure::new(413, "RequestEntityTooLarge", message));
        }
        Ok(whole.freeze())
    };
    match tokio::time::timeout(std::time::Duration::from_secs(60), reading).await {
        Ok(read) => read,
        Err(_) => Err(Failure::new(408, "Timeout", "the body did not arrive within 60 s")),
    }
}

/// Reads an object from JSON or YAML.
pub fn decode(headers: &HeaderMap, body: &[u8]) -> Result<Value, Failure> {
    match content_type(headers) {
        "" | "application/json" => json(body),
        "application/yaml" => yaml(body),
        protobuf::MEDIA_TYPE => protobuf::decode(body),
        _ => Err(Failure::unsupported_media_type(&[
            "application/json",
            "application/yaml",
            protobuf::MEDIA_TYPE,
        ])),
    }
}

/// Reads JSON.
pub fn json(body: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(body).map_err(|e| {
        Failure::bad_request(format!("the object provided is unrecognized (must be valid JSON): {e}"))
    })
}

/// Reads YAML, of which JSON is a part.
pub fn yaml(body: &[u8]) -> Result<Value, Failure> {
    // Clients that speak YAML mostly send JSON; its own reader is faster and allows deeper schemas.
    if body.trim_ascii_start().starts_with(b"{")
        && let Ok(value) = serde_json::from_slice(body)
    {
        return Ok(value);
    }
    serde_saphyr::from_slice(body).map_err(|e| {
        Failure::bad_request(format!("the object provided is unrecognized (must be valid YAML): {e}"))
    })
}

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(bytes.into()).boxed_unsync()
}

/// An answer with a body of this type.
pub fn reply(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(full(body));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

/// An answer that is an object.
pub fn object(code: u16, format: Format, value: &Value) -> Answer {
    match format {
        Format::Json => reply(code, "application/json", value.to_string()),
        Format::Yaml => match serde_saphyr::to_string(value) {
            Ok(text) => reply(code, "application/yaml", text),
            Err(e) => failure(&Failure::internal(e)),
        },
    }
}

/// An answer that refuses.
pub fn failure(failure: &Failure) -> Answer {
    reply(failure.code, "application/json", failure.status().to_string())
}

/// Adds the warnings that kubectl prints.
pub fn warn(answer: &mut Answer, warnings: &[String]) {
    for warning in warnings {
        let text: String = warning.chars().filter(|c| !c.is_control()).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            answer.headers_mut().append(header::WARNING, value);
        }
    }
}
