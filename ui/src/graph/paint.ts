// The still picture: boxes, lines, nodes, locks. Paints a scene as the camera sees it and keeps nothing. Never more
// detail than the scale can show: names and locks step back before they become noise.

import { age, bytes, percent } from "../model/format.js";
import { edgeTone, nameOfId } from "../model/words.js";
import { edgeSign, stateSign } from "../parts/glyphs.js";
import type { Camera } from "./camera.js";
import { overlap, type Rect } from "./geometry.js";
import { glyph, lock, polyline, roundRect, sign, text, DASH } from "./pen.js";
import type { Palette } from "./palette.js";
import type { Scene, SceneBox, SceneEdge, SceneNode } from "./scene.js";

/** More lines than this and those in order carry no lock of their own until they are pointed at. */
const LOCKS = 40;

export function paint(ctx: CanvasRenderingContext2D, scene: Scene, camera: Camera, view: Rect, colours: Palette): void {
  const seen = (r: Rect): boolean => overlap(r, view);
  const painted = scene.edges.filter((e) => !e.calm);
  const calls = painted.filter((e) => !e.route.trunk);
  const signed = new Set(painted.filter((e) => e.route.trunk).map((e) => e.edge.target));

  for (const box of scene.boxes) if (!box.box.card && seen(box.box)) paintBox(ctx, box, colours);
  // Lines in front of boxes, behind what stands in them.
  const crowd = Math.max(0.22, Math.min(0.85, 24 / Math.max(1, calls.length)));
  for (const e of painted) if (!e.route.trunk) paintCall(ctx, e, crowd, colours, scene.focused);
  for (const e of painted) if (e.route.trunk) paintTrunk(ctx, e, colours, 1);
  for (const e of painted) if (e.route.trunk && e.tone !== "proven") paintTrunk(ctx, e, colours, 2);
  for (const box of scene.boxes) if (box.box.card && seen(box.box)) paintCard(ctx, box, camera, colours);
  for (const box of scene.boxes) if (!box.box.card && seen(box.box)) paintTitle(ctx, box, camera, colours, signed.has(box.box.id));
  for (const block of scene.layout.blocks.values()) {
    if (seen(block) && camera.scale > 0.42) {
      text(ctx, blockName(block.id), block.x, block.y + 10, { size: 11, colour: colours.muted, font: colours.font, width: block.w, halo: colours.box });
    }
  }
  for (const node of scene.nodes) if (seen(node.spot)) paintNode(ctx, node, camera, colours);
  const locks = camera.scale > 0.4 && (calls.length <= LOCKS || camera.scale > 1.1);
  for (const e of painted) {
    if (e.route.trunk) trunkSign(ctx, e, camera, colours);
    else if (e.strong || refused(e) || (e.tone !== "proven" && e.tone !== "quiet") || (locks && !e.faded)) callSign(ctx, e, camera, colours);
  }
}

function blockName(id: string): string {
  const name = nameOfId(id);
  return name.slice(name.indexOf("/") + 1);
}

function paintBox(ctx: CanvasRenderingContext2D, { box, node }: SceneBox, colours: Palette): void {
  roundRect(ctx, box, 14);
  ctx.fillStyle = colours.box;
  ctx.fill();
  ctx.lineWidth = 1;
  ctx.strokeStyle = node ? colours.border : colours.muted;
  ctx.setLineDash(node ? [] : [4, 4]);
  ctx.stroke();
  ctx.setLineDash([]);
}

/** After the lines, with a ground of its own, so that none of them strikes it out. */
function paintTitle(ctx: CanvasRenderingContext2D, { box, node, tone }: SceneBox, camera: Camera, colours: Palette, signed: boolean): void {
  const size = Math.min(30, 13 * Math.max(1, 0.85 / camera.scale));
  const name = node ? node.name : "Outside the mesh";
  if (node) glyph(ctx, stateSign(node.state), box.x + 15, box.y + 20 - size * 0.6, size * 1.15, colours.tone[tone]);
  text(ctx, name, box.x + (node ? 15 + size * 1.4 : 16), box.y + 20, {
    size, colour: colours.text, font: colours.font, weight: 600, halo: colours.box, width: box.w - size * 1.4 - 24 - (signed && camera.scale < 0.85 ? 110 : 0),
  });
}

