// Icons of the pages: the locks that the canvas draws too, and a few others. Hidden from readers; words stand beside.

import type { Tone } from "../model/words.js";
import { GLYPHS, type Sign } from "./glyphs.js";

export function LockIcon({ sign, tone, size = 16 }: { sign: Sign; tone?: Tone; size?: number }) {
  const { fill, stroke } = GLYPHS[sign];
  return (
    <svg class={`icon${tone ? ` tone-${tone}` : ""}`} width={size} height={size} viewBox="0 0 16 16" aria-hidden="true" focusable="false">
      {fill && <path d={fill} fill="currentColor" />}
      <path d={stroke} fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round" />
    </svg>
  );
}

const PATHS = {
  overview: "M3 13V8.500M8 13V3M13 13V6.500",
  graph: "M4.200 4.200l7.600 3.600M4.200 11.800l7.600-3.600M3 2.500a1.500 1.500 0 1 1 0 3 1.500 1.500 0 0 1 0-3zM3 10.500a1.500 1.500 0 1 1 0 3 1.500 1.500 0 0 1 0-3zM13 6.500a1.500 1.500 0 1 1 0 3 1.500 1.500 0 0 1 0-3z",
  targets: "M8 2.500a5.500 5.500 0 1 1 0 11 5.500 5.500 0 0 1 0-11zM8 5.700a2.300 2.300 0 1 1 0 4.600 2.300 2.300 0 0 1 0-4.600z",
  sun: "M8 5.200a2.800 2.800 0 1 1 0 5.600 2.800 2.800 0 0 1 0-5.600zM8 1.500v1.300M8 13.200v1.300M1.500 8h1.300M13.200 8h1.300M3.400 3.400l.9.9M11.700 11.700l.9.9M3.400 12.600l.9-.9M11.700 4.300l.9-.9",
  moon: "M13 9.700A5.600 5.600 0 0 1 6.300 3a5.600 5.600 0 1 0 6.700 6.700z",
  auto: "M8 2.500a5.500 5.500 0 1 1 0 11zM8 2.500a5.500 5.500 0 0 0 0 11z",
  copy: "M6 5.500h6.500V13H6zM3.500 10.500V3H10",
  check: "M3.500 8.500l3 3 6-7",
  close: "M4 4l8 8M12 4l-8 8",
  plus: "M8 3.500v9M3.500 8h9",
  minus: "M3.500 8h9",
  fit: "M3 6V3h3M10 3h3v3M13 10v3h-3M6 13H3v-3",
  arrow: "M3 8h9.500M9 4.500L12.500 8 9 11.500",
  down: "M4 6l4 4 4-4",
  help: "M6.200 6.200a1.900 1.900 0 1 1 2.600 1.900c-.6.300-.8.700-.8 1.400M8 11.700v.1M8 2a6 6 0 1 1 0 12A6 6 0 0 1 8 2z",
  download: "M8 2.500v7M5 7l3 3 3-3M3 13h10",
  list: "M6 4h7.500M6 8h7.500M6 12h7.500M3 4h.1M3 8h.1M3 12h.1",
};
export type IconName = keyof typeof PATHS;

export function Icon({ name, size = 16 }: { name: IconName; size?: number }) {
  return (
    <svg class="icon" width={size} height={size} viewBox="0 0 16 16" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} fill="none" stroke="currentColor" stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round" />
    </svg>
  );
}
