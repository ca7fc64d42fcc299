// Light, dark, or as the system has it. Owns `data-theme` of the document.

import { signal } from "@preact/signals";

export type Theme = "auto" | "light" | "dark";
const KEY = "ambit.theme";

function saved(): Theme {
  try {
    const value = localStorage.getItem(KEY);
    return value === "light" || value === "dark" ? value : "auto";
  } catch {
    return "auto";
  }
}

export const theme = signal<Theme>(saved());
/** Grows when the colours have changed, by us or by the system. */
export const colours = signal(0);

export function setTheme(next: Theme): void {
  theme.value = next;
  try {
    if (next === "auto") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, next);
  } catch {
    // a browser that keeps nothing still shows it now
  }
  apply();
}

export function apply(): void {
  if (theme.value === "auto") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme.value;
  colours.value += 1;
}

export function watchTheme(): void {
  apply();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (colours.value += 1));
}

export function reducedMotion(): boolean {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
