// What the observer said, put together: snapshot, then deltas. Owns the rows and the sequence they belong to;
// knows nothing of screens. Rows are replaced whole, so whoever kept one can compare by identity.

import type { Coverage, Delta, Edge, Graph, Level, Limits, Node, Proxy, Snapshot } from "../api/types.js";

export class GraphModel {
  sequence = "";
  at = 0;
  level: Level = "workload";
  nodes = new Map<string, Node>();
  edges = new Map<string, Edge>();
  coverage: Coverage | null = null;
  proxies: Proxy[] = [];
  limits: Limits | null = null;
  /** Grows whenever nodes come or go, or an edge does: the layout then has to look again. */
  shape = 0;
  dropped = 0;

  snapshot({ sequence, graph }: Snapshot): void {
    this.sequence = sequence;
    this.take(graph);
    this.level = graph.level;
    this.nodes = new Map(graph.nodes.map((node) => [node.id, node]));
    this.edges = new Map(graph.edges.map((edge) => [edge.id, edge]));
    this.shape += 1;
  }

  /** Applies a delta if it is one to what we have; otherwise changes nothing and says so. */
  delta(delta: Delta): boolean {
    if (delta.since !== this.sequence) return false;
    let shape = false;
    for (const node of delta.nodes) {
      const old = this.nodes.get(node.id);
      shape ||= !old || old.parent !== node.parent || old.hub !== node.hub;
      this.nodes.set(node.id, node);
    }
    for (const edge of delta.edges) {
      shape ||= !this.edges.has(edge.id);
      this.edges.set(edge.id, edge);
    }
    for (const id of delta.removed_nodes) shape = this.nodes.delete(id) || shape;
    for (const id of delta.removed_edges) shape = this.edges.delete(id) || shape;
    if (shape) this.shape += 1;
    this.sequence = delta.sequence;
    this.dropped = delta.dropped;
    this.take(delta);
    return true;
  }

  private take(from: Graph | Delta): void {
    this.at = from.at;
    this.coverage = from.coverage ?? this.coverage;
    this.proxies = from.proxies ?? this.proxies;
    this.limits = from.limits ?? this.limits;
  }
}
