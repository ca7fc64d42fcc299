import { describe, expect, it } from "vitest";
import type { Edge, Node } from "../../src/api/types.js";
import { inside, overlap, track, at } from "../../src/graph/geometry.js";
import { layout, Memory, OUTSIDE, type Layout } from "../../src/graph/layout.js";
import { routes } from "../../src/graph/routes.js";
import { step } from "../../src/graph/steps.js";
import { fit, toScreen, toWorld, zoom } from "../../src/graph/camera.js";
import { Places, scene } from "../../src/graph/scene.js";
import { parse } from "../../src/model/find.js";
import { edge, mesh, model, node } from "./rows.js";

const place = (nodes: Node[], edges: Edge[], memory = new Memory(), level: "namespace" | "workload" | "pod" = "workload"): Layout =>
  layout(level, new Map(nodes.map((n) => [n.id, n])), edges, memory);

const spots = (l: Layout): Record<string, [number, number]> => Object.fromEntries([...l.spots].map(([id, s]) => [id, [s.x, s.y]]));

function pods(count: number): Node[] {
  const nodes = [node("ns:shop"), node("wl:shop/web"), node("wl:shop/cart")];
  for (let i = 0; i < count; i++) nodes.push(node(`pod:shop/p${i}`, { parent: i % 2 ? "wl:shop/web" : "wl:shop/cart" }));
  return nodes;
}

describe("the layout", () => {
  it("does not depend on the order in which rows come", () => {
    const { nodes, edges } = mesh(7, 9);
    expect(spots(place([...nodes].reverse(), [...edges].reverse()))).toEqual(spots(place(nodes, edges)));
  });

  it("lets nothing overlap, and keeps all in its box", () => {
    for (const l of [place(mesh(12, 11).nodes, mesh(12, 11).edges), place(pods(300), [], new Memory(), "pod"), place(pods(20), [], new Memory(), "pod")]) {
      const boxes = [...l.boxes.values()], all = [...l.spots.values()];
      boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => expect(overlap(a, b), `${a.id} ${b.id}`).toBe(false)));
      all.forEach((a, i) => all.slice(i + 1).forEach((b) => expect(overlap(a, b), `${a.id} ${b.id}`).toBe(false)));
      for (const spot of all) {
        const box = l.boxes.get(spot.box);
        expect(box && inside(box, spot) && inside(box, { x: spot.x + spot.w, y: spot.y + spot.h }), spot.id).toBe(true);
      }
    }
  });

  it("gives every node of the level a place", () => {
    const { nodes, edges } = mesh(5, 4);
    expect(place(nodes, edges).spots.size).toBe(5 * 4 + 1);
    expect(place(pods(300), [], new Memory(), "pod").spots.size).toBe(300);
    expect(place([node("ns:a"), node("ns:b")], [], new Memory(), "namespace").spots.get("ns:a")?.shape).toBe("card");
  });

  it("moves nothing when rows change, lines come, or nodes leave", () => {
    const { nodes, edges } = mesh(6, 7);
    const memory = new Memory();
    const before = spots(place(nodes, edges, memory));
    const fewer = nodes.filter((n) => n.id !== "wl:n002/w3");
    const after = spots(place(fewer, [...edges.slice(4), edge("wl:n000/w6", "wl:n001/w1")], memory));
    for (const [id, where] of Object.entries(after)) expect(where, id).toEqual(before[id]);
  });

  it("puts newcomers into free cells and new namespaces behind, and leaves the rest", () => {
    const { nodes, edges } = mesh(6, 7);
    const memory = new Memory();
    place(nodes.filter((n) => n.id !== "wl:n002/w3"), edges, memory);
    const before = spots(place(nodes.filter((n) => n.id !== "wl:n002/w3"), edges, memory));
    const later = place([...nodes, node("ns:aaa"), node("wl:aaa/first")], edges, memory);
    for (const [id, where] of Object.entries(before)) expect(spots(later)[id], id).toEqual(where);
    expect(later.spots.has("wl:aaa/first")).toBe(true);
    const boxes = [...later.boxes.values()];
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => expect(overlap(a, b), `${a.id} ${b.id}`).toBe(false)));
  });

  it("makes room when a box is full, in the same order", () => {
    const { nodes, edges } = mesh(3, 4);
    const memory = new Memory();
    place(nodes, edges, memory);
    const more = [...nodes, ...Array.from({ length: 30 }, (_, i) => node(`wl:n000/x${i}`))];
    const l = place(more, edges, memory);
    expect([...l.spots.keys()].filter((id) => id.startsWith("wl:n000/")).length).toBe(34);
    const boxes = [...l.boxes.values()];
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => expect(overlap(a, b), `${a.id} ${b.id}`).toBe(false)));
  });

  it("puts hubs left of everybody and those outside into a box of their own", () => {
    const { nodes, edges } = mesh(4, 3);
    const l = place([...nodes, node("out:203.0.113.9")], edges);
    const hub = l.spots.get("wl:monitoring/prometheus");
    for (const box of l.boxes.values()) if (!box.hub) expect(box.x).toBeGreaterThan((hub?.x ?? 0) + (hub?.w ?? 0));
    expect(l.spots.get("out:203.0.113.9")?.box).toBe(OUTSIDE);
  });

  it("survives callers in a circle, calls to oneself and parents that are not there", () => {
    const nodes = [node("ns:a"), node("wl:a/x"), node("wl:a/y"), node("wl:b/z", { parent: "ns:gone" })];
    const edges = [edge("wl:a/x", "wl:a/y"), edge("wl:a/y", "wl:a/x"), edge("wl:a/x", "wl:a/x"), edge("wl:a/x", "wl:nowhere/q")];
    const l = place(nodes, edges);
    expect(l.spots.size).toBe(3);
    expect(routes(l, edges).size).toBe(3);
  });

  it("of ten thousand pods takes time that grows with their number, not its square", () => {
    const made = (n: number): Node[] => {
      const nodes: Node[] = [];
      for (let i = 0; i < n; i++) {
        const ns = `n${i % 50}`;
        if (i < 50) nodes.push(node(`ns:${ns}`), node(`wl:${ns}/w`));
        nodes.push(node(`pod:${ns}/p${i}`, { parent: `wl:${ns}/w` }));
      }
      return nodes;
    };
    // Counted work, not time: each pod is looked at a bounded number of times.
    let looks = 0;
    const counting = (nodes: Node[]): Map<string, Node> => {
      const map = new Map(nodes.map((n) => [n.id, n]));
      const get = map.get.bind(map);
      map.get = (id) => {
        looks += 1;
        return get(id);
      };
      return map;
    };
    layout("pod", counting(made(1000)), [], new Memory());
    const small = looks;
    looks = 0;
    layout("pod", counting(made(10_000)), [], new Memory());
    expect(looks).toBeLessThan(small * 12);
  });
});

