// Two canvases and whoever points at them. The lower one holds the still picture, painted with a margin and merely
// moved while somebody drags; the upper one holds what travels and is painted each turn. Owns the camera and the loop;
// changes nothing but its own pixels and tells what was picked.

import { colours as themeTurn, reducedMotion } from "../theme.js";
import { fit, pan, toScreen, toWorld, zoom, type Camera } from "./camera.js";
import { centre, distanceTo, inside, type Point, type Rect } from "./geometry.js";
import { travel } from "./motion.js";
import { paint } from "./paint.js";
import { palette, type Palette } from "./palette.js";
import type { Scene } from "./scene.js";

export interface Picks {
  select(id: string | null): void;
  hover(id: string | null): void;
  open(id: string): void;
}

const SETTLE_MS = 130;
/** Thirty pictures a second are enough for dots, and leave a core to the rest. */
const FRAME_MS = 31;

export class Stage {
  private readonly still = document.createElement("canvas");
  private readonly moving = document.createElement("canvas");
  private camera: Camera = { x: 0, y: 0, scale: 1 };
  private painted: Camera = this.camera;
  private scene: Scene | null = null;
  private colours: Palette;
  private width = 0;
  private height = 0;
  private margin = 0;
  private dirty = true;
  private fitted = false;
  private touched = 0;
  private lastFrame = 0;
  private frame = 0;
  private readonly ends: (() => void)[] = [];
  /** Milliseconds of each of the last paintings, for measurements. */
  readonly times: number[] = [];
  motion = true;

  constructor(private readonly host: HTMLElement, private readonly picks: Picks) {
    this.colours = palette(host);
    for (const canvas of [this.still, this.moving]) {
      canvas.setAttribute("aria-hidden", "true");
      host.prepend(canvas);
    }
    host.prepend(this.still);
    this.still.className = "still";
    this.moving.className = "moving";
    const size = new ResizeObserver(() => this.resize());
    size.observe(host);
    this.ends.push(() => size.disconnect());
    this.ends.push(themeTurn.subscribe(() => {
      this.colours = palette(host);
      this.dirty = true;
    }));
    this.listen();
    this.resize();
    this.frame = requestAnimationFrame(this.turn);
  }

  end(): void {
    cancelAnimationFrame(this.frame);
    for (const end of this.ends) end();
    this.still.remove();
    this.moving.remove();
  }

  show(scene: Scene): void {
    this.scene = scene;
    this.dirty = true;
    if (!this.fitted && scene.layout.spots.size > 0 && this.width > 0) this.fit();
  }

  /** All of it into view; also the next time something is shown, if there is nothing yet. */
  fit(): void {
    this.fitted = false;
    if (!this.scene || this.scene.layout.boxes.size === 0 || this.width === 0) return;
    this.move(fit(this.scene.layout.bounds, this.width, this.height));
    // Nobody is dragging: it need not wait until hands are still.
    this.touched = -Infinity;
    this.dirty = true;
    this.fitted = true;
  }

  zoomBy(factor: number): void {
    this.move(zoom(this.camera, factor, { x: this.width / 2, y: this.height / 2 }));
  }

  screenPos(id: string): Point | null {
    const spot = this.scene?.layout.spots.get(id) ?? this.scene?.layout.boxes.get(id);
    if (spot) return toScreen(this.camera, centre(spot));
    const edge = this.scene?.edges.find((candidate) => candidate.edge.id === id);
    return edge ? toScreen(this.camera, edge.route.badge) : null;
  }

  /** Brings a place into view if it is not. */
  reveal(id: string): void {
    const p = this.screenPos(id);
    if (!p) return;
    const m = 60;
    const dx = p.x < m ? m - p.x : p.x > this.width - m ? this.width - m - p.x : 0;
    const dy = p.y < m ? m - p.y : p.y > this.height - m ? this.height - m - p.y : 0;
    if (dx !== 0 || dy !== 0) this.move(pan(this.camera, dx, dy));
  }

  private move(camera: Camera): void {
    this.camera = camera;
    this.touched = performance.now();
    this.place();
  }

  /** Shows the still picture where the camera now looks, without painting it again. */
  private place(): void {
    const s = this.camera.scale / this.painted.scale;
    const x = (this.painted.x - this.camera.x) * this.camera.scale - this.margin * s;
    const y = (this.painted.y - this.camera.y) * this.camera.scale - this.margin * s;
    this.still.style.transform = `translate(${x}px, ${y}px) scale(${s})`;
  }

  private resize(): void {
    const { clientWidth, clientHeight } = this.host;
    if (clientWidth === this.width && clientHeight === this.height) return;
    this.width = clientWidth;
    this.height = clientHeight;
    this.margin = Math.round(Math.max(clientWidth, clientHeight) * 0.2);
    const ratio = this.ratio();
    this.size(this.still, clientWidth + 2 * this.margin, clientHeight + 2 * this.margin, ratio);
    this.size(this.moving, clientWidth, clientHeight, ratio);
    this.dirty = true;
    if (!this.fitted && this.scene) this.fit();
  }

  private size(canvas: HTMLCanvasElement, w: number, h: number, ratio: number): void {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
  }

  private ratio(): number {
    return Math.min(2, devicePixelRatio || 1);
  }

  private readonly turn = (time: number): void => {
    this.frame = requestAnimationFrame(this.turn);
    if (document.hidden || this.width === 0) return;
    const same = this.painted.x === this.camera.x && this.painted.y === this.camera.y && this.painted.scale === this.camera.scale;
    const settled = time - this.touched > SETTLE_MS;
    const slack = this.margin * 0.9;
    const drift = Math.max(Math.abs(this.painted.x - this.camera.x), Math.abs(this.painted.y - this.camera.y)) * this.camera.scale;
    if (settled && (this.dirty || !same) || drift > slack) this.repaint();
    if (time - this.lastFrame >= FRAME_MS) {
      this.lastFrame = time;
      this.animate(time);
    }
  };

