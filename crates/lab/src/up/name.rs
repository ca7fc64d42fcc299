//! The name of a lab, and the names of everything that is made for it.

use std::fmt::{Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names of namespaces, control groups and directories begin with it, so it is short and plain.
const LONGEST: usize = 20;

/// A lab's name: lower-case letters, digits and dashes, starting with a letter, at most 20 characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

/// A name that cannot be a lab's.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` cannot name a lab: use at most {LONGEST} lower-case letters, digits and dashes, starting with a letter and not ending with a dash"
)]
pub struct NameError(String);

impl FromStr for LabName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let good = text.len() <= LONGEST
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-')
            && text.chars().all(plain);
        if good { Ok(LabName(text.to_owned())) } else { Err(NameError(text.to_owned())) }
    }
}

impl TryFrom<String> for LabName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl Display for LabName {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl LabName {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Of cluster, user and context in a kubeconfig, and the prefix of everything that the kernel keeps.
    pub fn prefix(&self) -> String {
        format!("ambit-{}", self.0)
    }

    /// Where the record, the log and the nodes' files are.
    pub fn state_dir(&self) -> PathBuf {
        PathBuf::from(format!("/run/ambit/{}", self.0))
    }

    /// Locked for as long as the lab's process lives.
    pub fn lock_file(&self) -> PathBuf {
        PathBuf::from(format!("/run/ambit/{}.lock", self.0))
    }

    /// The network namespace between the nodes.
    pub fn fabric(&self) -> String {
        format!("{}-fabric", self.prefix())
    }

    /// The network namespace of the n-th node.
    pub fn node_netns(&self, number: u8) -> String {
        format!("{}-node{number}", self.prefix())
    }

    /// Whether a network namespace of this name is this lab's, and not one of a lab whose name only begins alike.
    pub fn owns_netns(&self, netns: &str) -> bool {
        let rest = netns.strip_prefix(&self.prefix()).and_then(|rest| rest.strip_prefix('-'));
        rest.is_some_and(|rest| {
            let node = rest.strip_prefix("node");
            rest == "fabric"
                || node.is_some_and(|number| {
                    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_fit_everywhere_name_a_lab() {
        for good in ["lab", "a", "e2e-2", "abcdefghijklmnopqrst"] {
            assert!(good.parse::<LabName>().is_ok(), "{good}");
        }
        for bad in
            ["", "Lab", "1lab", "-lab", "lab-", "la b", "lab/x", "../x", "abcdefghijklmnopqrstu", "läb"]
        {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_lab_never_owns_the_namespaces_of_one_whose_name_begins_alike() {
        let lab: LabName = "lab".parse().unwrap();
        let other: LabName = "lab-two".parse().unwrap();
        assert!(lab.owns_netns(&lab.fabric()) && lab.owns_netns(&lab.node_netns(12)));
        assert!(!lab.owns_netns(&other.fabric()) && !lab.owns_netns(&other.node_netns(1)));
        assert!(!lab.owns_netns("ambit-lab-node") && !lab.owns_netns("ambit-lab-nodex"));
    }
}
