// The find and hide boxes' language: words side by side must all hold, `or` parts alternatives, `-` or `not`
// negates. `ns:shop port:9090 -mtls<100`. Pure: text to predicate; an odd text is a plain word, never an error.

import type { Edge, Node, State } from "../api/types.js";

export type Lookup = (id: string) => Node | undefined;
type Term = (edge: Edge, ends: (Node | undefined)[]) => boolean;

export interface Query {
  empty: boolean;
  edge(edge: Edge): boolean;
  node(node: Node): boolean;
}

const STATES = new Set<string>(["proven", "one_sided", "contradiction", "mixed", "plaintext", "node_local", "denied", "failed", "idle"]);

export function parse(text: string, lookup: Lookup): Query {
  const alternatives = text.trim().toLowerCase().slice(0, 300).split(/\s+or\s+/).map(terms).filter((list) => list.length > 0);
  const onEdge = alternatives.map((list) => list.map(edgeTerm));
  const onNode = alternatives.map((list) => list.map(nodeTerm));
  return {
    empty: alternatives.length === 0,
    edge: (edge) => {
      const ends = [lookup(edge.source), lookup(edge.target)];
      return onEdge.some((list) => list.every((term) => term(edge, ends)));
    },
    node: (node) => onNode.some((list) => list.every((term) => term(node))),
  };
}

interface Word { negated: boolean; text: string }

function terms(text: string): Word[] {
  const words: Word[] = [];
  let negated = false;
  for (const part of text.split(/\s+/)) {
    if (part === "" || part === "and" || part === "or") continue;
    if (part === "not") {
      negated = !negated;
      continue;
    }
    const minus = part.length > 1 && part.startsWith("-");
    words.push({ negated: negated !== minus, text: minus ? part.slice(1) : part });
    negated = false;
  }
  return words;
}

function edgeTerm({ negated, text }: Word): Term {
  const plain = plainEdgeTerm(text);
  return negated ? (edge, ends) => !plain(edge, ends) : plain;
}

function plainEdgeTerm(text: string): Term {
  const mtls = /^mtls\s*(<|>|<=|>=|=)\s*(\d+(?:\.\d+)?)%?$/.exec(text);
  if (mtls) {
    const bound = Number(mtls[2]);
    return (edge) => edge.percent_mutual_tls !== null && compare(edge.percent_mutual_tls, mtls[1] ?? "=", bound);
  }
  if (text === "mtls" || text === "secure") return (edge) => edge.lock === "closed";
  if (text === "insecure" || text === "open") return (edge) => edge.lock === "open";
  if (text === "unproven") return (edge) => edge.lock === "unproven";
  if (text === "trunk" || text === "hub") return (edge) => edge.kind === "trunk";
  if (text === "stale") return (edge) => edge.stale_ms !== null;
  // Also where something was carried besides.
  if (text === "denied" || text === "failed") return (edge) => edge.connections[text] > 0 || edge.pairs[text] > 0;
  if (STATES.has(text)) return (edge) => edge.state === text || edge.pairs[text as State] > 0;
  const field = /^(ns|namespace|port|code|policy|id|kind|state|service)[:=](.+)$/.exec(text);
  if (field) {
    const value = field[2] ?? "";
    switch (field[1]) {
      case "ns":
      case "namespace":
        return (_, ends) => ends.some((end) => end?.namespace.toLowerCase() === value);
      case "port":
        return (edge) => edge.ports.some((port) => String(port) === value);
      case "code":
        return (edge) => edge.reasons.some((why) => why.code.toLowerCase().includes(value));
      case "policy":
        return (edge) => edge.policies.some((policy) => policy.toLowerCase().includes(value));
      case "id":
        return (edge) => edge.identities.some((pair) => `${pair.source} ${pair.destination}`.toLowerCase().includes(value));
      case "service":
        return (edge) => edge.services.some((service) => service.toLowerCase().includes(value));
      case "kind":
        return (edge) => edge.kind === value;
      default:
        return (edge) => edge.state === value;
    }
  }
  return (edge, ends) =>
    ends.some((end) => end !== undefined && nameHas(end, text)) ||
    edge.label.toLowerCase().includes(text) ||
    edge.reasons.some((why) => why.code.toLowerCase().includes(text)) ||
    edge.services.some((service) => service.toLowerCase().includes(text));
}

function nodeTerm({ negated, text }: Word): (node: Node) => boolean {
  const plain = plainNodeTerm(text);
  return negated ? (node) => !plain(node) : plain;
}

function plainNodeTerm(text: string): (node: Node) => boolean {
  if (STATES.has(text)) return (node) => node.state === text;
  if (text === "hub") return (node) => node.hub;
  if (text === "stale") return (node) => node.stale_ms !== null;
  const field = /^(ns|namespace|kind|state|id)[:=](.+)$/.exec(text);
  if (field) {
    const value = field[2] ?? "";
    if (field[1] === "kind") return (node) => node.kind === value;
    if (field[1] === "state") return (node) => node.state === value;
    if (field[1] === "id") return (node) => node.identities.some((identity) => identity.toLowerCase().includes(value));
    return (node) => node.namespace.toLowerCase() === value;
  }
  // A word about edges says nothing of nodes, so no node is found by it.
  if (/^(mtls|port|code|policy|service)\b/.test(text) || ["secure", "insecure", "open", "unproven", "trunk"].includes(text)) return () => false;
  return (node) => nameHas(node, text);
}

function nameHas(node: Node, text: string): boolean {
  return node.name.toLowerCase().includes(text) || `${node.namespace}/${node.name}`.toLowerCase().includes(text)
    || (node.address ?? "").includes(text);
}

function compare(value: number, operator: string, bound: number): boolean {
  switch (operator) {
    case "<": return value < bound;
    case ">": return value > bound;
    case "<=": return value <= bound;
    case ">=": return value >= bound;
    default: return value === bound;
  }
}
