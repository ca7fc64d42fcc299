// Moving through the graph without a mouse: to the nearest place in a direction, and along the lines of a node. Pure.

import type { GraphModel } from "../model/model.js";
import { centre } from "./geometry.js";
import type { Layout } from "./layout.js";
import type { Scene } from "./scene.js";

export type Direction = "left" | "right" | "up" | "down";

export function step(layout: Layout, from: string | null, direction: Direction): string | null {
  const places = [...layout.spots.values()];
  if (places.length === 0) return null;
  const start = from === null ? undefined : layout.spots.get(from) ?? layout.boxes.get(from);
  if (!start) {
    return places.reduce((best, spot) => (spot.x + spot.y < best.x + best.y ? spot : best)).id;
  }
  const a = centre(start);
  let best: string | null = null, least = Infinity;
  for (const spot of places) {
    if (spot.id === from) continue;
    const b = centre(spot);
    const dx = b.x - a.x, dy = b.y - a.y;
    const [along, aside] = direction === "right" ? [dx, dy] : direction === "left" ? [-dx, dy] : direction === "down" ? [dy, dx] : [-dy, dx];
    if (along <= 1) continue;
    // Straight ahead is nearer than it looks, aside is farther.
    const cost = along + Math.abs(aside) * 2.2;
    if (cost < least) {
      least = cost;
      best = spot.id;
    }
  }
  return best;
}

/** The next line of what is picked: of the node, or of the node whose line is picked. */
export function nextLine(scene: Scene, model: GraphModel, selected: string | null, by: 1 | -1): string | null {
  if (selected === null) return scene.edges[0]?.edge.id ?? null;
  const edge = model.edges.get(selected);
  const node = edge ? edge.source : selected;
  const lines = scene.edges.map((e) => e.edge).filter((e) => e.source === node || e.target === node).map((e) => e.id).sort();
  if (lines.length === 0) return null;
  const at = lines.indexOf(selected);
  return lines[(at < 0 ? (by > 0 ? 0 : lines.length - 1) : at + by + lines.length) % lines.length] ?? null;
}
