// The live graph of the page: one stream for what the address bar asks for, its model, and how the line is doing.

import { signal } from "@preact/signals";
import type { Params } from "../api/client.js";
import { open, type Link } from "../api/stream.js";
import { GraphModel } from "../model/model.js";

export class Live {
  readonly model = new GraphModel();
  /** Grows with every change of the model. */
  readonly version = signal(0);
  readonly link = signal<Link>({ kind: "connecting" });
  /** When something last came, by our clock. */
  readonly heard = signal<number | null>(null);
  private close: (() => void) | null = null;

  constructor(private readonly params: Params) {}

  start(): () => void {
    document.addEventListener("visibilitychange", this.seen);
    this.open();
    return () => {
      document.removeEventListener("visibilitychange", this.seen);
      this.shut();
    };
  }

  private open(): void {
    if (this.close || document.hidden) return;
    performance.mark("ambit-asked");
    this.close = open(this.params, {
      snapshot: (snapshot) => {
        performance.mark("ambit-snapshot");
        this.model.snapshot(snapshot);
        this.changed();
      },
      delta: (delta) => {
        const fits = this.model.delta(delta);
        if (fits) this.changed();
        return fits;
      },
      link: (link) => {
        if (link.kind !== this.link.value.kind || link.kind === "broken") this.link.value = link;
      },
    });
  }

  private shut(): void {
    this.close?.();
    this.close = null;
  }

  private changed(): void {
    this.heard.value = Date.now();
    this.version.value += 1;
  }

  private readonly seen = (): void => {
    if (document.hidden) this.shut();
    else this.open();
  };
}
