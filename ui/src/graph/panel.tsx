// What is picked, in words: who, how secured, why not, and the cure. Asks the observer for the pairs behind a line.

import type { ComponentChildren } from "preact";
import type { Edge, Node, Pairs } from "../api/types.js";
import { now } from "../clock.js";
import { age, ago, bytes, count, percent, plural, rate } from "../model/format.js";
import type { GraphModel } from "../model/model.js";
import { edgeTone, fullName, nameOfId, STATE, tone } from "../model/words.js";
import { edgeSign, stateSign } from "../parts/glyphs.js";
import { Icon, LockIcon } from "../parts/icon.js";
import { Badge, Identity, Name, Reason, Split } from "../parts/parts.js";
import { Records } from "../parts/records.js";
import { usePoll } from "../poll.js";
import { link, route } from "../router.js";

interface PanelProps { model: GraphModel; id: string; select: (id: string | null) => void; window: number }

export function Panel({ model, id, select, window }: PanelProps) {
  const edge = model.edges.get(id), node = model.nodes.get(id);
  const title = edge ? "Connection" : node ? kindWord(node) : "Not in view";
  return (
    <aside class="panel" aria-label="Details of what is picked">
      <header>
        <p class="over">{title}</p>
        <button type="button" class="ghost close" onClick={() => select(null)} aria-label="Close details"><Icon name="close" /></button>
      </header>
      {edge ? <EdgeDetails key={id} edge={edge} model={model} select={select} window={window} />
        : node ? <NodeDetails key={id} node={node} model={model} select={select} window={window} />
        : <p class="muted">{nameOfId(id)} has had no traffic in this window. A longer one may show it.</p>}
    </aside>
  );
}

function kindWord(node: Node): string {
  return { namespace: "Namespace", workload: "Workload", pod: "Pod", outside: "Outside the mesh" }[node.kind];
}

function Facts({ rows }: { rows: [string, ComponentChildren][] }) {
  return <dl class="facts">{rows.map(([name, value]) => <div key={name}><dt>{name}</dt><dd>{value}</dd></div>)}</dl>;
}

function Stale({ ms }: { ms: number | null }) {
  return ms === null ? null : <p class="notice warn">Its node proxy has been silent for {age(ms)}: what stands here is that old.</p>;
}

function NodeDetails({ node, model, select, window }: Omit<PanelProps, "id"> & { node: Node }) {
  const state = STATE[node.state];
  const lines = [...model.edges.values()].filter((edge) => touches(model, edge, node.id));
  const out = lines.filter((edge) => under(model, edge.source, node.id));
  const into = lines.filter((edge) => !out.includes(edge));
  const rows: [string, ComponentChildren][] = [];
  if (node.kind !== "namespace" && node.namespace) rows.push(["Namespace", <Name>{node.namespace}</Name>]);
  if (node.kind !== "pod" && node.kind !== "outside") rows.push(["Pods with traffic", count(node.pods)]);
  if (node.pods_enrolled !== null) rows.push(["In the mesh", `${count(node.pods_enrolled)} of ${count(node.pods)}`]);
  if (node.address) rows.push(["Address", <code>{node.address}</code>]);
  if (node.node) rows.push(["Node", <Name>{node.node}</Name>]);
  if (node.identities.length > 0) rows.push([node.identities.length > 1 ? "Identities" : "Identity", node.identities.map((identity) => <Identity key={identity} value={identity} />)]);
  return (
    <>
      <h2><Name>{node.name}</Name></h2>
      <p class="badges">
        <Badge tone={tone(node.state)} sign={stateSign(node.state)}>{state?.word ?? node.state}</Badge>
        {node.hub && <span class="badge">hub: talks to a large part of everything</span>}
        {node.mesh && <span class="badge">part of the mesh</span>}
      </p>
      <p class="muted">{state?.meaning}</p>
      <Stale ms={node.stale_ms} />
      <Facts rows={rows} />
      {node.outside && (
        <section>
          <h3>{node.pods_enrolled ? "Why not all of it is in the mesh" : "Why not in the mesh"}</h3>
          {node.outside.map((why) => <Reason key={why.code} why={why} of="pod" />)}
        </section>
      )}
      {node.kind === "namespace" && model.level === "namespace" && (
        <p><a class="button" href={link("/graph", { level: "workload", ns: node.name })}>Show its workloads</a></p>
      )}
      {node.kind === "workload" && (
        <p><a class="button" href={link("/graph", { level: "pod", ns: node.namespace, sel: node.id })}>Show its pods</a></p>
      )}
      {route.value.params.get("focus") !== node.id && <p><a class="button" href={link("/graph", { ...Object.fromEntries(route.value.params), focus: node.id })}>Only this and its peers</a></p>}
      {node.kind !== "namespace" && <FromHubs node={node} model={model} window={window} />}
      <Lines title="Calls" edges={out} model={model} end="target" select={select} />
      <Lines title="Called by" edges={into} model={model} end="source" select={select} />
    </>
  );
}

