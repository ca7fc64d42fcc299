// Rows for the tests, with only what a test cares about spelled out.

import type { Edge, Graph, Node, State } from "../../src/api/types.js";
import { GraphModel } from "../../src/model/model.js";

export function node(id: string, more: Partial<Node> = {}): Node {
  const [kind, rest = ""] = id.split(":") as [string, string?];
  const [namespace = "", name = namespace] = rest.split("/");
  return {
    id, name, namespace: kind === "out" ? "" : namespace,
    kind: ({ ns: "namespace", wl: "workload", pod: "pod", out: "outside" } as const)[kind as "ns"],
    parent: kind === "ns" || kind === "out" ? null : `ns:${namespace}`,
    hub: false, pods: 1, pods_enrolled: 1, identities: [], state: "proven", stale_ms: null, ...more,
  };
}

export function edge(source: string, target: string, more: Partial<Edge> = {}): Edge {
  const state = more.state ?? "proven";
  const pairs = Object.fromEntries(["proven", "one_sided", "contradiction", "mixed", "plaintext", "node_local", "denied", "failed", "idle"].map((s) => [s, s === state ? 1 : 0])) as Record<State, number>;
  return {
    id: `${source}>${target}`, kind: "edge", source, target, state,
    lock: state === "proven" ? "closed" : state === "plaintext" || state === "mixed" ? "open" : state === "denied" || state === "idle" ? "none" : "unproven",
    label: "mTLS", pairs: { total: 1, ...pairs },
    bytes: { sent: 100, received: 10, proven: 110, plaintext: 0, unproven: 0, node_local: 0 },
    percent_mutual_tls: state === "proven" ? 100 : 0, rate: { sent: 10, received: 1, opened: 0 },
    connections: { opened: 1, closed: 0, failed: 0, denied: 0, open_now: 1 },
    ports: [8080], services: [], identities: [], reasons: [], policies: [], exceptions: [], last_activity: 1, stale_ms: null, unseen: 0, ...more,
  };
}

const measure = { total: 0, proven: 0, unproven: 0, plaintext: 0, percent: null };

export function graph(nodes: Node[], edges: Edge[], level: Graph["level"] = "workload"): Graph {
  return {
    at: 1, window_seconds: 300, level, nodes, edges, proxies: [],
    coverage: { by_bytes: measure, by_connections: measure, by_pairs: measure, denied: 0, failed: 0, uncounted_pairs: 0, denominator: "" },
    limits: { workloads: 0, namespaces: 0, pods: 0, pairs: 0, edges_left_out: 0, pairs_refused: 0, rows_lost_by_proxies: 0 },
  };
}

export function model(nodes: Node[], edges: Edge[], level: Graph["level"] = "workload"): GraphModel {
  const made = new GraphModel();
  made.snapshot({ sequence: "e-1", graph: graph(nodes, edges, level) });
  return made;
}

/** A mesh of so many namespaces with so many workloads each, all scraped by one hub. */
export function mesh(namespaces: number, workloads: number): { nodes: Node[]; edges: Edge[] } {
  const nodes = [node("ns:monitoring"), node("wl:monitoring/prometheus", { hub: true })];
  const edges: Edge[] = [];
  for (let n = 0; n < namespaces; n++) {
    const ns = `n${String(n).padStart(3, "0")}`;
    nodes.push(node(`ns:${ns}`));
    for (let w = 0; w < workloads; w++) {
      nodes.push(node(`wl:${ns}/w${w}`));
      if (w > 0) edges.push(edge(`wl:${ns}/w${Math.floor((w - 1) / 2)}`, `wl:${ns}/w${w}`));
    }
    edges.push(edge("wl:monitoring/prometheus", `ns:${ns}`, { kind: "trunk", id: `trunk:wl:monitoring/prometheus>ns:${ns}`, label: `${workloads}/${workloads} mTLS` }));
  }
  return { nodes, edges };
}
