// From places to the screen and back. Pure values; whoever holds one decides when to repaint.

import type { Point, Rect } from "./geometry.js";

export interface Camera { x: number; y: number; scale: number }

export const MIN_SCALE = 0.06;
export const MAX_SCALE = 2.5;

export function toScreen(camera: Camera, p: Point): Point {
  return { x: (p.x - camera.x) * camera.scale, y: (p.y - camera.y) * camera.scale };
}

export function toWorld(camera: Camera, p: Point): Point {
  return { x: p.x / camera.scale + camera.x, y: p.y / camera.scale + camera.y };
}

/** Room below for the summary that stands over the picture. */
const FOOT = 28;

/** All of it in the middle, hardly larger than life. */
export function fit(bounds: Rect, width: number, height: number, margin = 40): Camera {
  const scale = Math.max(MIN_SCALE, Math.min(1.15, (width - 2 * margin) / Math.max(1, bounds.w), (height - FOOT - 2 * margin) / Math.max(1, bounds.h)));
  return {
    scale,
    x: bounds.x + bounds.w / 2 - width / 2 / scale,
    y: bounds.y + bounds.h / 2 - (height - FOOT) / 2 / scale,
  };
}

/** Zoom that leaves the point of the screen where it is. */
export function zoom(camera: Camera, factor: number, at: Point): Camera {
  const scale = Math.max(MIN_SCALE, Math.min(MAX_SCALE, camera.scale * factor));
  const fixed = toWorld(camera, at);
  return { scale, x: fixed.x - at.x / scale, y: fixed.y - at.y / scale };
}

export function pan(camera: Camera, dx: number, dy: number): Camera {
  return { ...camera, x: camera.x - dx / camera.scale, y: camera.y - dy / camera.scale };
}
