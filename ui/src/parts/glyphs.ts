// The signs of security as outlines in a square of 16: drawn by the canvas and by the pages alike, so that a lock looks
// the same wherever it stands.

import type { Edge, Lock, State } from "../api/types.js";

export type Sign = "closed" | "open" | "half" | "one_sided" | "contradiction" | "denied" | "none";

export interface Glyph { fill: string; stroke: string }

const BODY = "M4.500 7h7a1.300 1.300 0 0 1 1.300 1.300v4.400a1.300 1.300 0 0 1-1.300 1.300h-7a1.300 1.300 0 0 1-1.300-1.300v-4.400a1.300 1.300 0 0 1 1.300-1.300z";
const SHACKLE = "M5.300 7V4.900a2.700 2.700 0 0 1 5.400 0V7";
const LIFTED = "M5.300 7V4.300a2.700 2.700 0 0 1 5.200-1";

export const GLYPHS: Record<Sign, Glyph> = {
  closed: { fill: BODY, stroke: SHACKLE },
  open: { fill: "", stroke: `${BODY}${LIFTED}` },
  half: { fill: "M4.500 7H8v7H4.500a1.300 1.300 0 0 1-1.300-1.300V8.300A1.300 1.300 0 0 1 4.500 7z", stroke: `${BODY}${LIFTED}` },
  one_sided: { fill: "M4.500 7H8v7H4.500a1.300 1.300 0 0 1-1.300-1.300V8.300A1.300 1.300 0 0 1 4.500 7z", stroke: `${BODY}${SHACKLE}` },
  contradiction: { fill: "", stroke: `${BODY}${SHACKLE}M6 9.600h4M6 11.600h4M9.300 8.600l-2.600 4` },
  denied: { fill: "", stroke: "M8 2.500a5.500 5.500 0 1 1 0 11a5.500 5.500 0 1 1 0-11zM4.200 11.800l7.600-7.600" },
  none: { fill: "", stroke: "M4 8h8" },
};

export function signOf(lock: Lock, state: State): Sign {
  if (lock === "closed") return "closed";
  if (state === "mixed") return "half";
  if (lock === "open") return "open";
  if (state === "contradiction") return "contradiction";
  if (lock === "unproven") return "one_sided";
  return state === "denied" || state === "failed" ? "denied" : "none";
}

export function edgeSign(edge: Edge): Sign {
  return signOf(edge.lock, edge.state);
}

export function stateSign(state: State): Sign {
  switch (state) {
    case "proven": return "closed";
    case "plaintext": return "open";
    case "mixed": return "half";
    case "one_sided": return "one_sided";
    case "contradiction": return "contradiction";
    case "denied":
    case "failed": return "denied";
    default: return "none";
  }
}
