// The live graph: one stream at a time, resumed where it broke off. Owns the connection and its retries (bounded
// steps, shown to the user); never the graph itself, which `GraphModel` applies.

import { authHeaders, problem, url, ApiError, type Params } from "./client.js";
import { EventParser } from "./sse.js";
import type { Delta, Snapshot } from "./types.js";

export type Link =
  | { kind: "connecting" }
  | { kind: "live" }
  | { kind: "broken"; error: string; retryAt: number };

export interface Listener {
  snapshot(snapshot: Snapshot): void;
  /** False when the delta does not fit what we have: the stream is then opened anew. */
  delta(delta: Delta): boolean;
  link(link: Link): void;
}

/** A comment comes every 15 s; two of them missing means that the line is dead though nobody said so. */
const SILENCE_MS = 35_000;
const STEPS_MS = [500, 1_000, 2_000, 5_000, 10_000];

export function open(params: Params, listener: Listener): () => void {
  const stop = new AbortController();
  void run(params, listener, stop.signal);
  return () => stop.abort();
}

async function run(params: Params, listener: Listener, stop: AbortSignal): Promise<void> {
  let last = "";
  let failures = 0;
  while (!stop.aborted) {
    listener.link({ kind: "connecting" });
    let error = "the observer closed the stream";
    try {
      await once(params, last, stop, (event) => {
        failures = 0;
        listener.link({ kind: "live" });
        if (event.event === "snapshot") {
          listener.snapshot(JSON.parse(event.data) as Snapshot);
        } else if (event.event === "delta") {
          if (!listener.delta(JSON.parse(event.data) as Delta)) {
            last = "";
            throw new Misfit();
          }
        }
        if (event.id) last = event.id;
      });
    } catch (caught) {
      if (stop.aborted) return;
      if (caught instanceof Misfit) continue;
      error = caught instanceof ApiError ? caught.message : "the observer cannot be reached: is `ambit dashboard` still running?";
      // A request that it will never like is not made better by asking again soon.
      if (caught instanceof ApiError && caught.status >= 400 && caught.status < 500) failures = STEPS_MS.length;
    }
    const wait = STEPS_MS[Math.min(failures, STEPS_MS.length - 1)] ?? 10_000;
    failures += 1;
    listener.link({ kind: "broken", error, retryAt: Date.now() + wait });
    await pause(wait, stop);
  }
}

class Misfit extends Error {}

async function once(params: Params, last: string, stop: AbortSignal, emit: ConstructorParameters<typeof EventParser>[0]): Promise<void> {
  const dead = new AbortController();
  let timer = setTimeout(() => dead.abort(), SILENCE_MS);
  try {
    const response = await fetch(url("/api/v1/stream", params), {
      headers: { Accept: "text/event-stream", ...authHeaders(), ...(last ? { "Last-Event-ID": last } : {}) },
      signal: AbortSignal.any([stop, dead.signal]),
      cache: "no-store",
    });
    if (!response.ok || !response.body) throw await problem(response);
    const parser = new EventParser(emit);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => dead.abort(), SILENCE_MS);
        parser.push(value);
      }
    } finally {
      // Also when an event was refused: the connection must not stay open behind our back.
      await reader.cancel().catch(() => undefined);
    }
  } finally {
    clearTimeout(timer);
  }
}

function pause(ms: number, stop: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done(): void {
      clearTimeout(timer);
      stop.removeEventListener("abort", done);
      resolve();
    }
    stop.addEventListener("abort", done);
  });
}
