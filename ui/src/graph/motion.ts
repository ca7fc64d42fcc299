// What moves: travellers along the lines, capsules where it is encrypted, open rings where it is not. A function of
// the scene and the time; at most so many that a machine without a graphics processor keeps up.

import type { Tone } from "../model/words.js";
import type { Camera } from "./camera.js";
import { at } from "./geometry.js";
import type { Palette } from "./palette.js";
import type { Scene, SceneEdge } from "./scene.js";

const TRAVELLERS = 420;
/** World units a second: the same for all, so that speed says nothing and number says how much. */
const SPEED = 46;

export function travel(ctx: CanvasRenderingContext2D, scene: Scene, camera: Camera, width: number, height: number, seconds: number, colours: Palette): void {
  const chosen = choose(scene);
  // Seen from afar they are small, or they would hide what they travel on.
  const size = Math.max(0.5, Math.min(1.1, camera.scale));
  ctx.lineCap = "round";
  for (const tone of ["quiet", "proven", "denied", "unproven", "open"] as Tone[]) {
    ctx.strokeStyle = colours.tone[tone];
    ctx.fillStyle = colours.canvas;
    ctx.beginPath();
    const ring = tone === "open" || tone === "unproven";
    for (const { entry, dots } of chosen) {
      if (entry.tone !== tone) continue;
      const line = entry.tone === "proven" ? entry.route.line : entry.route.strand;
      // Where a line begins its walk differs by line, or all would march in step.
      const first = (hash(entry.edge.id) + seconds * SPEED) % line.length;
      for (let i = 0; i < dots; i++) {
        const p = at(line, (first + (i * line.length) / dots) % line.length);
        const x = (p.x - camera.x) * camera.scale, y = (p.y - camera.y) * camera.scale;
        if (x < -8 || y < -8 || x > width + 8 || y > height + 8) continue;
        if (ring) {
          ctx.moveTo(x + 3.2 * size, y);
          ctx.arc(x, y, 3.2 * size, 0, Math.PI * 2);
        } else {
          ctx.moveTo(x - p.dx * 3 * size, y - p.dy * 3 * size);
          ctx.lineTo(x + p.dx * 3 * size, y + p.dy * 3 * size);
        }
      }
    }
    ctx.lineWidth = (ring ? 1.6 : 3.4) * size;
    if (ring) ctx.fill();
    ctx.stroke();
  }
  uncover(ctx, scene, camera, width, height);
}

/** Travellers pass behind nodes and signs, as their lines do: what would cover them is wiped away. */
function uncover(ctx: CanvasRenderingContext2D, scene: Scene, camera: Camera, width: number, height: number): void {
  const wipe = (x: number, y: number, w: number, h: number): void => {
    const left = (x - camera.x) * camera.scale, top = (y - camera.y) * camera.scale;
    const across = w * camera.scale, down = h * camera.scale;
    if (left < width && top < height && left + across > 0 && top + down > 0) ctx.clearRect(left, top, across, down);
  };
  for (const { spot } of scene.nodes) wipe(spot.x, spot.y, spot.w, spot.h);
  for (const { box } of scene.boxes) if (box.card) wipe(box.x, box.y, box.w, box.h);
  for (const e of scene.edges) {
    const r = e.route.trunk ? { w: 46, h: 12 } : e.sign === "half" ? { w: 30, h: 12 } : { w: 9, h: 9 };
    if (e.route.trunk || e.tone !== "proven") wipe(e.route.badge.x - r.w, e.route.badge.y - r.h, 2 * r.w, 2 * r.h);
  }
}

/** What is looked at first, then trunks, then what is not in order, then the rest while the budget lasts. */
function choose(scene: Scene): { entry: SceneEdge; dots: number }[] {
  const able = scene.edges.filter((e) => e.dots > 0 && !e.faded && !e.calm && e.edge.stale_ms === null && e.route.line.length > 12);
  const rank = (e: SceneEdge): number => (e.strong ? 0 : e.route.trunk ? 1 : e.tone !== "proven" ? 2 : 3);
  const ordered = able.length > 60 ? [...able].sort((a, b) => rank(a) - rank(b)) : able;
  const chosen: { entry: SceneEdge; dots: number }[] = [];
  let left = TRAVELLERS;
  for (const entry of ordered) {
    const room = Math.max(1, Math.min(entry.route.trunk ? 14 : 6, Math.round(entry.route.line.length / 90)));
    const dots = Math.min(entry.route.trunk ? entry.dots * 2 : entry.dots, room, left);
    if (dots <= 0) break;
    left -= dots;
    chosen.push({ entry, dots });
  }
  return chosen;
}

function hash(value: string): number {
  let h = 0;
  for (let i = 0; i < value.length; i++) h = (h * 31 + value.charCodeAt(i)) | 0;
  return (h >>> 0) % 1000;
}
