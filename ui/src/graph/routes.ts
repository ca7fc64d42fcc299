// How lines run between places: trunks by the bus and the lanes, calls as curves. Pure; depends on the layout alone,
// so a line moves only when one of its ends does.

import type { Edge } from "../api/types.js";
import { at, centre, cubic, rounded, track, type Point, type Rect, type Track } from "./geometry.js";
import type { Box, Layout, Spot } from "./layout.js";

export interface Route {
  line: Track;
  /** Beside the line of a trunk: where what is not in order runs, so that it hides nothing that is. */
  strand: Track;
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
  spread(layout, result);
  return result;
}

/** A sign sits astride the border of its box, a little above, so that the name below it stays whole. */
const SIGN_ABOVE = 5;
const CELL = 12;
/** Where on its line a lock may stand, the best place first. */
const PARTS = [0.5];
for (let aside = 0.04; aside < 0.45; aside += 0.04) PARTS.push(0.5 - aside, 0.5 + aside);

/** Moves locks along their lines so that they stand neither on one another nor on a node, where that can be had. */
function spread(layout: Layout, all: Map<string, Route>): void {
  const nodes = new Set<number>(), taken = new Set<number>();
  const cell = (x: number, y: number): number => Math.round(x / CELL) * 100_003 + Math.round(y / CELL);
  for (const spot of layout.spots.values()) {
    for (let x = spot.x - 4; x <= spot.x + spot.w + 4; x += CELL) {
      for (let y = spot.y - 4; y <= spot.y + spot.h + 4; y += CELL) nodes.add(cell(x, y));
      nodes.add(cell(x, spot.y + spot.h + 4));
    }
  }
  // The name of a box stands in its upper left corner.
  for (const box of layout.boxes.values()) {
    for (let x = box.x + 8; x <= box.x + Math.min(box.w, 44 + box.id.length * 8); x += CELL) {
      for (const y of [8, 20, 32]) nodes.add(cell(x, box.y + y));
    }
  }
  for (const route of all.values()) {
    if (route.trunk) for (let x = -50; x <= 50; x += CELL) for (const y of [-CELL, 0, CELL]) taken.add(cell(route.badge.x + x, route.badge.y + y));
  }
  for (const route of all.values()) {
    if (route.trunk || route.within || route.line.length < 30) continue;
    // From the middle outwards. Beside other signs where there is room, else on one of them: a name is never hidden.
    const free = PARTS.map((part) => at(route.line, route.line.length * part)).filter((p) => !nodes.has(cell(p.x, p.y)));
    const place = free.find((p) => !taken.has(cell(p.x, p.y))) ?? free[0];
    if (place) route.badge = { x: place.x, y: place.y };
    const { x, y } = route.badge;
    for (let dx = -2; dx <= 2; dx++) {
      for (let dy = -2; dy <= 2; dy++) if (Math.abs(dx) + Math.abs(dy) <= 3) taken.add(cell(x + dx * CELL, y + dy * CELL));
    }
  }
}

/** Half of what a trunk's sign measures: it stands on the edge of the box, at its right end. */
const SIGN = 68;

function trunk(layout: Layout, from: Spot, box: Box, rank: number): Route {
  const port = box.x + box.w - SIGN - rank * 2 * SIGN;
  const y = centre(from).y;
  const path = (shift: number, aside: number): Track => {
    const bus = layout.bus - shift, lane = box.lane - shift;
    const start = { x: from.x + from.w, y: y + (lane < y ? -aside : aside) };
    return track(rounded([
      start, { x: bus, y: start.y }, { x: bus, y: lane }, { x: port + aside, y: lane }, { x: port + aside, y: box.y },
    ], 14));
  };
  return { line: path(rank * 14, rank * 5), strand: path(rank * 14 + 6, 6 + rank * 5), badge: { x: port, y: box.y - SIGN_ABOVE }, trunk: true, within: false };
}

function call(layout: Layout, from: Spot, to: Spot): Route {
  if (from.id === to.id) {
    if (from.shape === "card") return { ...plain(track([centre(from), centre(from)])), badge: centre(from), trunk: false, within: true };
    const x = from.x + from.w - 26, y = from.y;
    const loop = track(cubic({ x: x - 10, y }, { x: x - 22, y: y - 26 }, { x: x + 22, y: y - 26 }, { x: x + 10, y }));
    return { ...plain(loop), badge: at(loop, loop.length / 2), trunk: false, within: false };
  }
  const line = track(curve(layout, from, to));
  return { ...plain(line), badge: at(line, line.length / 2), trunk: false, within: false };
}

function plain(line: Track): { line: Track; strand: Track } {
  return { line, strand: line };
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
    if (from.box === to.box && from.shape === "pill" && Math.abs(x2 - x1) > from.w * 0.8) {
      // Past a column between them: over or under it, in the gap between two rows.
      const lift = (from.h / 2 + 7) * (b.y >= a.y ? 1 : -1);
      const m = (x1 + x2) / 2, y = b.y > a.y + 1 ? b.y - lift : b.y < a.y - 1 ? b.y - lift : a.y - from.h / 2 - 7;
      const turn = right * 30;
      return [
        ...cubic({ x: x1, y: y1 }, { x: x1 + turn, y: y1 }, { x: x1 + turn * 0.6, y }, { x: x1 + turn * 1.8, y }),
        { x: m, y },
        ...cubic({ x: x2 - turn * 1.8, y }, { x: x2 - turn * 0.6, y }, { x: x2 - turn, y: y2 }, { x: x2, y: y2 }),
      ];
    }
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
