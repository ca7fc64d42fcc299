// The graph as a table: the same lines, the same filters, the same selection, for those who read rather than look.

import { useMemo, useState } from "preact/hooks";
import type { Edge } from "../api/types.js";
import { age, bytes, count } from "../model/format.js";
import type { GraphModel } from "../model/model.js";
import { fullName, nameOfId, STATE } from "../model/words.js";
import { LockIcon } from "../parts/icon.js";
import { Empty, Name } from "../parts/parts.js";
import type { Scene, SceneEdge } from "./scene.js";

const PAGE = 200;

export function ListView({ scene, model, selected, select, searching }: {
  scene: Scene;
  model: GraphModel;
  selected: string | null;
  select: (id: string | null) => void;
  searching: boolean;
}) {
  const [limit, setLimit] = useState(PAGE);
  const rows = useMemo(() => {
    const rank = { open: 0, unproven: 1, denied: 2, proven: 3, quiet: 4 };
    const within = scene.boxes.flatMap((box) => box.within ?? []);
    return [...scene.edges, ...within].filter((e) => !searching || e.strong)
      .sort((a, b) => rank[a.tone] - rank[b.tone] || flow(b) - flow(a) || (a.edge.id < b.edge.id ? -1 : 1));
  }, [scene, searching]);
  if (rows.length === 0) return <Empty title={searching ? "Nothing matches" : "Nothing moved in this window"} icon="list"><p>{searching ? "Loosen what is in the find box." : "A longer window may show more."}</p></Empty>;
  const name = (id: string): string => {
    const node = model.nodes.get(id);
    return node ? fullName(node) : nameOfId(id);
  };
  return (
    <div class="listview" tabIndex={0} role="region" aria-label="Connections as a list">
      <table>
        <caption class="hidden">Connections, those that are not proven first</caption>
        <thead><tr><th scope="col">From</th><th scope="col">To</th><th scope="col">Security</th><th scope="col" class="num">Rate</th><th scope="col" class="num">Open</th><th scope="col">Why not</th></tr></thead>
        <tbody>
          {rows.slice(0, limit).map((e) => (
            <tr key={e.edge.id} class={`${e.edge.id === selected ? "picked" : ""} ${e.edge.stale_ms === null ? "" : "old"}`}>
              <td><button type="button" class="rowlink" aria-pressed={e.edge.id === selected} onClick={() => select(e.edge.id === selected ? null : e.edge.id)}><Name>{name(e.edge.source)}</Name></button></td>
              <td><Name>{name(e.edge.target)}</Name>{e.edge.ports.length > 0 && <span class="muted">:{e.edge.ports.slice(0, 3).join(",")}{e.edge.ports.length > 3 && "…"}</span>}</td>
              <td><span class={`mark tone-${e.edge.stale_ms === null ? e.tone : "quiet"}`} title={STATE[e.edge.state]?.meaning}><LockIcon sign={e.sign} />{e.edge.label}{e.edge.stale_ms !== null && ` · ${age(e.edge.stale_ms)} old`}</span></td>
              <td class="num">{past(e) ? <span class="muted">not seen</span> : `${bytes(flow(e))}/s`}</td>
              <td class="num">{past(e) ? <span class="muted">–</span> : count(e.edge.connections.open_now)}</td>
              <td class="why"><Reasons edge={e.edge} /></td>
            </tr>
          ))}
        </tbody>
      </table>
      {rows.length > limit && <p class="more"><button type="button" onClick={() => setLimit(limit + PAGE)}>Show more of {count(rows.length)}</button></p>}
    </div>
  );
}

function Reasons({ edge }: { edge: Edge }) {
  const [why] = edge.reasons;
  if (why) return <><Name>{why.text}</Name> <span class="code">{why.code}</span></>;
  if (edge.connections.denied > 0) return <>refused {count(edge.connections.denied)} of its connections{edge.policies[0] && <>: policy <Name>{edge.policies[0]}</Name></>} <span class="code">DENIED_BY_POLICY</span></>;
  return <span class="muted">–</span>;
}

/** Known from Prometheus alone: no proxy counted anything of it. */
function past(e: SceneEdge): boolean {
  return e.edge.unseen > 0 && e.edge.unseen === e.edge.pairs.total;
}

function flow(e: SceneEdge): number {
  return e.edge.rate.sent + e.edge.rate.received;
}
