//! Answers of the API in words for people.

use anyhow::anyhow;

/// What the API said, without the machinery around it.
pub fn plainly(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => anyhow!("{}", status.message),
        // The innermost cause says what happened; the layers around it only say where.
        error => {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            anyhow!("{cause}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_message() {
        let status = kube::core::Status::failure("pods \"a\" not found", "NotFound");
        assert_eq!(plainly(kube::Error::Api(Box::new(status))).to_string(), "pods \"a\" not found");
    }
}
