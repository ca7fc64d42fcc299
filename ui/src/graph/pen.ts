// Strokes that several painters share: rounded rectangles, text that fits, locks and their signs. Draws and keeps
// nothing but outlines made once.

import type { Tone } from "../model/words.js";
import { GLYPHS, type Sign } from "../parts/glyphs.js";
import type { Point, Rect, Track } from "./geometry.js";
import type { Palette } from "./palette.js";

/** A line's dash says its tone even without colour. */
export const DASH: Record<Tone, number[]> = { proven: [], open: [7, 5], unproven: [10, 4, 2, 4], denied: [2, 4], quiet: [] };

export function roundRect(ctx: CanvasRenderingContext2D, r: Rect, radius: number): void {
  ctx.beginPath();
  ctx.roundRect(r.x, r.y, r.w, r.h, radius);
}

export function polyline(ctx: CanvasRenderingContext2D, line: Track): void {
  ctx.beginPath();
  line.points.forEach((p, i) => (i === 0 ? ctx.moveTo(p.x, p.y) : ctx.lineTo(p.x, p.y)));
}

export interface Type { size: number; colour: string; font: string; weight?: number; width?: number; align?: "left" | "right" | "center"; /** Keeps what is behind away from the letters. */ halo?: string }

// Whatever turns the direction of writing, or is no sign at all, could make one name look like another.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** Text as it is safe to look at: controls become a visible sign. */
export function visible(value: string): string {
  return value.replace(UNSEEN, "\u00b7");
}

/** Text on one line, cut at its end with an ellipsis. Returns its width. */
export function text(ctx: CanvasRenderingContext2D, value: string, x: number, y: number, type: Type): number {
  ctx.font = `${type.weight ?? 400} ${type.size}px ${type.font}`;
  ctx.fillStyle = type.colour;
  ctx.textBaseline = "middle";
  ctx.textAlign = type.align ?? "left";
  ctx.direction = "ltr";
  const shown = cut(ctx, visible(value), type.width ?? Infinity);
  if (type.halo) {
    ctx.strokeStyle = type.halo;
    ctx.lineWidth = type.size * 0.45;
    ctx.lineJoin = "round";
    ctx.strokeText(shown, x, y);
  }
  ctx.fillText(shown, x, y);
  return ctx.measureText(shown).width;
}

function cut(ctx: CanvasRenderingContext2D, value: string, width: number): string {
  if (width === Infinity || ctx.measureText(value).width <= width) return value;
  const signs = Array.from(value.slice(0, 300));
  let low = 0, high = signs.length;
  while (low < high) {
    const mid = (low + high + 1) >> 1;
    if (ctx.measureText(`${signs.slice(0, mid).join("")}…`).width <= width) low = mid;
    else high = mid - 1;
  }
  return `${signs.slice(0, low).join("")}…`;
}

const paths = new Map<Sign, { fill: Path2D | null; stroke: Path2D }>();

function outline(sign: Sign): { fill: Path2D | null; stroke: Path2D } {
  let made = paths.get(sign);
  if (!made) {
    const { fill, stroke } = GLYPHS[sign];
    made = { fill: fill ? new Path2D(fill) : null, stroke: new Path2D(stroke) };
    paths.set(sign, made);
  }
  return made;
}

export function glyph(ctx: CanvasRenderingContext2D, sign: Sign, x: number, y: number, size: number, colour: string): void {
  const { fill, stroke } = outline(sign);
  ctx.save();
  ctx.translate(x, y);
  ctx.scale(size / 16, size / 16);
  ctx.fillStyle = colour;
  ctx.strokeStyle = colour;
  ctx.lineWidth = 1.6;
  ctx.lineCap = "round";
  ctx.lineJoin = "round";
  ctx.setLineDash([]);
  if (fill) ctx.fill(fill);
  ctx.stroke(stroke);
  ctx.restore();
}

/** A lock by itself, on a round ground that keeps lines away from it. */
export function lock(ctx: CanvasRenderingContext2D, at: Point, sign: Sign, colour: string, colours: Palette, grow: number): void {
  const r = 10 * grow;
  ctx.beginPath();
  ctx.arc(at.x, at.y, r, 0, Math.PI * 2);
  ctx.fillStyle = colours.surface;
  ctx.fill();
  ctx.lineWidth = 1;
  ctx.strokeStyle = colours.border;
  ctx.stroke();
  glyph(ctx, sign, at.x - 6.2 * grow, at.y - 6.4 * grow, 12.4 * grow, colour);
}

/** A lock with words, as on a trunk. A dot says that something was refused besides. */
export function sign(ctx: CanvasRenderingContext2D, at: Point, which: Sign, label: string, colour: string, colours: Palette, grow: number, dot: string | null): void {
  const size = 11.5 * grow, h = 24 * grow, lead = 13 * grow;
  ctx.font = `600 ${size}px ${colours.font}`;
  const words = label ? ctx.measureText(label).width : 0;
  const inner = lead + (words ? words + 6 * grow : 0) + (dot ? 11 * grow : 0);
  const w = inner + 18 * grow;
  const r = { x: at.x - w / 2, y: at.y - h / 2, w, h };
  roundRect(ctx, r, h / 2);
  ctx.fillStyle = colours.surface;
  ctx.fill();
  ctx.lineWidth = 1.2;
  ctx.strokeStyle = colour;
  ctx.setLineDash([]);
  ctx.stroke();
  glyph(ctx, which, r.x + 9 * grow, at.y - 6.6 * grow, lead, colour);
  if (words) text(ctx, label, r.x + 9 * grow + lead + 6 * grow, at.y + 0.5, { size, colour, font: colours.font, weight: 600 });
  if (dot) {
    ctx.beginPath();
    ctx.arc(r.x + w - 13 * grow, at.y, 3.2 * grow, 0, Math.PI * 2);
    ctx.fillStyle = dot;
    ctx.fill();
  }
}
