import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { open, type Link } from "../../src/api/stream.js";
import type { Delta, Snapshot } from "../../src/api/types.js";
import { graph } from "./rows.js";

interface Asked { url: string; last: string | null }

const snapshot = (sequence: string): string => event("snapshot", sequence, { sequence, graph: graph([], []) });
const delta = (sequence: string, since: string): string => event("delta", sequence, { sequence, since });
const event = (name: string, id: string, data: unknown): string => `event: ${name}\nid: ${id}\ndata: ${JSON.stringify(data)}\n\n`;

/** A server that gives these answers in turn and then hangs. */
function server(answers: (() => Response)[]): Asked[] {
  const asked: Asked[] = [];
  vi.stubGlobal("fetch", (url: string, init: RequestInit) => {
    asked.push({ url, last: new Headers(init.headers).get("Last-Event-ID") });
    const next = answers.shift();
    return next ? Promise.resolve(next()) : new Promise(() => undefined);
  });
  return asked;
}

const events = (text: string) => (): Response => new Response(text, { headers: { "content-type": "text/event-stream" } });

function listener(fits: (delta: Delta) => boolean = () => true) {
  const seen = { snapshots: [] as Snapshot[], deltas: [] as Delta[], links: [] as Link[] };
  return {
    seen,
    snapshot: (s: Snapshot) => void seen.snapshots.push(s),
    delta: (d: Delta) => {
      seen.deltas.push(d);
      return fits(d);
    },
    link: (link: Link) => void seen.links.push(link),
  };
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("sessionStorage", { getItem: () => null });
});
afterEach(() => {
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

describe("the stream", () => {
  it("is resumed where it broke off", async () => {
    const asked = server([events(snapshot("a-1") + delta("a-2", "a-1"))]);
    const to = listener();
    const close = open({ level: "workload" }, to);
    await vi.waitFor(() => expect(asked.length).toBe(2));
    expect(asked.map((a) => a.last)).toEqual([null, "a-2"]);
    expect(asked[1]?.url).toBe("/api/v1/stream?level=workload");
    expect(to.seen.links.map((link) => link.kind)).toContain("broken");
    close();
  });

  it("is opened anew, without a place to resume at, when a delta does not fit", async () => {
    const asked = server([events(snapshot("a-1") + delta("a-9", "a-8"))]);
    const to = listener(() => false);
    const close = open({}, to);
    await vi.waitFor(() => expect(asked.length).toBe(2));
    expect(asked[1]?.last).toBe(null);
    expect(to.seen.links.some((link) => link.kind === "broken")).toBe(false);
    close();
  });

  it("says in the observer's words why it is refused, and does not hammer", async () => {
    const asked = server([() => new Response(JSON.stringify({ error: "window is not a number: say seconds" }), { status: 400 })]);
    const to = listener();
    const close = open({}, to);
    await vi.waitFor(() => expect(to.seen.links.at(-1)?.kind).toBe("broken"));
    const link = to.seen.links.at(-1);
    expect(link?.kind === "broken" && link.error).toBe("window is not a number: say seconds");
    expect(link?.kind === "broken" && link.retryAt - Date.now()).toBeGreaterThanOrEqual(5_000);
    expect(asked.length).toBe(1);
    close();
  });

  it("asks no more once it is closed", async () => {
    const asked = server([events(snapshot("a-1"))]);
    const to = listener();
    const close = open({}, to);
    await vi.waitFor(() => expect(to.seen.snapshots.length).toBe(1));
    close();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(asked.length).toBe(1);
  });

  it("is given up and opened again when nothing at all comes, not even a comment", async () => {
    let hung = 0;
    vi.stubGlobal("fetch", (_: string, init: RequestInit) => {
      hung += 1;
      return new Promise((_, reject) => init.signal?.addEventListener("abort", () => reject(new Error("aborted"))));
    });
    const close = open({}, listener());
    await vi.advanceTimersByTimeAsync(40_000);
    expect(hung).toBe(2);
    close();
  });
});
