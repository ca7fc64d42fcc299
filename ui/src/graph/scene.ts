// What is to be painted: layout, routes and rows joined, with what find, hide and selection make of them. Plain data;
// rebuilt when one of its sources changes, never a frame.

import type { Edge, Node } from "../api/types.js";
import type { Query } from "../model/find.js";
import type { GraphModel } from "../model/model.js";
import { edgeTone, tone as stateTone, type Tone } from "../model/words.js";
import { edgeSign, type Sign } from "../parts/glyphs.js";
import { layout, type Box, type Layout, type Memory, type Spot } from "./layout.js";
import { routes, type Route } from "./routes.js";

export interface SceneEdge {
  edge: Edge;
  route: Route;
  tone: Tone;
  sign: Sign;
  faded: boolean;
  strong: boolean;
  dots: number;
  /** In order, and a call to itself or one of many: left out until somebody points at one of its ends. */
  calm: boolean;
}
export interface SceneNode { node: Node; spot: Spot; tone: Tone; faded: boolean; strong: boolean }
export interface SceneBox { node: Node | undefined; box: Box; tone: Tone; faded: boolean; within: SceneEdge | undefined }

export interface Scene {
  layout: Layout;
  edges: SceneEdge[];
  nodes: SceneNode[];
  boxes: SceneBox[];
  /** Something is picked or searched: the rest steps back. */
  focused: boolean;
}

/** With more lines than this, those that are in order and leave their namespace wait until they are asked for. */
const MANY = 220;

export interface View { find: Query; hide: Query; selected: string | null; hovered: string | null }

/** The places, kept while neither nodes nor edges come or go. */
export class Places {
  private readonly memory: { of: Memory };
  private shape = -1;
  private cached: { layout: Layout; routes: Map<string, Route> } | null = null;

  constructor(memory: Memory) {
    this.memory = { of: memory };
  }

  of(model: GraphModel): { layout: Layout; routes: Map<string, Route> } {
    if (!this.cached || this.shape !== model.shape) {
      const places = layout(model.level, model.nodes, model.edges.values(), this.memory.of);
      this.cached = { layout: places, routes: routes(places, sorted(model.edges)) };
      this.shape = model.shape;
    }
    return this.cached;
  }

  forget(memory: Memory): void {
    this.memory.of = memory;
    this.cached = null;
  }
}

function sorted(edges: Map<string, Edge>): Edge[] {
  return [...edges.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
}

export function scene(model: GraphModel, places: Places, view: View): Scene {
  const { layout, routes } = places.of(model);
  const focus = view.selected ?? null;
  const searching = !view.find.empty;
  const near = new Set<string>();
  const withinOf = new Map<string, SceneEdge>();
  const edges: SceneEdge[] = [];
  const many = model.edges.size > MANY;

  for (const edge of model.edges.values()) {
    const route = routes.get(edge.id);
    if (!route) continue;
    if (!view.hide.empty && (view.hide.edge(edge) || hiddenEnd(model, view.hide, edge))) continue;
    const touches = focus !== null && (edge.id === focus || touchesNode(model, edge, focus));
    const pointed = view.hovered !== null && (edge.id === view.hovered || many && touchesNode(model, edge, view.hovered));
    const found = searching && view.find.edge(edge);
    const strong = touches || found || pointed;
    if (touches || found) {
      near.add(edge.source);
      near.add(edge.target);
    }
    const tone = edgeTone(edge);
    const entry: SceneEdge = {
      edge, route, tone, sign: edgeSign(edge), strong,
      faded: !strong && (focus !== null || searching),
      dots: dots(edge),
      calm: !strong && !route.trunk && (tone === "proven" || tone === "quiet") && (edge.source === edge.target || many && apart(layout, edge)),
    };
    if (route.within) withinOf.set(edge.target, entry);
    else edges.push(entry);
  }
  // What is not in order is painted last, so that it lies on top.
  edges.sort((a, b) => Number(a.strong) - Number(b.strong) || weight(a.tone) - weight(b.tone) || (a.edge.id < b.edge.id ? -1 : 1));

  const nodes: SceneNode[] = [];
  for (const spot of layout.spots.values()) {
    const node = model.nodes.get(spot.id);
    if (!node || spot.shape === "card") continue;
    if (!view.hide.empty && view.hide.node(node)) continue;
    const strong = node.id === focus || node.id === view.hovered || (searching && view.find.node(node)) || inBox(model, node, focus);
    nodes.push({ node, spot, tone: stateTone(node.state), strong, faded: !strong && !isNear(model, near, node) && (focus !== null || searching) });
  }
  const boxes: SceneBox[] = [];
  for (const box of layout.boxes.values()) {
    const node = model.nodes.get(box.id);
    if (node && box.card && !view.hide.empty && view.hide.node(node)) continue;
    const strong = box.id === focus || box.id === view.hovered || near.has(box.id) || (node !== undefined && searching && view.find.node(node));
    boxes.push({ node, box, tone: stateTone(node?.state ?? "idle"), faded: box.card && !strong && (focus !== null || searching), within: withinOf.get(box.id) });
  }
  return { layout, edges, nodes, boxes, focused: focus !== null || searching };
}

/** Whether a line leaves its box, or runs between tiles, where a thousand of them would be a veil. */
function apart(layout: Layout, edge: Edge): boolean {
  const from = layout.spots.get(edge.source), to = layout.spots.get(edge.target);
  return from?.box !== to?.box || from?.shape === "tile";
}

function hiddenEnd(model: GraphModel, hide: Query, edge: Edge): boolean {
  return [edge.source, edge.target].some((id) => {
    const node = model.nodes.get(id);
    return node !== undefined && node.kind !== "namespace" && hide.node(node);
  });
}

/** An edge belongs to a node, to the box that its end stands in, and to the workload that its pod is of. */
function touchesNode(model: GraphModel, edge: Edge, id: string): boolean {
  for (const end of [edge.source, edge.target]) {
    let at: string | null | undefined = end;
    for (let depth = 0; at && depth < 4; depth++) {
      if (at === id) return true;
      at = model.nodes.get(at)?.parent;
    }
  }
  return false;
}

/** A line to a namespace concerns all that stands in it. */
function isNear(model: GraphModel, near: Set<string>, node: Node): boolean {
  if (near.has(node.id)) return true;
  if (node.parent === null) return false;
  if (near.has(node.parent)) return true;
  const above = model.nodes.get(node.parent)?.parent;
  return above != null && near.has(above);
}

function inBox(model: GraphModel, node: Node, id: string | null): boolean {
  if (id === null || node.parent === null) return false;
  return node.parent === id || model.nodes.get(node.parent)?.parent === id;
}

function weight(tone: Tone): number {
  return { quiet: 0, proven: 1, denied: 2, unproven: 3, open: 4 }[tone];
}

/** How many travellers a line carries: one more for each tenfold of bytes a second, none if nothing moves. */
function dots(edge: Edge): number {
  const rate = edge.rate.sent + edge.rate.received;
  if (rate <= 0 || edge.lock === "none" && edge.state !== "node_local") return 0;
  return Math.max(1, Math.min(6, Math.floor(Math.log10(rate + 1))));
}
