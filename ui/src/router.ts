// The address bar is the state: page, level, filters, selection. Everything that can be seen can be linked to, and the
// back button works. Owns `location`; nobody else writes it.

import { signal } from "@preact/signals";

export interface Route { path: string; params: URLSearchParams }

function read(): Route {
  return { path: location.pathname.replace(/\/+$/, "") || "/", params: new URLSearchParams(location.search) };
}

export const route = signal<Route>(read());

export function go(href: string, replace = false): void {
  if (replace) history.replaceState(null, "", href);
  else history.pushState(null, "", href);
  const before = route.value.path;
  route.value = read();
  if (route.value.path !== before) {
    scrollTo(0, 0);
    // Whoever listens hears the new page from its heading.
    requestAnimationFrame(() => document.querySelector<HTMLElement>("h1")?.focus());
  }
}

export function link(path: string, params: Record<string, string | undefined> = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) if (value) query.set(name, value);
  const text = query.toString().replace(/%2F/g, "/").replace(/%3A/g, ":");
  return text ? `${path}?${text}` : path;
}

/** Changes some parameters of this page and leaves the others. */
export function set(patch: Record<string, string | undefined>, replace = true): void {
  const { path, params } = route.value;
  const all: Record<string, string | undefined> = {};
  for (const [name, value] of params) all[name] = value;
  go(link(path, { ...all, ...patch }), replace);
}

export function listen(): void {
  addEventListener("popstate", () => (route.value = read()));
  document.addEventListener("click", (event) => {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    const anchor = (event.target as Element | null)?.closest?.("a");
    if (!anchor || anchor.target || anchor.hasAttribute("download") || anchor.origin !== location.origin) return;
    if (anchor.pathname.startsWith("/api/") || anchor.hash && anchor.pathname === location.pathname) return;
    event.preventDefault();
    go(anchor.pathname + anchor.search);
  });
}
