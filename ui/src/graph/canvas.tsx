// The picture within the page: joins Stage to the scene and gives it a keyboard and a voice.

import { useEffect, useRef } from "preact/hooks";
import type { GraphModel } from "../model/model.js";
import { describe, edgeTone, fullName, nameOfId, STATE } from "../model/words.js";
import { Icon } from "../parts/icon.js";
import type { Scene } from "./scene.js";
import { Stage } from "./stage.js";
import { nextLine, step, type Direction } from "./steps.js";

declare global {
  interface Window {
    /** Read-only, for tests: where things are on the screen. */
    __ambit?: { screenPos: (id: string) => { x: number; y: number } | null; visible: () => string[]; places: () => Record<string, [number, number]>; times: () => number[]; sign: (id: string) => string | null };
  }
}

const ARROWS: Record<string, Direction> = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down" };

export function GraphCanvas({ scene, model, selected, select, hover, open, still }: {
  scene: Scene;
  model: GraphModel;
  selected: string | null;
  select: (id: string | null) => void;
  hover: (id: string | null) => void;
  open: (id: string) => void;
  still: boolean;
}) {
  const host = useRef<HTMLDivElement>(null);
  const stage = useRef<Stage | null>(null);
  const latest = useRef({ scene, select, hover, open });
  latest.current = { scene, select, hover, open };

  useEffect(() => {
    if (!host.current) return;
    const made = new Stage(host.current, {
      select: (id) => latest.current.select(id),
      hover: (id) => {
        latest.current.hover(id);
        host.current?.classList.toggle("pointing", id !== null);
      },
      open: (id) => latest.current.open(id),
    });
    stage.current = made;
    window.__ambit = {
      screenPos: (id) => made.screenPos(id),
      visible: () => [...latest.current.scene.nodes.map((n) => n.node.id), ...latest.current.scene.boxes.map((b) => b.box.id), ...latest.current.scene.edges.map((e) => e.edge.id)],
      places: () => Object.fromEntries([...latest.current.scene.layout.spots].map(([id, spot]) => [id, [spot.x, spot.y]])),
      times: () => [...made.times],
      sign: (id) => latest.current.scene.edges.find((e) => e.edge.id === id)?.sign ?? null,
    };
    return () => {
      delete window.__ambit;
      made.end();
      stage.current = null;
    };
  }, []);
  useEffect(() => {
    if (!stage.current) return;
    stage.current.selected = selected;
    stage.current.motion = !still;
    stage.current.show(scene);
  }, [scene, selected, still]);
  // Another view altogether is looked at as a whole.
  useEffect(() => stage.current?.fit(), [model]);

  const pick = (id: string | null): void => {
    if (id === null) return;
    select(id);
    stage.current?.reveal(id);
  };
  const keydown = (event: KeyboardEvent): void => {
    if (event.target !== host.current || event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = ARROWS[event.key];
    if (arrow) pick(step(scene.layout, nodeOf(model, selected), arrow));
    else if (event.key === "n" || event.key === "p") pick(nextLine(scene, model, selected, event.key === "n" ? 1 : -1));
    else if (event.key === "Enter" && selected !== null) open(selected);
    else if (event.key === "+" || event.key === "=") stage.current?.zoomBy(1.25);
    else if (event.key === "-") stage.current?.zoomBy(0.8);
    else if (event.key === "0") stage.current?.fit();
    else return;
    event.preventDefault();
  };

  return (
    <>
      <div ref={host} class="canvas" tabIndex={0} role="application" aria-roledescription="graph"
        aria-label="Graph of connections. Arrow keys move between nodes, n and p along their lines, Enter opens, l shows it as a list."
        onKeyDown={keydown} />
      <div class="zoom" role="group" aria-label="Zoom">
        <button type="button" onClick={() => stage.current?.zoomBy(1.25)} aria-label="Nearer" title="Nearer (+)"><Icon name="plus" /></button>
        <button type="button" onClick={() => stage.current?.zoomBy(0.8)} aria-label="Farther" title="Farther (−)"><Icon name="minus" /></button>
        <button type="button" onClick={() => stage.current?.fit()} aria-label="All of it" title="All of it (0)"><Icon name="fit" /></button>
      </div>
      <p class="hidden" role="status" aria-live="polite">{selected === null ? "" : say(model, selected)}</p>
    </>
  );
}

function nodeOf(model: GraphModel, id: string | null): string | null {
  if (id === null) return null;
  return model.edges.get(id)?.target ?? id;
}

function say(model: GraphModel, id: string): string {
  const node = model.nodes.get(id);
  if (node) return describe(node);
  const edge = model.edges.get(id);
  if (!edge) return "";
  const name = (end: string): string => {
    const found = model.nodes.get(end);
    return found ? fullName(found) : nameOfId(end);
  };
  const why = edge.reasons[0];
  const state = edgeTone(edge) === "proven" ? edge.label : STATE[edge.state]?.word ?? edge.state;
  return `${name(edge.source)} to ${name(edge.target)}, ${state}${why ? `: ${why.text}` : ""}`;
}
