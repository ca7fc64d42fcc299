import { describe, expect, it } from "vitest";
import type { Delta } from "../../src/api/types.js";
import { parse } from "../../src/model/find.js";
import { percent } from "../../src/model/format.js";
import { describe as say, edgeTone, nameOfId } from "../../src/model/words.js";
import { edgeSign } from "../../src/parts/glyphs.js";
import { visible } from "../../src/graph/pen.js";
import { EventParser, type ServerEvent } from "../../src/api/sse.js";
import { edge, model, node } from "./rows.js";

function delta(more: Partial<Delta>): Delta {
  return { sequence: "e-2", since: "e-1", at: 2, nodes: [], edges: [], removed_nodes: [], removed_edges: [], coverage: null, proxies: null, limits: null, dropped: 0, ...more };
}

describe("the model", () => {
  const nodes = [node("ns:shop"), node("wl:shop/web"), node("wl:shop/cart")];
  const edges = [edge("wl:shop/web", "wl:shop/cart")];

  it("refuses a delta that belongs to another sequence and changes nothing", () => {
    const m = model(nodes, edges);
    expect(m.delta(delta({ since: "e-0", removed_nodes: ["wl:shop/web"] }))).toBe(false);
    expect(m.sequence).toBe("e-1");
    expect(m.nodes.has("wl:shop/web")).toBe(true);
  });

  it("replaces rows by id, removes those that are listed, and keeps what a delta leaves out", () => {
    const m = model(nodes, edges);
    const limits = m.limits;
    const changed = edge("wl:shop/web", "wl:shop/cart", { state: "plaintext" });
    expect(m.delta(delta({ edges: [changed] }))).toBe(true);
    expect(m.edges.get(changed.id)?.lock).toBe("open");
    expect(m.limits).toBe(limits);
    expect(m.proxies).toEqual([]);
    expect(m.delta(delta({ since: "e-2", sequence: "e-3", removed_nodes: ["wl:shop/cart"], removed_edges: [changed.id] }))).toBe(true);
    expect([...m.nodes.keys()]).toEqual(["ns:shop", "wl:shop/web"]);
    expect(m.edges.size).toBe(0);
  });

  it("asks for a new layout only when something comes or goes", () => {
    const m = model(nodes, edges);
    const shape = m.shape;
    m.delta(delta({ edges: [edge("wl:shop/web", "wl:shop/cart", { label: "other" })] }));
    expect(m.shape).toBe(shape);
    m.delta(delta({ since: "e-2", sequence: "e-3", nodes: [node("wl:shop/new")] }));
    expect(m.shape).toBe(shape + 1);
  });
});

describe("the locks", () => {
  it("are closed for nothing but what the observer calls closed", () => {
    expect(edgeSign(edge("a", "b"))).toBe("closed");
    for (const state of ["one_sided", "contradiction", "mixed", "plaintext", "denied", "failed", "idle", "node_local"] as const) {
      const sign = edgeSign(edge("a", "b", { state, lock: ({ mixed: "open", plaintext: "open", one_sided: "unproven", contradiction: "unproven" } as const)[state as "mixed"] ?? "none" }));
      expect(sign, state).not.toBe("closed");
    }
  });

  it("tell partly plaintext, one-sided and contradiction apart", () => {
    const signs = (["plaintext", "mixed", "one_sided", "contradiction", "denied"] as const).map((state) => edgeSign(edge("a", "b", { state })));
    expect(new Set(signs).size).toBe(5);
  });

  it("show a trunk whose denied target carried nothing as closed", () => {
    expect(edgeTone(edge("a", "b", { state: "mixed", lock: "closed" }))).toBe("proven");
  });
});

describe("words and numbers", () => {
  it("never round a share up to all", () => {
    expect(percent(99.99)).toBe("99.9 %");
    expect(percent(100)).toBe("100 %");
    expect(percent(null)).toBe("–");
  });

  it("describe a node for those who hear it", () => {
    expect(say(node("wl:shop/cart", { pods: 4, pods_enrolled: 3, state: "mixed" }))).toBe("cart, workload, namespace shop, 4 pods, 1 not in the mesh, partly plaintext");
  });

  it("read names out of ids, even odd ones", () => {
    expect(nameOfId("wl:shop/a%2Fb")).toBe("shop/a/b");
    expect(nameOfId("out:%zz")).toBe("%zz");
  });

  it("make signs visible that turn the direction of writing or are no sign at all", () => {
    expect(visible("cart\u202egpj\u0000\u200b")).toBe("cart·gpj··");
    expect(visible("<img src=x>")).toBe("<img src=x>");
  });
});

describe("the find box", () => {
  const nodes = new Map([node("wl:shop/web"), node("wl:shop/cart"), node("wl:edge/lb")].map((n) => [n.id, n]));
  const safe = edge("wl:shop/web", "wl:shop/cart");
  const plain = edge("wl:edge/lb", "wl:shop/web", { state: "plaintext", ports: [443], reasons: [{ code: "SRC_NOT_ENROLLED", reason: "", text: "", fix: "", command: "", count: 1 }] });
  const hits = (text: string): string[] => {
    const query = parse(text, (id) => nodes.get(id));
    return [safe, plain].filter((e) => query.edge(e)).map((e) => e.id);
  };

  it("finds by name, namespace, port, code, state and share", () => {
    expect(hits("cart")).toEqual([safe.id]);
    expect(hits("ns:edge")).toEqual([plain.id]);
    expect(hits("port:443")).toEqual([plain.id]);
    expect(hits("code:src_not")).toEqual([plain.id]);
    expect(hits("plaintext")).toEqual([plain.id]);
    expect(hits("mtls<100")).toEqual([plain.id]);
    expect(hits("mtls>=100")).toEqual([safe.id]);
  });

  it("joins words, alternatives and negations", () => {
    expect(hits("ns:shop -plaintext")).toEqual([safe.id]);
    expect(hits("cart or port:443")).toEqual([safe.id, plain.id]);
    expect(hits("not cart")).toEqual([plain.id]);
  });

  it("takes any text without an error", () => {
    for (const text of ["", "  or  or ", "mtls<", "((", "-", "not", "ns:", "\u0000", "x".repeat(5000)]) {
      const query = parse(text, (id) => nodes.get(id));
      expect(typeof query.edge(safe)).toBe("boolean");
      expect(query.empty, text).toBe(["", "  or  or ", "not"].includes(text));
    }
  });
});

describe("server-sent events", () => {
  it("come out whole however the text is cut", () => {
    const text = "event: snapshot\r\nid: 7\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\n: hello\n\ndata: x\n\n";
    for (let size = 1; size < text.length; size++) {
      const seen: ServerEvent[] = [];
      const parser = new EventParser((event) => seen.push(event));
      for (let i = 0; i < text.length; i += size) parser.push(text.slice(i, i + size));
      expect(seen).toEqual([{ event: "snapshot", data: "{\"a\":\n1}", id: "7" }, { event: "message", data: "x", id: "7" }]);
    }
  });

  it("that are not finished are not given", () => {
    const seen: ServerEvent[] = [];
    new EventParser((event) => seen.push(event)).push("data: half\n");
    expect(seen).toEqual([]);
  });
});
