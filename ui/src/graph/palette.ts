// The canvas reads the same CSS variables as the pages, so that a theme is one list of colours.

import type { Tone } from "../model/words.js";

export interface Palette {
  tone: Record<Tone, string>;
  soft: Record<Tone, string>;
  canvas: string;
  surface: string;
  box: string;
  border: string;
  text: string;
  muted: string;
  accent: string;
  font: string;
}

export function palette(element: Element): Palette {
  const style = getComputedStyle(element);
  const read = (name: string): string => style.getPropertyValue(name).trim();
  return {
    tone: { proven: read("--proven"), open: read("--open"), unproven: read("--unproven"), denied: read("--denied"), quiet: read("--quiet") },
    soft: { proven: read("--proven-soft"), open: read("--open-soft"), unproven: read("--unproven-soft"), denied: read("--denied-soft"), quiet: read("--quiet-soft") },
    canvas: read("--canvas"),
    surface: read("--surface"),
    box: read("--box"),
    border: read("--border"),
    text: read("--text"),
    muted: read("--muted"),
    accent: read("--accent"),
    font: read("--font"),
  };
}
