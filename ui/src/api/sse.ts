// Server-sent events over fetch: EventSource can neither send a token nor say why it failed. This half is pure: it
// takes text as it comes and gives whole events.

export interface ServerEvent { event: string; data: string; id: string }

/** Feed it text in any portions; it calls back for each whole event (RFC: HTML Living Standard §9.2.6). */
export class EventParser {
  private rest = "";
  private event = "";
  private data: string[] = [];
  private id = "";

  constructor(private readonly emit: (event: ServerEvent) => void) {}

  push(text: string): void {
    this.rest += text;
    for (;;) {
      const end = this.rest.search(/\r\n|\n|\r/);
      if (end < 0) return;
      // A CR at the very end may be half of a CRLF.
      if (this.rest[end] === "\r" && end + 1 === this.rest.length) return;
      const line = this.rest.slice(0, end);
      this.rest = this.rest.slice(end + (this.rest.startsWith("\r\n", end) ? 2 : 1));
      this.line(line);
    }
  }

  private line(line: string): void {
    if (line === "") {
      if (this.data.length > 0) this.emit({ event: this.event || "message", data: this.data.join("\n"), id: this.id });
      this.event = "";
      this.data = [];
      return;
    }
    if (line.startsWith(":")) return;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.event = value;
    else if (field === "data") this.data.push(value);
    else if (field === "id" && !value.includes("\0")) this.id = value;
  }
}
