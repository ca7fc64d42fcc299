// The words of security, in one place: what a state is called, what it means, and which of four tones it has.
// Colour never stands alone: each tone has a lock of its own shape and a line of its own dash.

import type { Coverage, Edge, Lock, Measure, Node, Proof, State } from "../api/types.js";
import type { Sign } from "../parts/glyphs.js";

export type Tone = "proven" | "open" | "unproven" | "denied" | "quiet";

export const STATE: Record<State, { word: string; tone: Tone; meaning: string }> = {
  proven: { word: "mutual TLS", tone: "proven", meaning: "Both node proxies saw mutual TLS with the same two identities, and nothing else." },
  one_sided: { word: "one-sided", tone: "unproven", meaning: "One node proxy saw mutual TLS, the other said nothing. Not proven." },
  contradiction: { word: "contradiction", tone: "unproven", meaning: "The two node proxies disagree on how it was secured or on who spoke. Not proven." },
  mixed: { word: "partly plaintext", tone: "open", meaning: "Some of it was mutual TLS, some was plaintext." },
  plaintext: { word: "plaintext", tone: "open", meaning: "It crossed the network unencrypted." },
  node_local: { word: "within a node", tone: "quiet", meaning: "It crossed no wire." },
  denied: { word: "denied", tone: "denied", meaning: "A policy refused it; nothing was carried." },
  failed: { word: "failed", tone: "denied", meaning: "It could not be carried; nothing was carried." },
  idle: { word: "idle", tone: "quiet", meaning: "Nothing moved in this window." },
};

export const PROOF: Record<Proof, { word: string; tone: Tone; meaning: string }> = {
  proven: { word: "Proven", tone: "proven", meaning: "Both node proxies saw this very scrape as mutual TLS, with the same two identities." },
  one_sided: { word: "One-sided", tone: "unproven", meaning: "Only one node proxy saw this scrape." },
  unproven: { word: "Unproven", tone: "unproven", meaning: "Nothing proves how this scrape travelled." },
  plaintext: { word: "Plaintext", tone: "open", meaning: "This scrape crossed the network unencrypted." },
  denied: { word: "Denied", tone: "denied", meaning: "A policy refused this scrape." },
};

export const LOCK: Record<Lock, string> = {
  closed: "closed lock: every byte is proven mutual TLS",
  open: "open lock: plaintext",
  unproven: "unproven",
  none: "nothing carried",
};

export function tone(state: State): Tone {
  return STATE[state]?.tone ?? "unproven";
}

/** Tone of an edge: its lock decides, since a trunk that is all proven but for a denied one carries only mutual TLS. */
export function edgeTone(edge: Edge): Tone {
  if (edge.lock === "closed") return "proven";
  if (edge.lock === "open") return "open";
  if (edge.lock === "unproven") return "unproven";
  return tone(edge.state);
}

/** The one number of a coverage: of bytes, or of pairs while there are some whose bytes nobody counted. */
export function headline({ by_bytes, by_pairs, uncounted_pairs }: Coverage): { of: "bytes" | "pairs"; measure: Measure; tone: Tone; sign: Sign } {
  const of = uncounted_pairs > 0 ? "pairs" : "bytes";
  const measure = of === "pairs" ? by_pairs : by_bytes;
  const all = measure.percent === 100 && by_pairs.percent === 100;
  const tone: Tone = measure.total === 0 ? "quiet" : all ? "proven" : by_bytes.plaintext + by_pairs.plaintext > 0 ? "open" : "unproven";
  const some = measure.proven > 0 ? "half" : "open";
  return { of, measure, tone, sign: tone === "proven" ? "closed" : tone === "quiet" ? "none" : tone === "open" ? some : "one_sided" };
}

/** Name of a node for people: namespace/name where that is more than the name. */
export function fullName(node: Node): string {
  return node.kind === "namespace" || node.kind === "outside" || !node.namespace ? node.name : `${node.namespace}/${node.name}`;
}

/** The same from an id alone, for rows whose node is not in view. */
export function nameOfId(id: string): string {
  const colon = id.indexOf(":");
  const rest = id.slice(colon + 1).split("/").map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return rest.join("/");
}

/** A node in one sentence, for those who hear it. */
export function describe(node: Node): string {
  const kind = node.kind === "outside" ? "outside the mesh" : node.kind;
  const where = node.namespace && node.kind !== "namespace" ? `, namespace ${node.namespace}` : "";
  const pods = node.kind === "pod" || node.kind === "outside" ? "" : `, ${node.pods} ${node.pods === 1 ? "pod" : "pods"}`;
  const enrolled = node.pods_enrolled !== null && node.pods_enrolled < node.pods
    ? `, ${node.pods - node.pods_enrolled} not in the mesh` : "";
  const stale = node.stale_ms === null ? "" : ", data is old";
  return `${node.name}, ${kind}${where}${pods}${enrolled}, ${STATE[node.state]?.word ?? node.state}${stale}`;
}