function paintCard(ctx: CanvasRenderingContext2D, { box, node, tone, faded, within }: SceneBox, camera: Camera, colours: Palette): void {
  if (!node) return;
  ctx.globalAlpha = faded ? 0.4 : node.stale_ms === null ? 1 : 0.6;
  roundRect(ctx, box, 12);
  ctx.fillStyle = colours.surface;
  ctx.fill();
  ctx.lineWidth = 1;
  ctx.strokeStyle = tone === "proven" || tone === "quiet" ? colours.border : colours.tone[tone];
  ctx.stroke();
  const size = Math.min(24, 14 * Math.max(1, 0.8 / camera.scale));
  text(ctx, node.name, box.x + 16, box.y + 28, { size, colour: colours.text, font: colours.font, weight: 600, width: box.w - 32 });
  if (camera.scale > 0.42) {
    const out = node.pods_enrolled !== null && node.pods_enrolled < node.pods;
    const pods = out ? `${node.pods_enrolled} of ${node.pods} in mesh` : `${node.pods} ${node.pods === 1 ? "pod" : "pods"}`;
    text(ctx, pods, box.x + 16, box.y + 53, { size: 12, colour: out ? colours.tone.open : colours.muted, font: colours.font, width: box.w - 100 });
    if (within) {
      const t = edgeTone(within.edge);
      const label = within.edge.lock === "closed" ? "inside" : within.edge.percent_mutual_tls === null ? "inside" : percent(within.edge.percent_mutual_tls);
      const w = text(ctx, label, box.x + box.w - 16, box.y + 53, { size: 12, colour: colours.muted, font: colours.font, align: "right" });
      glyph(ctx, edgeSign(within.edge), box.x + box.w - 16 - w - 19, box.y + 45, 15, colours.tone[t]);
    }
  }
  ctx.globalAlpha = 1;
}

function paintNode(ctx: CanvasRenderingContext2D, entry: SceneNode, camera: Camera, colours: Palette): void {
  const { node, spot, faded } = entry;
  ctx.globalAlpha = faded ? 0.3 : node.stale_ms === null ? 1 : 0.5;
  const colour = colours.tone[entry.tone];
  if (spot.shape === "tile") {
    roundRect(ctx, spot, 4);
    ctx.fillStyle = entry.tone === "proven" || entry.tone === "quiet" ? colours.soft[entry.tone] : colour;
    ctx.fill();
    if (entry.tone === "proven" || entry.tone === "quiet") {
      ctx.lineWidth = 1;
      ctx.strokeStyle = colour;
      ctx.globalAlpha *= 0.55;
      ctx.stroke();
    } else if (camera.scale > 0.7) {
      glyph(ctx, stateSign(node.state), spot.x + 2.5, spot.y + 2.5, 11, colours.surface);
    }
    ctx.globalAlpha = 1;
    return;
  }
  // Its ground is never faded, or the lines behind it would strike out its name.
  const seen = ctx.globalAlpha;
  ctx.globalAlpha = 1;
  roundRect(ctx, spot, node.hub ? spot.h / 2 : 9);
  ctx.fillStyle = colours.surface;
  ctx.fill();
  ctx.globalAlpha = seen;
  ctx.lineWidth = node.hub ? 1.8 : 1;
  ctx.strokeStyle = node.hub ? colour : entry.tone === "proven" || entry.tone === "quiet" ? colours.border : colour;
  // The mesh's own pods are outside and yet carried.
  const out = node.pods_enrolled === 0 && !node.mesh;
  if (out) ctx.setLineDash([4, 3]);
  ctx.stroke();
  ctx.setLineDash([]);
  ctx.beginPath();
  ctx.arc(spot.x + 16, spot.y + spot.h / 2, 4.5, 0, Math.PI * 2);
  if (out) {
    ctx.lineWidth = 1.6;
    ctx.strokeStyle = colour;
    ctx.stroke();
  } else {
    ctx.fillStyle = colour;
    ctx.fill();
  }
  if (camera.scale > 0.34) {
    const many = node.kind === "workload" && node.pods > 1 ? `×${node.pods}` : "";
    const w = many ? text(ctx, many, spot.x + spot.w - 12, spot.y + spot.h / 2, { size: 11, colour: colours.muted, font: colours.font, align: "right" }) + 6 : 0;
    text(ctx, node.name, spot.x + 28, spot.y + spot.h / 2, {
      size: 12.5, colour: colours.text, font: colours.font, weight: node.hub ? 600 : 500, width: spot.w - 40 - w,
    });
  }
  ctx.globalAlpha = 1;
}