function under(model: GraphModel, id: string, ancestor: string): boolean {
  let at: string | null | undefined = id;
  for (let depth = 0; at && depth < 4; depth++) {
    if (at === ancestor) return true;
    at = model.nodes.get(at)?.parent;
  }
  return false;
}

function touches(model: GraphModel, edge: Edge, id: string): boolean {
  return under(model, edge.source, id) || under(model, edge.target, id);
}

const TRUNKS = 3;

/** What hubs send it: no line of its own leads here from them, since their trunks end at the box around it. */
function FromHubs({ node, model, window }: { node: Node; model: GraphModel; window: number }) {
  const trunks = [...model.edges.values()].filter((edge) => edge.kind === "trunk" && edge.source !== node.id && under(model, node.id, edge.target));
  return (
    <>
      {trunks.slice(0, TRUNKS).map(({ id, source }) => {
        const hub = model.nodes.get(source);
        return <Behind key={id} source={source} target={node.id} window={window} title={`From ${hub ? fullName(hub) : nameOfId(source)}`} />;
      })}
    </>
  );
}

const SHOWN = 12;

function Lines({ title, edges, model, end, select }: {
  title: string;
  edges: Edge[];
  model: GraphModel;
  end: "source" | "target";
  select: (id: string) => void;
}) {
  if (edges.length === 0) return null;
  const rank = { open: 0, unproven: 1, denied: 2, proven: 3, quiet: 4 };
  const sorted = [...edges].sort((a, b) => rank[edgeTone(a)] - rank[edgeTone(b)] || b.rate.sent - a.rate.sent);
  return (
    <section>
      <h3>{title} <span class="muted">{edges.length}</span></h3>
      <ul class="lines">
        {sorted.slice(0, SHOWN).map((edge) => {
          const other = model.nodes.get(edge[end]);
          return (
            <li key={edge.id}>
              <button type="button" onClick={() => select(edge.id)}>
                <LockIcon sign={edgeSign(edge)} tone={edgeTone(edge)} />
                <Name>{other ? fullName(other) : nameOfId(edge[end])}</Name>
                <span class="muted">{edge.label}</span>
              </button>
            </li>
          );
        })}
      </ul>
      {edges.length > SHOWN && <p class="muted">and {edges.length - SHOWN} more; the list view has them all</p>}
    </section>
  );
}

function EdgeDetails({ edge, model, select, window }: Omit<PanelProps, "id"> & { edge: Edge }) {
  const state = STATE[edge.state];
  const t = edgeTone(edge);
  /** Nobody but Prometheus knows of it. */
  const past = edge.unseen === edge.pairs.total;
  const carried = edge.bytes.proven + edge.bytes.plaintext + edge.bytes.unproven;
  const rows: [string, ComponentChildren][] = [
    ["Now", past ? "not counted" : `${rate(edge.rate.sent + edge.rate.received)}, ${plural(edge.connections.open_now, "connection")} open`],
    ["In this window", past ? "not counted" : `${bytes(edge.bytes.sent + edge.bytes.received)}, ${count(edge.connections.opened)} opened`],
    ["Pairs of pods", `${count(edge.pairs.proven)} of ${count(edge.pairs.total)} proven`],
  ];
  if (edge.connections.denied > 0) rows.push(["Denied", plural(edge.connections.denied, "connection")]);
  if (edge.connections.failed > 0) rows.push(["Failed", plural(edge.connections.failed, "connection")]);
  if (edge.ports.length > 0) rows.push(["Ports", edge.ports.join(", ")]);
  rows.push(["Called as", edge.services.length > 0 ? edge.services.map((service) => <Name key={service}>{service}</Name>) : "pod address, no service"]);
  if (edge.policies.length > 0) rows.push(["Policies", edge.policies.map((policy) => <Name key={policy}>{policy}</Name>)]);
  rows.push(["Last activity", ago(edge.last_activity, now.value)]);
  return (
    <>
      <h2 class="ends">
        <EndButton id={edge.source} model={model} select={select} />
        <Icon name="arrow" />
        <EndButton id={edge.target} model={model} select={select} />
      </h2>
      <p class="badges"><Badge tone={t} sign={edgeSign(edge)}>{edge.label}</Badge>{edge.kind === "trunk" && <span class="badge">trunk of a hub</span>}</p>
      <p class="muted">{edge.lock === "closed" && edge.pairs.proven < edge.pairs.total
        ? "All that moved is proven mutual TLS. What is missing was refused, so nothing of it was carried."
        : state?.meaning}</p>
      {edge.unseen > 0 && <p class="muted">{past ? "No node proxy saw it: Prometheus itself says that it scraped this" : `${plural(edge.unseen, "pair")} of it no node proxy saw: Prometheus itself says that it scraped them`}, past the mesh.</p>}
      <Stale ms={edge.stale_ms} />
      {carried > 0 && edge.unseen === 0 && (
        <div class="share">
          <Split label={`${percent(edge.percent_mutual_tls)} mutual TLS`} parts={[
            { tone: "proven", value: edge.bytes.proven }, { tone: "unproven", value: edge.bytes.unproven }, { tone: "open", value: edge.bytes.plaintext },
          ]} />
          <span>{percent(edge.percent_mutual_tls)} of bytes</span>
        </div>
      )}
      {edge.reasons.length > 0 && (
        <section>
          <h3>Why it is not all proven</h3>
          {edge.reasons.map((why) => <Reason key={why.code + why.text} why={why} of="pair" />)}
        </section>
      )}
      {edge.identities.length > 0 && (
        <section>
          <h3>Identities</h3>
          {bySource(edge).map(([source, destinations]) => (
            <div key={source} class="identities"><Identity value={source} /><Icon name="down" size={12} />{destinations.map((destination) => <Identity key={destination} value={destination} />)}</div>
          ))}
        </section>
      )}
      <Facts rows={rows} />
      {edge.kind === "trunk" && <FanOut edge={edge} model={model} />}
      <Behind source={edge.source} target={edge.target} window={window} />
    </>
  );
}

