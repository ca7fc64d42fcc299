// Where everything stands. Deterministic and O(nodes + edges): namespaces are boxes on shelves in the order of their
// names, workloads stand in columns along their calls, pods are tiles in their workload, hubs have the left margin
// and reach each box by a lane between the shelves. What has a place keeps it: newcomers take free cells, those who
// leave leave a gap, and only a box that is full makes room (the order of everything stays even then).
//
// Pure: rows in, places out. Knows nothing of canvas, colour or security.

import type { Edge, Level, Node } from "../api/types.js";
import { union, type Rect } from "./geometry.js";
import { columns } from "./columns.js";

export const SIZE = {
  pill: { w: 156, h: 34 },
  card: { w: 212, h: 76 },
  tile: 16,
  tileGap: 5,
  rowGap: 16,
  columnGap: 74,
  header: 40,
  pad: 18,
  boxGap: 44,
  shelfGap: 78,
  blockGap: 20,
  blockLabel: 20,
};
/** Up to so many pods they have names on the screen; beyond, they are tiles if their workloads have several each. */
const NAMED_PODS = 80;
const NAMED_PODS_AT_MOST = 600;
/** The box of whoever is not in the cluster. */
export const OUTSIDE = "outside";

export type Shape = "card" | "pill" | "tile";
export interface Spot extends Rect { id: string; shape: Shape; box: string }
export interface Block extends Rect { id: string; box: string }
export interface Box extends Rect {
  id: string;
  /** A card stands for its whole namespace; a box has something in it. */
  card: boolean;
  hub: boolean;
  /** Height of the lane above it, in which trunks run. */
  lane: number;
}
export interface Layout {
  boxes: Map<string, Box>;
  blocks: Map<string, Block>;
  spots: Map<string, Spot>;
  /** Where the trunks run up and down, right of the hubs. */
  bus: number;
  bounds: Rect;
}

interface Cell { id: string; shape: Shape; column: number; row: number }
interface Plan { id: string; hub: boolean; card: boolean; cells: Cell[]; blocks: Map<string, string[]>; w: number; h: number }

/** What is remembered between layouts, so that nothing moves without need. */
export class Memory {
  key = "";
  order: string[] = [];
  plans = new Map<string, Plan>();
  places = new Map<string, { x: number; y: number; lane: number }>();
  width = 0;
}

export function layout(level: Level, nodes: Map<string, Node>, edges: Iterable<Edge>, memory: Memory): Layout {
  const groups = group(level, nodes);
  const pods = countPods(groups);
  const tiles = level === "pod" && pods > NAMED_PODS && (pods > NAMED_PODS_AT_MOST || pods > 2.5 * countWorkloads(nodes));
  const key = `${level} ${tiles}`;
  if (memory.key !== key) Object.assign(memory, new Memory(), { key });

  const inner = innerEdges(groups, edges);
  let moved = memory.order.length === 0;
  for (const [id, members] of groups) {
    const old = memory.plans.get(id);
    const plan = old && keep(old, members, tiles) || make(id, members, inner.get(id) ?? [], tiles, nodes);
    if (old && (plan.w > old.w || plan.h > old.h || plan.hub !== old.hub || plan.card !== old.card)) moved = true;
    memory.plans.set(id, plan);
  }
  for (const id of groups.keys()) {
    if (!memory.order.includes(id)) memory.order.push(id);
  }
  if (moved) {
    // Those who have left make no gap any more.
    memory.order = memory.order.filter((id) => groups.has(id));
    for (const id of memory.plans.keys()) if (!groups.has(id)) memory.plans.delete(id);
    memory.places.clear();
    placeAll(memory);
  } else {
    placeNew(memory, groups);
  }
  return result(memory, groups, nodes);
}

type Groups = Map<string, Node[]>;

