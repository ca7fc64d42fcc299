//! Conversions between the wire and the types of [`mesh`].

/// Why a resource of a peer cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ConvertError {
    /// Path of the field, such as `workload.addresses[1]`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}