function paintCall(ctx: CanvasRenderingContext2D, e: SceneEdge, crowd: number, colours: Palette, focused: boolean): void {
  const wrong = e.tone !== "proven" && e.tone !== "quiet";
  const base = e.strong ? 1 : wrong ? 0.9 : crowd;
  ctx.globalAlpha = (e.faded ? Math.min(0.12, base) : base) * (e.edge.stale_ms === null ? 1 : 0.45);
  ctx.strokeStyle = e.edge.stale_ms === null ? colours.tone[e.tone] : colours.muted;
  const rate = e.edge.rate.sent + e.edge.rate.received;
  ctx.lineWidth = (e.strong ? 1.2 : 0.6) + Math.min(2, Math.log10(1 + rate) * 0.32) * (focused && !e.strong ? 0.7 : 1);
  ctx.setLineDash(DASH[e.tone]);
  polyline(ctx, e.route.line);
  ctx.stroke();
  ctx.setLineDash([]);
  ctx.globalAlpha = 1;
}

/** First the sleeve, the same for all so that many make one; then, if something is wrong, a strand of its colour beside. */
function paintTrunk(ctx: CanvasRenderingContext2D, e: SceneEdge, colours: Palette, pass: 1 | 2): void {
  ctx.lineJoin = "round";
  if (pass === 1) {
    ctx.globalAlpha = e.faded ? 0.25 : 1;
    polyline(ctx, e.route.line);
    // A sleeve of green only where something is proven.
    ctx.strokeStyle = e.edge.pairs.proven > 0 ? colours.soft.proven : colours.soft.quiet;
    ctx.lineWidth = 9;
    ctx.stroke();
    if (e.edge.bytes.proven > 0) {
      ctx.strokeStyle = e.edge.stale_ms === null ? colours.tone.proven : colours.muted;
      ctx.lineWidth = e.strong ? 3 : 2;
      ctx.stroke();
    }
  } else {
    ctx.globalAlpha = e.faded ? 0.2 : 1;
    polyline(ctx, e.route.strand);
    ctx.strokeStyle = colours.canvas;
    ctx.lineWidth = 5;
    ctx.stroke();
    ctx.strokeStyle = e.edge.stale_ms === null ? colours.tone[e.tone] : colours.muted;
    ctx.lineWidth = e.strong ? 2.6 : 2;
    ctx.setLineDash(DASH[e.tone]);
    ctx.stroke();
    ctx.setLineDash([]);
  }
  ctx.globalAlpha = 1;
}

/** Something was refused besides what was carried: a dot beside the lock says so. */
function refused({ edge }: SceneEdge): boolean {
  return edge.lock !== "none" && edge.connections.denied + edge.pairs.denied + edge.pairs.failed > 0;
}

function trunkSign(ctx: CanvasRenderingContext2D, e: SceneEdge, camera: Camera, colours: Palette): void {
  ctx.globalAlpha = e.faded ? 0.4 : 1;
  // What was refused is the dot's to say: with its number the sign would reach beyond its box.
  const whole = e.edge.label.replace(/ · \d+ denied$/, "");
  const words = camera.scale < 0.3 ? "" : camera.scale < 0.7 ? whole.replace(/ mTLS$/, "") : whole;
  // Old data says so, and how old it is: a green lock of before is no proof of now.
  const old = e.edge.stale_ms;
  const label = old === null ? words : [words, `${age(old)} old`].filter(Boolean).join(" · ");
  sign(ctx, e.route.badge, e.sign, label, old === null ? colours.tone[e.tone] : colours.muted, colours, Math.max(1, Math.min(1.6, 0.66 / camera.scale)), refused(e) ? colours.tone.denied : null);
  ctx.globalAlpha = 1;
}

function callSign(ctx: CanvasRenderingContext2D, e: SceneEdge, camera: Camera, colours: Palette): void {
  if (e.sign === "none" && !e.strong) return;
  ctx.globalAlpha = e.faded ? 0.25 : 1;
  const grow = Math.max(1, Math.min(1.8, 0.7 / camera.scale));
  const share = camera.scale < 0.7 && !e.strong ? "" : e.sign === "half" ? percent(e.edge.percent_mutual_tls) : e.sign === "denied" && e.edge.connections.denied > 0 ? String(e.edge.connections.denied) : "";
  const flow = e.strong && camera.scale > 0.5 ? `${bytes(e.edge.rate.sent + e.edge.rate.received)}/s` : "";
  const label = [share, flow].filter(Boolean).join(" · ");
  const colour = e.edge.stale_ms === null ? colours.tone[e.tone] : colours.muted;
  if (label || refused(e)) sign(ctx, e.route.badge, e.sign, label, colour, colours, grow, refused(e) ? colours.tone.denied : null);
  else lock(ctx, e.route.badge, e.sign, colour, colours, grow);
  ctx.globalAlpha = 1;
}