/** Who stands in which box, boxes and members by name. */
function group(level: Level, nodes: Map<string, Node>): Groups {
  const groups: Groups = new Map();
  const boxOf = (node: Node): string => {
    let at = node;
    for (let depth = 0; depth < 4 && at.parent !== null; depth++) {
      const up = nodes.get(at.parent);
      if (!up) break;
      at = up;
    }
    return at.kind === "namespace" ? at.id : OUTSIDE;
  };
  const sorted = [...nodes.values()].sort((a, b) => compare(a.name, b.name) || compare(a.id, b.id));
  const boxes = sorted.filter((node) => node.kind === "namespace");
  for (const box of boxes) groups.set(box.id, []);
  for (const node of sorted) {
    if (node.kind === "namespace") continue;
    if (node.kind === "workload" && level === "pod") continue;
    const id = boxOf(node);
    const members = groups.get(id);
    if (members) members.push(node);
    else groups.set(id, [node]);
  }
  return groups;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function countPods(groups: Groups): number {
  let sum = 0;
  for (const members of groups.values()) sum += members.length;
  return sum;
}

function countWorkloads(nodes: Map<string, Node>): number {
  let sum = 0;
  for (const node of nodes.values()) if (node.kind === "workload") sum += 1;
  return sum;
}

function innerEdges(groups: Groups, edges: Iterable<Edge>): Map<string, Edge[]> {
  const boxOf = new Map<string, string>();
  for (const [id, members] of groups) for (const node of members) boxOf.set(node.id, id);
  const inner = new Map<string, Edge[]>();
  for (const edge of edges) {
    const box = boxOf.get(edge.source);
    if (box === undefined || box !== boxOf.get(edge.target) || edge.source === edge.target) continue;
    const list = inner.get(box);
    if (list) list.push(edge);
    else inner.set(box, [edge]);
  }
  return inner;
}

/** The plan as it is with newcomers in free cells, or nothing if they do not fit. */
function keep(plan: Plan, members: Node[], tiles: boolean): Plan | null {
  const hub = members.some((node) => node.hub);
  if (plan.card !== (members.length === 0) || plan.hub !== hub || tiles) {
    return plan.card && members.length === 0 ? plan : tiles && sameMembers(plan, members) ? plan : null;
  }
  const here = new Set(members.map((node) => node.id));
  const known = new Set(plan.cells.map((cell) => cell.id));
  const fresh = members.filter((node) => !known.has(node.id));
  if (fresh.length === 0) return plan;
  const kept = plan.cells.filter((cell) => here.has(cell.id));
  const taken = new Set(kept.map((cell) => `${cell.column},${cell.row}`));
  const wide = Math.floor((plan.w - 2 * SIZE.pad + SIZE.columnGap) / (SIZE.pill.w + SIZE.columnGap));
  const high = Math.floor((plan.h - SIZE.header - SIZE.pad + SIZE.rowGap) / (SIZE.pill.h + SIZE.rowGap));
  const cells = [...kept];
  let next = 0;
  for (const node of fresh) {
    while (next < wide * high && taken.has(`${Math.floor(next / high)},${next % high}`)) next += 1;
    if (next >= wide * high) return null;
    cells.push({ id: node.id, shape: "pill", column: Math.floor(next / high), row: next % high });
    next += 1;
  }
  return { ...plan, cells };
}

function sameMembers(plan: Plan, members: Node[]): boolean {
  const known = new Set(plan.cells.map((cell) => cell.id));
  return members.every((node) => known.has(node.id));
}

function make(id: string, members: Node[], edges: Edge[], tiles: boolean, nodes: Map<string, Node>): Plan {
  const hub = members.some((node) => node.hub);
  if (members.length === 0) return { id, hub, card: true, cells: [], blocks: new Map(), ...SIZE.card };
  if (tiles && !hub && id !== OUTSIDE) return tilePlan(id, members, nodes);
  const cells: Cell[] = columns(members, edges).flatMap((list, column) =>
    list.map((node, row) => ({ id: node.id, shape: "pill" as const, column, row })));
  const wide = 1 + Math.max(...cells.map((cell) => cell.column));
  const high = 1 + Math.max(...cells.map((cell) => cell.row));
  return {
    id, hub, card: false, cells, blocks: new Map(),
    w: Math.max(SIZE.card.w, 2 * SIZE.pad + wide * SIZE.pill.w + (wide - 1) * SIZE.columnGap),
    h: SIZE.header + SIZE.pad + high * SIZE.pill.h + (high - 1) * SIZE.rowGap,
  };
}

function tilePlan(id: string, members: Node[], nodes: Map<string, Node>): Plan {
  const blocks = new Map<string, string[]>();
  for (const node of members) {
    const parent = node.parent ?? id;
    const list = blocks.get(parent);
    if (list) list.push(node.id);
    else blocks.set(parent, [node.id]);
  }
  const name = (block: string): string => nodes.get(block)?.name ?? block;
  const ordered = new Map([...blocks].sort(([a], [b]) => compare(name(a), name(b)) || compare(a, b)));
  const { w, h } = blockPlaces(ordered, members.length);
  const cells: Cell[] = members.map((node) => ({ id: node.id, shape: "tile", column: 0, row: 0 }));
  return { id, hub: false, card: false, cells, blocks: ordered, w, h };
}

const TILES_ACROSS = 10;

/** Blocks of tiles within their box, in rows; their places are a function of the plan alone. */
function blockPlaces(blocks: Map<string, string[]>, pods: number): { w: number; h: number; at: Map<string, Rect> } {
  const step = SIZE.tile + SIZE.tileGap;
  const blockWidth = TILES_ACROSS * step - SIZE.tileGap;
  const across = Math.max(1, Math.min(4, Math.ceil(Math.sqrt(pods / TILES_ACROSS / 2.5)), blocks.size));
  const at = new Map<string, Rect>();
  const bottoms = new Array<number>(across).fill(SIZE.header);
  for (const [id, list] of blocks) {
    const column = bottoms.indexOf(Math.min(...bottoms));
    const rows = Math.ceil(list.length / TILES_ACROSS);
    const h = SIZE.blockLabel + rows * step - SIZE.tileGap;
    at.set(id, { x: SIZE.pad + column * (blockWidth + SIZE.blockGap), y: bottoms[column] as number, w: blockWidth, h });
    bottoms[column] = (bottoms[column] as number) + h + SIZE.blockGap - 6;
  }
  const w = Math.max(SIZE.card.w, 2 * SIZE.pad + across * blockWidth + (across - 1) * SIZE.blockGap);
  return { w, h: Math.max(...bottoms) - SIZE.blockGap + 6 + SIZE.pad, at };
}

/** Shelves of a width that makes the whole about as wide as a screen. */
function placeAll(memory: Memory): void {
  const plans = memory.order.map((id) => memory.plans.get(id) as Plan);
  const hubs = plans.filter((plan) => plan.hub);
  const rest = plans.filter((plan) => !plan.hub);
  const area = rest.reduce((sum, plan) => sum + (plan.w + SIZE.boxGap) * (plan.h + SIZE.shelfGap), 0);
  const widest = Math.max(0, ...rest.map((plan) => plan.w));
  memory.width = Math.max(widest, Math.sqrt(area * 1.75));
  const hubWidth = Math.max(0, ...hubs.map((plan) => plan.w));
  const left = hubs.length > 0 ? hubWidth + SIZE.boxGap + 52 : 0;
  let x = left, y = 0, shelf = 0;
  for (const plan of rest) {
    if (x > left && x + plan.w > left + memory.width) {
      x = left;
      y += shelf + SIZE.shelfGap;
      shelf = 0;
    }
    memory.places.set(plan.id, { x, y, lane: y - LANE });
    x += plan.w + SIZE.boxGap;
    shelf = Math.max(shelf, plan.h);
  }
  const total = y + shelf;
  const hubHeight = hubs.reduce((sum, plan) => sum + plan.h, 0) + Math.max(0, hubs.length - 1) * SIZE.shelfGap;
  let hubY = Math.max(0, (total - hubHeight) / 2);
  for (const plan of hubs) {
    memory.places.set(plan.id, { x: hubWidth - plan.w, y: hubY, lane: hubY - LANE });
    hubY += plan.h + SIZE.shelfGap;
  }
}

const LANE = 40;

function placeNew(memory: Memory, groups: Groups): void {
  for (const id of groups.keys()) {
    if (memory.places.has(id)) continue;
    const plan = memory.plans.get(id) as Plan;
    const placed = [...memory.places].filter(([other]) => !memory.plans.get(other)?.hub);
    const left = Math.min(...placed.map(([, place]) => place.x));
    const lastShelf = Math.max(...placed.map(([, place]) => place.y));
    const onShelf = placed.filter(([, place]) => place.y === lastShelf);
    const end = Math.max(...onShelf.map(([other, place]) => place.x + (memory.plans.get(other)?.w ?? 0)));
    const x = end + SIZE.boxGap;
    if (placed.length === 0) {
      memory.places.clear();
      placeAll(memory);
      return;
    }
    if (x + plan.w <= left + memory.width) {
      memory.places.set(id, { x, y: lastShelf, lane: lastShelf - LANE });
    } else {
      const bottom = Math.max(...placed.map(([other, place]) => place.y + (memory.plans.get(other)?.h ?? 0)));
      const y = bottom + SIZE.shelfGap;
      memory.places.set(id, { x: left, y, lane: y - LANE });
    }
  }
}

function result(memory: Memory, groups: Groups, nodes: Map<string, Node>): Layout {
  const boxes = new Map<string, Box>();
  const spots = new Map<string, Spot>();
  const blocks = new Map<string, Block>();
  let bus = 0;
  for (const id of groups.keys()) {
    const plan = memory.plans.get(id) as Plan, place = memory.places.get(id);
    if (!place) continue;
    const box: Box = { id, x: place.x, y: place.y, w: plan.w, h: plan.h, card: plan.card, hub: plan.hub, lane: place.lane };
    boxes.set(id, box);
    if (plan.hub) bus = Math.max(bus, box.x + box.w + 40);
    if (plan.card) {
      spots.set(id, { id, shape: "card", box: id, x: box.x, y: box.y, w: box.w, h: box.h });
      continue;
    }
    if (plan.blocks.size > 0) {
      const { at } = blockPlaces(plan.blocks, plan.cells.length);
      const step = SIZE.tile + SIZE.tileGap;
      for (const [blockId, list] of plan.blocks) {
        const r = at.get(blockId) as Rect;
        blocks.set(blockId, { id: blockId, box: id, x: box.x + r.x, y: box.y + r.y, w: r.w, h: r.h });
        list.forEach((pod, i) => {
          if (!nodes.has(pod)) return;
          spots.set(pod, {
            id: pod, shape: "tile", box: id,
            x: box.x + r.x + (i % TILES_ACROSS) * step,
            y: box.y + r.y + SIZE.blockLabel + Math.floor(i / TILES_ACROSS) * step,
            w: SIZE.tile, h: SIZE.tile,
          });
        });
      }
      continue;
    }
    for (const cell of plan.cells) {
      if (!nodes.has(cell.id)) continue;
      spots.set(cell.id, {
        id: cell.id, shape: cell.shape, box: id,
        x: box.x + SIZE.pad + cell.column * (SIZE.pill.w + SIZE.columnGap),
        y: box.y + SIZE.header + cell.row * (SIZE.pill.h + SIZE.rowGap),
        ...SIZE.pill,
      });
    }
  }
  const frame = union(boxes.values());
  // Lanes above the topmost boxes belong to the picture too.
  const bounds = boxes.size === 0 ? frame : { x: frame.x, y: frame.y - LANE, w: frame.w, h: frame.h + LANE };
  return { boxes, blocks, spots, bus, bounds };
}