  private repaint(): void {
    const ctx = this.still.getContext("2d");
    if (!ctx || !this.scene) return;
    const begun = performance.now();
    const ratio = this.ratio();
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, this.still.width, this.still.height);
    const { scale } = this.camera;
    const x = this.camera.x - this.margin / scale, y = this.camera.y - this.margin / scale;
    ctx.setTransform(scale * ratio, 0, 0, scale * ratio, -x * scale * ratio, -y * scale * ratio);
    const view: Rect = { x, y, w: (this.width + 2 * this.margin) / scale, h: (this.height + 2 * this.margin) / scale };
    paint(ctx, this.scene, this.camera, view, this.colours);
    this.ring(ctx);
    this.painted = this.camera;
    this.dirty = false;
    this.place();
    this.times.push(performance.now() - begun);
    performance.mark("ambit-painted");
    if (this.times.length > 100) this.times.shift();
  }

  selected: string | null = null;

  /** What is picked has a ring of its own: it must not depend on the rest being faded. */
  private ring(ctx: CanvasRenderingContext2D): void {
    if (this.selected === null || !this.scene) return;
    const spot = this.scene.layout.spots.get(this.selected) ?? this.scene.layout.boxes.get(this.selected) ?? this.scene.layout.blocks.get(this.selected);
    if (!spot) return;
    const grow = 4;
    ctx.beginPath();
    ctx.roundRect(spot.x - grow, spot.y - grow, spot.w + 2 * grow, spot.h + 2 * grow, spot.w < 30 ? 7 : 15);
    ctx.strokeStyle = this.colours.accent;
    ctx.lineWidth = Math.max(2, 2 / this.camera.scale);
    ctx.stroke();
  }

  private animate(time: number): void {
    const ctx = this.moving.getContext("2d");
    if (!ctx) return;
    const ratio = this.ratio();
    ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
    ctx.clearRect(0, 0, this.width, this.height);
    if (!this.scene || !this.motion || reducedMotion()) return;
    travel(ctx, this.scene, this.camera, this.width, this.height, time / 1000, this.colours);
  }

  /** What is at a place of the screen: locks before nodes, nodes before lines, lines before boxes. */
  hit(p: Point): string | null {
    const scene = this.scene;
    if (!scene) return null;
    const w = toWorld(this.camera, p);
    const slack = 7 / this.camera.scale;
    for (let i = scene.edges.length - 1; i >= 0; i--) {
      const e = scene.edges[i];
      if (!e) continue;
      const r = e.route.trunk ? { w: 46, h: 13 } : { w: 11, h: 11 };
      if (Math.abs(w.x - e.route.badge.x) < r.w && Math.abs(w.y - e.route.badge.y) < r.h && (e.route.trunk || e.strong || e.tone !== "proven")) return e.edge.id;
    }
    for (const n of scene.nodes) if (inside(n.spot, w, n.spot.shape === "tile" ? 2 : 0)) return n.node.id;
    for (const b of scene.boxes) if (b.box.card && inside(b.box, w)) return b.box.id;
    let best: string | null = null, nearest = slack;
    for (const e of scene.edges) {
      if (e.calm) continue;
      const d = distanceTo(e.tone === "proven" ? e.route.line : e.route.strand, w) - (e.route.trunk ? 3 : 0);
      if (d < nearest) {
        nearest = d;
        best = e.edge.id;
      }
    }
    if (best !== null) return best;
    for (const block of scene.layout.blocks.values()) if (inside(block, w)) return block.id;
    for (const b of scene.boxes) if (inside(b.box, w) && b.node && w.y < b.box.y + 40) return b.box.id;
    return null;
  }

  private listen(): void {
    let down: { x: number; y: number; moved: boolean } | null = null;
    const on = <K extends keyof HTMLElementEventMap>(type: K, run: (event: HTMLElementEventMap[K]) => void, options?: AddEventListenerOptions): void => {
      this.host.addEventListener(type, run, options);
      this.ends.push(() => this.host.removeEventListener(type, run, options));
    };
    const point = (event: MouseEvent): Point => {
      const box = this.host.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    on("pointerdown", (event) => {
      if (event.button !== 0 || (event.target as Element).closest("button, input, a")) return;
      down = { x: event.clientX, y: event.clientY, moved: false };
      this.host.setPointerCapture(event.pointerId);
    });
    on("pointermove", (event) => {
      if (down) {
        const dx = event.clientX - down.x, dy = event.clientY - down.y;
        if (!down.moved && Math.hypot(dx, dy) < 4) return;
        down = { x: event.clientX, y: event.clientY, moved: true };
        this.move(pan(this.camera, dx, dy));
        this.host.classList.add("dragging");
      } else {
        this.picks.hover(this.hit(point(event)));
      }
    });
    on("pointerup", (event) => {
      if (down && !down.moved) this.picks.select(this.hit(point(event)));
      down = null;
      this.host.classList.remove("dragging");
    });
    on("pointercancel", () => (down = null));
    on("pointerleave", () => this.picks.hover(null));
    on("dblclick", (event) => {
      const id = this.hit(point(event));
      if (id !== null) this.picks.open(id);
    });
    on("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      if (event.shiftKey) this.move(pan(this.camera, -(event.deltaY + event.deltaX) * lines, 0));
      else this.move(zoom(this.camera, Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)), point(event)));
    }, { passive: false });
  }
}
