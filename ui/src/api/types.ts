// The observer's answers, as its OpenAPI description has them (crates/observe/src/openapi.json). Texts from a
// cluster are hostile until shown as text; nothing here is ever made into markup.

export type State =
  | "proven" | "one_sided" | "contradiction" | "mixed" | "plaintext"
  | "node_local" | "denied" | "failed" | "idle";
export type Lock = "closed" | "open" | "unproven" | "none";
export type Level = "namespace" | "workload" | "pod";
export type Proof = "proven" | "one_sided" | "plaintext" | "denied" | "unproven";

export interface Why {
  code: string;
  reason: string;
  text: string;
  fix: string;
  command: string;
  count: number;
}

export interface Node {
  id: string;
  kind: "namespace" | "workload" | "pod" | "outside";
  name: string;
  namespace: string;
  parent: string | null;
  workload_type?: string;
  node?: string;
  address?: string;
  hub: boolean;
  mesh?: boolean;
  pods: number;
  pods_enrolled: number | null;
  identities: string[];
  /** Why pods of it are not in the mesh; absent when all are. */
  outside?: Why[];
  state: State;
  stale_ms: number | null;
}

export interface PairCounts extends Record<State, number> { total: number }
export interface Bytes { sent: number; received: number; proven: number; plaintext: number; unproven: number; node_local: number }
export interface Connections { opened: number; closed: number; failed: number; denied: number; open_now: number }
export interface Exception { source: string; target: string; port: number; state: State; code: string; bytes: number }

export interface Edge {
  id: string;
  kind: "edge" | "trunk";
  source: string;
  target: string;
  state: State;
  lock: Lock;
  label: string;
  pairs: PairCounts;
  bytes: Bytes;
  percent_mutual_tls: number | null;
  rate: { sent: number; received: number; opened: number };
  connections: Connections;
  ports: number[];
  services: string[];
  identities: { source: string; destination: string }[];
  reasons: Why[];
  policies: string[];
  exceptions: Exception[];
  last_activity: number | null;
  stale_ms: number | null;
  /** Pairs known from Prometheus alone; nobody counted their bytes. */
  unseen: number;
}

export interface Measure { total: number; proven: number; unproven: number; plaintext: number; percent: number | null }
export interface Coverage {
  by_bytes: Measure;
  by_connections: Measure;
  by_pairs: Measure;
  denied: number;
  failed: number;
  /** Plaintext pairs whose bytes nobody counted. While there are any, by_pairs is the measure to show first. */
  uncounted_pairs: number;
  denominator: string;
}
export interface Proxy {
  node: string;
  pod: string;
  identity: string;
  connected: boolean;
  last_heard: number;
  stale_ms: number | null;
  clock_skew_ms: number;
  pairs: number;
  pairs_refused: number;
  rows_lost: number;
  problems: string[];
}
export interface Limits {
  workloads: number;
  namespaces: number;
  pods: number;
  pairs: number;
  edges_left_out: number;
  pairs_refused: number;
  rows_lost_by_proxies: number;
}
export interface Graph {
  at: number;
  window_seconds: number;
  level: Level;
  nodes: Node[];
  edges: Edge[];
  coverage: Coverage;
  proxies: Proxy[];
  limits: Limits;
}
export interface Snapshot { sequence: string; graph: Graph }
export interface Delta {
  sequence: string;
  since: string;
  at: number;
  nodes: Node[];
  edges: Edge[];
  removed_nodes: string[];
  removed_edges: string[];
  /** These three are null while they have not changed. */
  coverage: Coverage | null;
  proxies: Proxy[] | null;
  limits: Limits | null;
  dropped: number;
}

export interface ProofCounts { total: number; proven: number; one_sided: number; plaintext: number; denied: number; unproven: number; up: number }
export interface Prometheus {
  id: string;
  url: string;
  identity: string;
  enrolled: boolean | null;
  reachable: boolean;
  error: string;
  polled_at: number | null;
  summary: ProofCounts;
}
export interface FlowRecord {
  reporter: "source" | "destination";
  proxy_node: string;
  proxy_pod?: string;
  security: "mutual_tls" | "plaintext" | "node_local" | "unknown";
  verdict: "allowed" | "denied" | "failed";
  reason: string;
  policy: string;
  source_identity: string;
  destination_identity: string;
  source_proven: boolean;
  destination_proven: boolean;
  service: string;
  sent: number;
  received: number;
  opened: number;
  closed: number;
  failed: number;
  open_now: number;
  last_activity: number | null;
}
export interface Target {
  id: string;
  prometheus: string;
  pool: string;
  scrape_url: string;
  address: string;
  health: "up" | "down" | "unknown";
  last_error: string;
  last_scrape: number | null;
  last_scrape_duration_ms: number;
  scrape_interval_ms: number;
  proof: Proof;
  namespace: string;
  pod: string;
  workload: string;
  node?: string;
  target_id?: string;
  source_identity: string;
  destination_identity: string;
  why: Why | null;
  notes: Why[];
  evidence: { from: number | null; to: number | null; records: FlowRecord[]; text: string };
}
export interface Targets { at: number; prometheis: Prometheus[]; summary: ProofCounts; total: number; targets: Target[] }

export interface Finding {
  source: string;
  target: string;
  source_name: string;
  target_name: string;
  ports: number[];
  why: Why;
  policy: string;
  /** Workloads that were called; more than one and target is their namespace. */
  targets: number;
  pairs: number;
  bytes: number;
  connections: number;
  last_activity: number | null;
}
export interface NamespaceRow {
  id: string;
  name: string;
  labelled: boolean | null;
  pods: number | null;
  pods_enrolled: number | null;
  pods_host_network?: number | null;
  coverage: Measure;
  denied: number;
  sparkline: number[];
}
export interface Blind {
  known: boolean;
  pods_enrolled: number;
  pods_not_enrolled: number;
  pods_host_network: number;
  namespaces_not_enrolled: string[];
  silent_nodes: string[];
  text: string;
}
export interface Hint { code: string; text: string; command: string }
export interface Overview {
  at: number;
  window_seconds: number;
  coverage: Coverage;
  plaintext: Finding[];
  unproven: Finding[];
  denied: Finding[];
  failed: Finding[];
  namespaces: NamespaceRow[];
  scrapes: ProofCounts;
  prometheis?: Prometheus[];
  blind: Blind;
  proxies: Proxy[];
  limits: Limits;
  hints: Hint[];
}

export interface End {
  id: string;
  workload_id?: string;
  namespace: string;
  pod: string;
  workload: string;
  address: string;
  node: string;
  enrolled: boolean;
}
export interface Pair {
  source: End;
  target: End;
  port: number;
  state: State;
  lock: Lock;
  why: Why | null;
  bytes: Bytes;
  connections: Connections;
  records: FlowRecord[];
  last_activity: number | null;
  stale_ms: number | null;
  unseen: boolean;
}
export interface Pairs { at: number; window_seconds: number; total: number; pairs: Pair[] }
