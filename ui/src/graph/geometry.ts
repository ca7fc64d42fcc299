// Points, rectangles and curves. No state, no screen.

export interface Point { x: number; y: number }
export interface Rect { x: number; y: number; w: number; h: number }

export function centre(rect: Rect): Point {
  return { x: rect.x + rect.w / 2, y: rect.y + rect.h / 2 };
}

export function inside(rect: Rect, { x, y }: Point, margin = 0): boolean {
  return x >= rect.x - margin && x <= rect.x + rect.w + margin && y >= rect.y - margin && y <= rect.y + rect.h + margin;
}

export function overlap(a: Rect, b: Rect): boolean {
  return a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;
}

export function union(rects: Iterable<Rect>): Rect {
  let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
  for (const r of rects) {
    left = Math.min(left, r.x);
    top = Math.min(top, r.y);
    right = Math.max(right, r.x + r.w);
    bottom = Math.max(bottom, r.y + r.h);
  }
  return right < left ? { x: 0, y: 0, w: 0, h: 0 } : { x: left, y: top, w: right - left, h: bottom - top };
}

/** A line as points, with the length up to each of them: what painting, hitting and animating all need. */
export interface Track {
  points: Point[];
  lengths: number[];
  length: number;
}

export function track(points: Point[]): Track {
  const lengths = [0];
  for (let i = 1; i < points.length; i++) {
    const a = points[i - 1] as Point, b = points[i] as Point;
    lengths.push((lengths[i - 1] as number) + Math.hypot(b.x - a.x, b.y - a.y));
  }
  return { points, lengths, length: lengths[lengths.length - 1] ?? 0 };
}

/** Point and direction at a distance from the start. */
export function at(line: Track, distance: number): { x: number; y: number; dx: number; dy: number } {
  const { points, lengths } = line;
  const want = Math.max(0, Math.min(line.length, distance));
  let low = 1, high = Math.max(1, points.length - 1);
  while (low < high) {
    const mid = (low + high) >> 1;
    if ((lengths[mid] as number) < want) low = mid + 1;
    else high = mid;
  }
  const a = points[low - 1] as Point, b = points[low] ?? a;
  const from = lengths[low - 1] as number, span = (lengths[low] ?? from) - from;
  const part = span > 0 ? (want - from) / span : 0;
  const dx = span > 0 ? (b.x - a.x) / span : 1, dy = span > 0 ? (b.y - a.y) / span : 0;
  return { x: a.x + (b.x - a.x) * part, y: a.y + (b.y - a.y) * part, dx, dy };
}

export function distanceTo(line: Track, p: Point): number {
  let best = Infinity;
  for (let i = 1; i < line.points.length; i++) {
    const a = line.points[i - 1] as Point, b = line.points[i] as Point;
    const dx = b.x - a.x, dy = b.y - a.y;
    const square = dx * dx + dy * dy;
    const t = square > 0 ? Math.max(0, Math.min(1, ((p.x - a.x) * dx + (p.y - a.y) * dy) / square)) : 0;
    best = Math.min(best, Math.hypot(a.x + dx * t - p.x, a.y + dy * t - p.y));
  }
  return best;
}

const STEPS = 18;

export function cubic(a: Point, c1: Point, c2: Point, b: Point): Point[] {
  const points: Point[] = [];
  for (let i = 0; i <= STEPS; i++) {
    const t = i / STEPS, u = 1 - t;
    const w0 = u * u * u, w1 = 3 * u * u * t, w2 = 3 * u * t * t, w3 = t * t * t;
    points.push({ x: a.x * w0 + c1.x * w1 + c2.x * w2 + b.x * w3, y: a.y * w0 + c1.y * w1 + c2.y * w2 + b.y * w3 });
  }
  return points;
}

/** Straight legs with rounded corners. */
export function rounded(corners: Point[], radius: number): Point[] {
  const legs = corners.filter((p, i) => i === 0 || Math.hypot(p.x - (corners[i - 1] as Point).x, p.y - (corners[i - 1] as Point).y) > 0.5);
  const points: Point[] = [];
  legs.forEach((p, i) => {
    const before = legs[i - 1], after = legs[i + 1];
    if (!before || !after) {
      points.push(p);
      return;
    }
    const inward = Math.hypot(p.x - before.x, p.y - before.y), outward = Math.hypot(after.x - p.x, after.y - p.y);
    const r = Math.min(radius, inward / 2, outward / 2);
    const from = { x: p.x + ((before.x - p.x) / inward) * r, y: p.y + ((before.y - p.y) / inward) * r };
    const to = { x: p.x + ((after.x - p.x) / outward) * r, y: p.y + ((after.y - p.y) / outward) * r };
    for (let k = 0; k <= 6; k++) {
      const t = k / 6, u = 1 - t;
      points.push({ x: from.x * u * u + 2 * p.x * u * t + to.x * t * t, y: from.y * u * u + 2 * p.y * u * t + to.y * t * t });
    }
  });
  return points;
}
