// Asking again and again, and only while somebody looks: one request at a time, none while the tab is hidden, the last
// good answer kept with its age when the next one fails.

import { signal, type Signal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { ApiError, get, type Params } from "./api/client.js";

export interface Polled<T> { data: T | null; error: string | null; status: number; at: number | null }

export class Poller<T> {
  readonly state: Signal<Polled<T>> = signal({ data: null, error: null, status: 0, at: null });
  private timer: ReturnType<typeof setTimeout> | undefined;
  private stop: AbortController | undefined;
  private users = 0;

  constructor(private readonly path: string, private readonly params: Params, private readonly everyMs: number) {}

  /** Runs while at least one user does; gives back how to end it. */
  use(): () => void {
    this.users += 1;
    if (this.users === 1) {
      document.addEventListener("visibilitychange", this.seen);
      this.now();
    }
    return () => {
      this.users -= 1;
      if (this.users > 0) return;
      document.removeEventListener("visibilitychange", this.seen);
      this.cancel();
    };
  }

  now(): void {
    this.cancel();
    const stop = new AbortController();
    this.stop = stop;
    get<T>(this.path, this.params, stop.signal).then(
      (data) => (this.state.value = { data, error: null, status: 200, at: Date.now() }),
      (error: unknown) => {
        if (stop.signal.aborted) return;
        const known = error instanceof ApiError ? error : new ApiError(0, String(error));
        this.state.value = { ...this.state.value, error: known.message, status: known.status };
      },
    ).finally(() => {
      if (!stop.signal.aborted && !document.hidden) this.timer = setTimeout(() => this.now(), this.everyMs);
    });
  }

  private cancel(): void {
    clearTimeout(this.timer);
    this.stop?.abort();
  }

  private readonly seen = (): void => {
    if (document.hidden) this.cancel();
    else this.now();
  };
}

export function usePoll<T>(path: string, params: Params, everyMs: number): { state: Polled<T>; again: () => void } {
  const key = JSON.stringify(params);
  const poller = useMemo(() => new Poller<T>(path, params, everyMs), [path, key, everyMs]);
  useEffect(() => poller.use(), [poller]);
  return { state: poller.state.value, again: () => poller.now() };
}
