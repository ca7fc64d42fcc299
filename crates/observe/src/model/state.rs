//! What traffic is, in one word, and counts of such words.

use serde::Serialize;

/// What two pods' traffic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum State {
    Proven,
    OneSided,
    Contradiction,
    Mixed,
    Plaintext,
    NodeLocal,
    Denied,
    Failed,
    Idle,
}

/// What the padlock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Lock {
    Closed,
    Open,
    Unproven,
    None,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Proven,
        Self::OneSided,
        Self::Contradiction,
        Self::Mixed,
        Self::Plaintext,
        Self::NodeLocal,
        Self::Denied,
        Self::Failed,
        Self::Idle,
    ];

    /// The padlock of traffic in this state.
    pub fn lock(self) -> Lock {
        match self {
            Self::Proven => Lock::Closed,
            Self::Mixed | Self::Plaintext => Lock::Open,
            Self::OneSided | Self::Contradiction => Lock::Unproven,
            Self::NodeLocal | Self::Denied | Self::Failed | Self::Idle => Lock::None,
        }
    }

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::OneSided => "one_sided",
            Self::Contradiction => "contradiction",
            Self::Mixed => "mixed",
            Self::Plaintext => "plaintext",
            Self::NodeLocal => "node_local",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Idle => "idle",
        }
    }

    /// How much it wants to be seen: the worst is the smallest.
    pub fn rank(self) -> u8 {
        match self {
            Self::Plaintext => 0,
            Self::Mixed => 1,
            Self::Contradiction => 2,
            Self::OneSided => 3,
            Self::Denied => 4,
            Self::Failed => 5,
            Self::NodeLocal => 6,
            Self::Proven => 7,
            Self::Idle => 8,
        }
    }
}
