//! What the mesh saw.