describe("the lines", () => {
  it("of a hub end on the upper edge of each namespace's box and run over no other box", () => {
    const { nodes, edges } = mesh(9, 6);
    const l = place(nodes, edges);
    for (const [id, route] of routes(l, edges)) {
      if (!route.trunk) continue;
      const target = l.boxes.get(id.slice(id.indexOf(">") + 1));
      expect(route.badge.y).toBe((target?.y ?? NaN) - 5);
      for (let d = 0; d < route.line.length; d += 5) {
        const p = at(route.line, d);
        for (const box of l.boxes.values()) if (!box.hub) expect(inside(box, p, -1), `${id} over ${box.id}`).toBe(false);
      }
    }
  });

  it("never hide a name under a lock, however many of them start at one node", () => {
    const hub = "wl:monitoring/prometheus";
    for (const [namespaces, workloads] of [[3, 9], [4, 20], [8, 8], [8, 9]] as const) {
      const made = mesh(namespaces, workloads);
      const nodes = made.nodes.map((n) => ({ ...n, hub: false }));
      const edges = [
        ...made.edges.filter((e) => e.kind !== "trunk"),
        ...nodes.filter((n) => n.kind === "workload" && n.id !== hub).map((n) => edge(hub, n.id)),
      ];
      const l = place(nodes, edges);
      for (const [id, route] of routes(l, edges)) {
        for (const spot of l.spots.values()) expect(inside(spot, route.badge, 0), `${id} on ${spot.id}`).toBe(false);
        for (const box of l.boxes.values()) {
          const name = { x: box.x + 14, y: box.y + 14, w: 50, h: 14 };
          expect(inside(name, route.badge, 6), `${id} on the name of ${box.id}`).toBe(false);
        }
      }
    }
  });

  it("are the same for the same places", () => {
    const { nodes, edges } = mesh(3, 5);
    const memory = new Memory();
    const one = routes(place(nodes, edges, memory), edges), two = routes(place(nodes, edges, memory), edges);
    expect([...two.values()].map((r) => r.badge)).toEqual([...one.values()].map((r) => r.badge));
  });

  it("know any point on themselves, also beyond their ends and when they have no length", () => {
    const line = track([{ x: 0, y: 0 }, { x: 10, y: 0 }, { x: 10, y: 10 }]);
    expect(at(line, 15)).toMatchObject({ x: 10, y: 5 });
    expect(at(line, 99)).toMatchObject({ x: 10, y: 10 });
    expect(at(track([{ x: 3, y: 3 }, { x: 3, y: 3 }]), 1)).toMatchObject({ x: 3, y: 3 });
  });
});

