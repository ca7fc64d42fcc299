// The graph page: controls, picture or list, panel. The address bar holds what it shows; this file joins the parts.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { now } from "../clock.js";
import { GraphCanvas } from "../graph/canvas.js";
import { ListView } from "../graph/list.js";
import { Live } from "../graph/live.js";
import { Memory } from "../graph/layout.js";
import { Panel } from "../graph/panel.js";
import { Places, scene } from "../graph/scene.js";
import { age, count, plural } from "../model/format.js";
import { parse } from "../model/find.js";
import { nameOfId } from "../model/words.js";
import { Icon } from "../parts/icon.js";
import { Command, Empty, Notice, Segments } from "../parts/parts.js";
import { go, link, route, set } from "../router.js";
import { overview } from "./mesh.js";

type LevelChoice = "auto" | "namespace" | "workload" | "pod";

export function GraphPage() {
  const params = route.value.params;
  const level = (params.get("level") ?? "auto") as LevelChoice;
  const window = Number(params.get("window")) || 300;
  const ns = params.get("ns") ?? "", hubs = params.get("hubs") ?? "trunks", expand = params.get("expand") ?? "", focus = params.get("focus") ?? "";
  const q = params.get("q") ?? "", hide = params.get("hide") ?? "", selected = params.get("sel");
  const list = params.get("view") === "list", still = params.get("still") === "1";

  const live = useMemo(() => new Live({ level, window, ns, hubs, expand, focus }), [level, window, ns, hubs, expand, focus]);
  useEffect(() => live.start(), [live]);
  const places = useMemo(() => new Places(new Memory()), [live]);
  const [hovered, setHovered] = useState<string | null>(null);
  const version = live.version.value;
  const { model } = live;

  const shown = useMemo(() => {
    const lookup = (id: string) => model.nodes.get(id);
    return scene(model, places, { find: parse(q, lookup), hide: parse(hide, lookup), selected: selected && known(model, selected) ? selected : null, hovered });
  }, [model, places, version, q, hide, selected, hovered]);

  const select = (id: string | null): void => set({ sel: id ?? undefined }, selected !== null);
  const open = (id: string): void => {
    const node = model.nodes.get(id);
    if (node?.kind === "namespace") go(link("/graph", { level: model.level === "namespace" ? "workload" : "pod", ns: node.name }));
    else if (node?.kind === "workload") go(link("/graph", { level: "pod", ns: node.namespace, sel: id }));
    else select(id);
  };
  const toggleList = (): void => set({ view: list ? undefined : "list" });
  useEffect(() => {
    const down = (event: KeyboardEvent): void => {
      if (event.ctrlKey || event.metaKey || event.altKey || (event.target as Element).closest?.("input, textarea, select, dialog")) return;
      if (event.key === "l") set({ view: list ? undefined : "list" });
      else if (event.key === "Escape" && selected !== null) set({ sel: undefined });
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", down);
    return () => removeEventListener("keydown", down);
  }, [list, selected]);

  const loaded = model.sequence !== "";
  const silent = model.proxies.filter((proxy) => proxy.stale_ms !== null);
  return (
    <div class="graphpage">
      <div class="toolbar" role="toolbar" aria-label="What the graph shows">
        <Segments label="Level" value={level === "auto" && loaded ? model.level : level} onChange={(value) => set({ level: value, sel: undefined })} options={[
          { value: "namespace", label: "Namespaces" }, { value: "workload", label: "Workloads" }, { value: "pod", label: "Pods" },
        ] as { value: LevelChoice; label: string }[]} />
        <Segments label="View" value={list ? "list" : "graph"} onChange={(value) => value !== (list ? "list" : "graph") && toggleList()} options={[{ value: "graph", label: "Graph" }, { value: "list", label: "List" }]} />
        <Field label="Find" value={q} placeholder="mtls<100 or denied" onChange={(value) => set({ q: value || undefined })} search />
        <Field label="Hide" value={hide} placeholder="idle" onChange={(value) => set({ hide: value || undefined })} />
        <label class="select">Hubs
          <select value={hubs} onChange={(event) => set({ hubs: event.currentTarget.value === "trunks" ? undefined : event.currentTarget.value })}>
            <option value="trunks">as trunks</option><option value="edges">as lines</option><option value="hide">hidden</option><option value="only">alone</option>
          </select>
        </label>
        <label class="select">Last
          <select value={String(window)} onChange={(event) => set({ window: event.currentTarget.value === "300" ? undefined : event.currentTarget.value })}>
            <option value="60">minute</option><option value="300">5 minutes</option><option value="900">15 minutes</option><option value="3600">hour</option>
            {![60, 300, 900, 3600].includes(window) && <option value={String(window)}>{age(window * 1000)}</option>}
          </select>
        </label>
        <LiveMark live={live} />
      </div>
      {(ns || expand || focus) && (
        <p class="chips">
          {ns && <Chip onRemove={() => set({ ns: undefined, sel: undefined })}>only namespace {ns}</Chip>}
          {focus && <Chip onRemove={() => set({ focus: undefined })}>only {nameOfId(focus)} and its peers</Chip>}
          {expand && <Chip onRemove={() => set({ expand: undefined })}>fanned out in {expand}</Chip>}
        </p>
      )}
      {silent.length > 0 && <Notice tone="warn"><p>{plural(silent.length, "node proxy is", "node proxies are")} silent ({silent.slice(0, 3).map((p) => `${p.node} for ${age(p.stale_ms ?? 0)}`).join(", ")}{silent.length > 3 && " …"}). {silent.length > 1 ? "What they saw is greyed. Look at their pods:" : "What it saw is greyed. Look at its pod:"}</p><Command value="kubectl -n ambit-system get pods -l app=ztunnel -o wide" /></Notice>}
      <div class="work">
        <div class="picture">
          {!loaded ? <Loading live={live} />
            : model.edges.size === 0 ? <Nothing ns={ns} />
            : list ? <ListView scene={shown} model={model} selected={selected} select={select} searching={q.trim() !== ""} />
            : <GraphCanvas scene={shown} model={model} selected={selected} select={select} hover={setHovered} open={open} still={still} />}
          {loaded && !list && <Summary model={model} scene={shown} searching={q.trim() !== ""} />}
        </div>
        {selected !== null && loaded && <Panel model={model} id={selected} select={select} window={window} />}
      </div>
    </div>
  );
}

function known(model: Live["model"], id: string): boolean {
  return model.nodes.has(id) || model.edges.has(id);
}

function Field({ label, value, placeholder, onChange, search }: { label: string; value: string; placeholder: string; onChange: (value: string) => void; search?: boolean }) {
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  return (
    <label class="field"><span>{label}</span>
      <input type="search" value={text} placeholder={placeholder} maxLength={200} spellcheck={false} autocomplete="off" data-search={search ? "" : undefined}
        onInput={(event) => {
          const next = event.currentTarget.value;
          setText(next);
          clearTimeout(timer.current);
          timer.current = setTimeout(() => onChange(next), 200);
        }} />
    </label>
  );
}

function Chip({ children, onRemove }: { children: preact.ComponentChildren; onRemove: () => void }) {
  return <button type="button" class="chip" onClick={onRemove}><span>{children}</span><Icon name="close" size={12} /><span class="hidden">remove</span></button>;
}

function LiveMark({ live }: { live: Live }) {
  const link = live.link.value, heard = live.heard.value;
  const old = heard === null ? null : now.value - heard;
  if (link.kind === "broken") {
    return <span class="live broken" role="status" title={link.error}><i />{old === null ? "no connection" : `data is ${age(old)} old`}</span>;
  }
  return <span class="live" role="status"><i />{link.kind === "live" ? "live" : "connecting"}</span>;
}

function Loading({ live }: { live: Live }) {
  const link = live.link.value;
  if (link.kind !== "broken") return <Empty title="Asking the observer …" icon="graph" />;
  return <Empty title="The observer does not answer" icon="graph"><p>{link.error}</p><p class="muted">Trying again in {age(Math.max(0, link.retryAt - now.value))}.</p></Empty>;
}

function Nothing({ ns }: { ns: string }) {
  const hints = overview.state.value.data?.hints ?? [];
  return (
    <Empty title={ns ? `Nothing moved in ${ns}` : "Nothing to draw yet"} icon="graph">
      {hints.length > 0 ? hints.slice(0, 2).map((hint) => <div key={hint.code}><p>{hint.text}</p><Command value={hint.command} /></div>)
        : <><p>Only traffic of enrolled pods is seen. Enrol a namespace, and its connections appear here within seconds:</p><Command value="kubectl label namespace NAME istio.io/dataplane-mode=ambient" /></>}
    </Empty>
  );
}

function Summary({ model, scene, searching }: { model: Live["model"]; scene: ReturnType<typeof import("../graph/scene.js")["scene"]>; searching: boolean }) {
  const wrong = scene.edges.filter((e) => e.tone === "open").length;
  const unproven = scene.edges.filter((e) => e.tone === "unproven").length;
  const found = searching ? scene.edges.filter((e) => e.strong).length : null;
  const limits = model.limits;
  const seen = { namespace: plural(limits?.namespaces ?? 0, "namespace"), workload: plural(limits?.workloads ?? 0, "workload"), pod: plural(limits?.pods ?? 0, "pod") }[model.level];
  return (
    <p class="summary">
      {seen}{model.level !== "pod" && limits && ` of ${plural(limits.pods, "pod")}`} · {plural(scene.edges.length, "line")}
      {wrong > 0 && <span class="tone-open"> · {count(wrong)} with plaintext</span>}
      {unproven > 0 && <span class="tone-unproven"> · {count(unproven)} unproven</span>}
      {found !== null && ` · ${count(found)} found`}
      {limits && limits.edges_left_out > 0 && ` · ${count(limits.edges_left_out)} lines left out: narrow it to a namespace`}
    </p>
  );
}
