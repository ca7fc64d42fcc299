//! The ports the mesh itself uses inside a pod (reference/data-plane.md §1).

/// Inbound HBONE, dialled directly at `podIP:15008` and never redirected.
pub const HBONE_PORT: u16 = 15008;
/// Captured inbound plaintext.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// Captured outbound connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// Ports that no application can be reached at through the mesh.
pub const MESH_PORTS: [u16; 3] = [HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT];
