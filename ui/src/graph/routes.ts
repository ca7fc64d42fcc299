// How lines run between places: trunks by the bus and the lanes, calls as curves. Pure; depends on the layout alone,
// so a line moves only when one of its ends does.

import type { Edge } from "../api/types.js";
import { at, centre, cubic, rounded, track, type Point, type Rect, type Track } from "./geometry.js";
import type { Box, Layout, Spot } from "./layout.js";

export interface Route {
  line: Track;
  /** Where its lock stands. */
  badge: Point;
  trunk: boolean;
  /** Nothing to draw: it begins and ends in the same card, which says it itself. */
  within: boolean;
}

export function routes(layout: Layout, edges: Iterable<Edge>): Map<string, Route> {
  const result = new Map<string, Route>();
  // One rank a hub, so that two of them run side by side instead of on one another.
  const hubs = new Map<string, number>();
  for (const edge of edges) {
    const from = layout.spots.get(edge.source);
    if (edge.kind === "trunk") {
      const box = layout.boxes.get(edge.target);
      if (!from || !box) continue;
      const rank = hubs.get(edge.source) ?? hubs.size;
      hubs.set(edge.source, rank);
      result.set(edge.id, trunk(layout, from, box, rank));
      continue;
    }
    const to = layout.spots.get(edge.target);
    if (from && to) result.set(edge.id, call(layout, from, to));
  }
  return result;
}

/** Half of what a trunk's sign measures: it stands on the edge of the box, at its right end. */
const SIGN = 62;

function trunk(layout: Layout, from: Spot, box: Box, rank: number): Route {
  const shift = rank * 9;
  const bus = layout.bus - shift, lane = box.lane - shift;
  const port = box.x + box.w - SIGN - rank * 2 * SIGN;
  const start = { x: from.x + from.w, y: centre(from).y + shift };
  const line = track(rounded([
    start, { x: bus, y: start.y }, { x: bus, y: lane }, { x: port, y: lane }, { x: port, y: box.y },
  ], 14));
  return { line, badge: { x: port, y: box.y }, trunk: true, within: false };
}

function call(layout: Layout, from: Spot, to: Spot): Route {
  if (from.id === to.id) {
    if (from.shape === "card") return { line: track([centre(from), centre(from)]), badge: centre(from), trunk: false, within: true };
    const x = from.x + from.w - 26, y = from.y;
    const loop = track(cubic({ x: x - 10, y }, { x: x - 22, y: y - 26 }, { x: x + 22, y: y - 26 }, { x: x + 10, y }));
    return { line: loop, badge: at(loop, loop.length / 2), trunk: false, within: false };
  }
  const line = track(curve(layout, from, to));
  return { line, badge: at(line, line.length / 2), trunk: false, within: false };
}

function curve(layout: Layout, from: Spot, to: Spot): Point[] {
  const a = centre(from), b = centre(to);
  const gapX = Math.max(to.x - (from.x + from.w), from.x - (to.x + to.w));
  const gapY = Math.max(to.y - (from.y + from.h), from.y - (to.y + to.h));
  // A little aside of the middle, so that there and back are two lines.
  const aside = from.shape === "tile" || to.shape === "tile" ? 0 : 7;
  if (gapX < 12 && from.box === to.box && from.shape !== "card") {
    const down = b.y > a.y ? 1 : -1;
    const side = a.x <= b.x ? 1 : -1;
    const x1 = a.x + (side * from.w) / 2, x2 = b.x + (side * to.w) / 2;
    const far = side * Math.min(46, 22 + gapY * 0.12);
    return cubic({ x: x1, y: a.y + 5 * down }, { x: x1 + far, y: a.y + 5 * down }, { x: x2 + far, y: b.y - 5 * down }, { x: x2, y: b.y - 5 * down });
  }
  if (gapX >= gapY || from.box === to.box) {
    const right = b.x > a.x ? 1 : -1;
    const x1 = a.x + (right * from.w) / 2, x2 = b.x - (right * to.w) / 2;
    const pull = Math.max(24, Math.abs(x2 - x1) * 0.45) * right;
    const y1 = a.y + aside * right * 0.6, y2 = b.y + aside * right * 0.6;
    // Along a shelf of cards a straight line would run through those between: it bows below them.
    const bow = from.shape === "card" && Math.abs(y2 - y1) < 4 && passes(layout, from, to, a, b) ? from.h * 0.95 * right : 0;
    if (bow !== 0) {
      const y = bow > 0 ? from.y + from.h : from.y, z = bow > 0 ? to.y + to.h : to.y;
      const x = a.x + right * from.w * 0.2, xx = b.x - right * to.w * 0.2;
      return cubic({ x, y }, { x: x + pull * 0.5, y: y + bow * 0.62 }, { x: xx - pull * 0.5, y: z + bow * 0.62 }, { x: xx, y: z });
    }
    return cubic({ x: x1, y: y1 }, { x: x1 + pull, y: y1 }, { x: x2 - pull, y: y2 }, { x: x2, y: y2 });
  }
  const down = b.y > a.y ? 1 : -1;
  const y1 = a.y + (down * from.h) / 2, y2 = b.y - (down * to.h) / 2;
  const pull = Math.max(24, Math.abs(y2 - y1) * 0.5) * down;
  const x1 = a.x - aside * down * 1.4, x2 = b.x - aside * down * 1.4;
  return cubic({ x: x1, y: y1 }, { x: x1, y: y1 + pull }, { x: x2, y: y2 - pull }, { x: x2, y: y2 });
}

function passes(layout: Layout, from: Spot, to: Spot, a: Point, b: Point): boolean {
  const left = Math.min(a.x, b.x), right = Math.max(a.x, b.x);
  for (const box of layout.boxes.values()) {
    if (box.id === from.box || box.id === to.box) continue;
    const r: Rect = box;
    if (r.x < right && r.x + r.w > left && r.y < a.y && r.y + r.h > a.y) return true;
  }
  return false;
}
