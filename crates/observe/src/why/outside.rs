//! Why one pod is outside the mesh, whomever it talks to: the node agent's own rules, as far as Kubernetes shows what
//! they ask for.

use super::{Code, explain};
use crate::directory::{Directory, Pod};
use crate::model::Why;
use crate::store::place::Place;

/// What keeps a pod out, the first there is. `host` and `other` are the codes for a pod of its node's network and for
/// one that nothing else is known of.
pub(super) fn obstacle(pod: &Pod, host: Code, other: Code) -> Option<Code> {
    match () {
        () if pod.host_network => Some(host),
        () if pod.mesh => Some(Code::MeshComponent),
        () if pod.opted_out => Some(Code::OptedOut),
        () if pod.enrolled => None,
        () if pod.sidecar => Some(Code::Sidecar),
        () if pod.excluded => Some(Code::NamespaceExcluded),
        () => Some(other),
    }
}

/// Why a pod is outside; none when it is in, and for pods of the mesh, which need not be.
pub fn code_outside(pod: &Pod) -> Option<Code> {
    obstacle(pod, Code::HostNetwork, Code::NotEnrolled).filter(|code| *code != Code::MeshComponent)
}

/// That code in words, for the pod at `place`.
pub fn outside(code: Code, place: &Place, directory: &Directory) -> Why {
    explain(code, place, place, &"".into(), "", directory)
}