function bySource(edge: Edge): [string, string[]][] {
  const groups = new Map<string, string[]>();
  for (const { source, destination } of edge.identities) groups.set(source, [...(groups.get(source) ?? []), destination]);
  return [...groups];
}

function EndButton({ id, model, select }: { id: string; model: GraphModel; select: (id: string) => void }) {
  const node = model.nodes.get(id);
  return <button type="button" class="linklike" onClick={() => select(id)}><Name>{node ? fullName(node) : nameOfId(id)}</Name></button>;
}

function FanOut({ edge, model }: { edge: Edge; model: GraphModel }) {
  const name = model.nodes.get(edge.target)?.name;
  if (!name || model.level === "namespace") return null;
  const params = route.value.params;
  const open = (params.get("expand") ?? "").split(",").filter(Boolean);
  const next = [...open, name].join(",");
  const all: Record<string, string> = Object.fromEntries(params);
  return <p><a class="button" href={link("/graph", { ...all, expand: next, sel: undefined } as Record<string, string | undefined>)}>Fan it out in {name}</a></p>;
}

/** Pod to pod, with what each of the two proxies said: the evidence. With a title of its own it is only there if there is some. */
function Behind({ source, target, window, title }: { source: string; target: string; window: number; title?: string }) {
  const { state } = usePoll<Pairs>("/api/v1/pairs", { source, target, window, limit: 8 }, 5_000);
  if (title && (state.data ? state.data.total === 0 : state.error === null)) return null;
  const heading = title ?? "Evidence";
  if (!state.data) return <section><h3><Name>{heading}</Name></h3><p class="muted">{state.error ?? "asking the observer …"}</p></section>;
  const { pairs, total } = state.data;
  return (
    <section>
      <h3><Name>{heading}</Name> <span class="muted">{plural(total, "pair")}</span></h3>
      <ul class="evidence">
        {pairs.map((pair) => (
          <li key={`${pair.source.id} ${pair.target.id} ${pair.port}`}>
            <details>
              <summary>
                <LockIcon sign={stateSign(pair.state)} tone={tone(pair.state)} />
                <span class="between"><Name>{pair.source.pod || pair.source.address}</Name> <span class="muted">to</span> <Name>{pair.target.pod || pair.target.address}</Name><span class="muted">:{pair.port}</span></span>
                <span class={`tone-${tone(pair.state)}`}>{STATE[pair.state]?.word}</span>
              </summary>
              {pair.unseen ? <p class="muted">No node proxy saw it. Prometheus lists it as scraped, and up.</p> : <Records records={pair.records} />}
              {pair.why && <Reason why={pair.why} />}
            </details>
          </li>
        ))}
      </ul>
      {total > pairs.length && <p class="muted">worst first; {count(total - pairs.length)} more at <a href={`/api/v1/pairs?source=${encodeURIComponent(source)}&target=${encodeURIComponent(target)}`} target="_blank" rel="noreferrer">the API</a></p>}
    </section>
  );
}