describe("the camera", () => {
  it("shows all of it, and keeps the point that is zoomed at", () => {
    const camera = fit({ x: -100, y: 50, w: 3000, h: 900 }, 1000, 600);
    for (const corner of [{ x: -100, y: 50 }, { x: 2900, y: 950 }]) {
      const p = toScreen(camera, corner);
      expect(p.x >= 0 && p.x <= 1000 && p.y >= 0 && p.y <= 600).toBe(true);
    }
    const fixed = { x: 321, y: 123 };
    const before = toWorld(camera, fixed), after = toWorld(zoom(camera, 1.7, fixed), fixed);
    expect(after.x).toBeCloseTo(before.x);
    expect(after.y).toBeCloseTo(before.y);
  });
});

describe("the arrow keys", () => {
  it("reach every node from every other", () => {
    const { nodes, edges } = mesh(4, 5);
    const l = place(nodes, edges);
    const seen = new Set<string>();
    const queue = [step(l, null, "right") as string];
    for (let id = queue.pop(); id !== undefined; id = queue.pop()) {
      if (seen.has(id)) continue;
      seen.add(id);
      for (const way of ["left", "right", "up", "down"] as const) {
        const next = step(l, id, way);
        if (next) queue.push(next);
      }
    }
    expect(seen.size).toBe(l.spots.size);
  });
});

describe("the scene", () => {
  const none = parse("", () => undefined);
  const view = { find: none, hide: none, selected: null, hovered: null };

  it("keeps what is not in order on top and in sight, however many lines there are", () => {
    const { nodes, edges } = mesh(30, 12);
    for (let i = 0; i < 29; i++) edges.push(edge(`wl:n0${String(i).padStart(2, "0")}/w1`, `wl:n0${String(i + 1).padStart(2, "0")}/w2`));
    const wrong = edge("wl:n003/w1", "wl:n017/w2", { state: "plaintext" });
    const m = model(nodes, [...edges, wrong]);
    const s = scene(m, new Places(new Memory()), view);
    expect(s.edges.at(-1)?.edge.id).toBe(wrong.id);
    expect(s.edges.at(-1)?.calm).toBe(false);
    expect(s.edges.some((e) => e.calm)).toBe(true);
    const picked = scene(m, new Places(new Memory()), { ...view, selected: "wl:n003/w1" });
    expect(picked.edges.filter((e) => e.strong).every((e) => !e.calm)).toBe(true);
    expect(picked.edges.find((e) => e.edge.id === wrong.id)?.strong).toBe(true);
  });

  it("hides lines and nodes without moving the rest", () => {
    const { nodes, edges } = mesh(3, 4);
    const m = model(nodes, edges);
    const places = new Places(new Memory());
    const before = scene(m, places, view);
    const hidden = scene(m, places, { ...view, hide: parse("w1", (id) => m.nodes.get(id)) });
    expect(hidden.nodes.length).toBe(before.nodes.length - 3);
    expect(hidden.layout).toBe(before.layout);
    expect(hidden.edges.some((e) => e.edge.target.endsWith("/w1"))).toBe(false);
  });
});
