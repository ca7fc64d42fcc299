// The inside of a namespace: callers left, called right. Layers along the calls (cycles are cut where the names come
// first), long layers folded, each ordered by where its callers stand, so that lines cross little. O(nodes + edges).

import type { Edge, Node } from "../api/types.js";

export function columns(members: Node[], edges: Edge[]): Node[][] {
  const tall = Math.max(3, Math.ceil(Math.sqrt(members.length * 1.6)));
  if (members.length > 60 || edges.length === 0) return fold(members, tall);
  const layer = layers(members, edges);
  const rows: Node[][] = [];
  for (const node of members) {
    const at = node.hub ? -1 : layer.get(node.id) ?? 0;
    if (at >= 0) (rows[at] ??= []).push(node);
  }
  const ordered: Node[][] = [];
  const rank = new Map<string, number>();
  const callers = new Map<string, string[]>();
  for (const edge of edges) {
    const list = callers.get(edge.target);
    if (list) list.push(edge.source);
    else callers.set(edge.target, [edge.source]);
  }
  for (const row of rows) {
    if (!row) continue;
    const weight = new Map(row.map((node, i) => {
      const above = (callers.get(node.id) ?? []).flatMap((id) => rank.get(id) ?? []);
      return [node.id, above.length > 0 ? above.reduce((a, b) => a + b, 0) / above.length : i / row.length];
    }));
    const sorted = row.map((node, i) => ({ node, i })).sort((a, b) =>
      (weight.get(a.node.id) ?? 0) - (weight.get(b.node.id) ?? 0) || a.i - b.i).map(({ node }) => node);
    sorted.forEach((node, i) => rank.set(node.id, i / sorted.length));
    ordered.push(...fold(sorted, tall));
  }
  const hubs = members.filter((node) => node.hub);
  if (hubs.length > 0) ordered.push(hubs);
  return ordered;
}

function fold(members: Node[], tall: number): Node[][] {
  const parts = Math.ceil(members.length / tall);
  const each = Math.ceil(members.length / Math.max(1, parts));
  const result: Node[][] = [];
  for (let i = 0; i < members.length; i += each) result.push(members.slice(i, i + each));
  return result;
}

/** Longest path from those that nobody calls, back edges left out. Few layers: a box should be no ribbon. */
function layers(members: Node[], edges: Edge[]): Map<string, number> {
  const next = new Map<string, string[]>(members.map((node) => [node.id, []]));
  const called = new Set<string>();
  for (const edge of edges) {
    next.get(edge.source)?.push(edge.target);
    called.add(edge.target);
  }
  const order: string[] = [];
  const mark = new Map<string, "open" | "done">();
  const back = new Set<string>();
  const starts = [...members].sort((a, b) => Number(called.has(a.id)) - Number(called.has(b.id)));
  for (const start of starts) {
    if (mark.has(start.id)) continue;
    const stack: { id: string; i: number }[] = [{ id: start.id, i: 0 }];
    mark.set(start.id, "open");
    for (let top = stack.at(-1); top; top = stack.at(-1)) {
      const to = next.get(top.id)?.[top.i++];
      if (to === undefined) {
        mark.set(top.id, "done");
        order.push(top.id);
        stack.pop();
      } else if (mark.get(to) === "open") {
        back.add(`${top.id} ${to}`);
      } else if (!mark.has(to)) {
        mark.set(to, "open");
        stack.push({ id: to, i: 0 });
      }
    }
  }
  const deepest = Math.max(1, Math.round(Math.sqrt(members.length) * 0.9) - 1);
  const layer = new Map<string, number>();
  for (const id of order.reverse()) {
    const own = layer.get(id) ?? 0;
    layer.set(id, own);
    for (const to of next.get(id) ?? []) {
      if (!back.has(`${id} ${to}`)) layer.set(to, Math.min(deepest, Math.max(layer.get(to) ?? 0, own + 1)));
    }
  }
  return layer;
}
