// The proof: each target of each Prometheus, whether its last scrape was mutual TLS, and what says so.

import { useEffect, useRef, useState } from "preact/hooks";
import { authHeaders } from "../api/client.js";
import type { Prometheus, Proof, ProofCounts, Target, Targets } from "../api/types.js";
import { now } from "../clock.js";
import { ago, count, percent, plural } from "../model/format.js";
import { PROOF } from "../model/words.js";
import type { Sign } from "../parts/glyphs.js";
import { Icon, LockIcon } from "../parts/icon.js";
import { Command, Empty, Failure, Identity, Name, Notice, Reason, Split } from "../parts/parts.js";
import { Records } from "../parts/records.js";
import { usePoll } from "../poll.js";
import { link, route, set } from "../router.js";

const SIGN: Record<Proof, Sign> = { proven: "closed", one_sided: "one_sided", unproven: "contradiction", plaintext: "open", denied: "denied" };
const ORDER: Proof[] = ["proven", "one_sided", "unproven", "plaintext", "denied"];
const PAGE = 100;

export function TargetsPage() {
  const params = route.value.params;
  const proof = params.get("proof") ?? "", q = params.get("q") ?? "", prometheus = params.get("prometheus") ?? "", health = params.get("health") ?? "";
  const pool = params.get("pool") ?? "";
  const [limit, setLimit] = useState(PAGE);
  useEffect(() => setLimit(PAGE), [proof, q, prometheus, health, pool]);
  const { state, again } = usePoll<Targets>("/api/v1/targets", { proof, q, prometheus, health, pool, limit }, 5_000);
  const last = useRef<Targets | null>(null);
  if (state.data) last.current = state.data;
  const data = last.current;
  if (!data) return state.error ? <Failure error={state.error} again={again} /> : <div class="page targets" aria-busy="true"><div class="card skeleton tall" /></div>;
  if (data.prometheis.length === 0) return <NoPrometheus />;
  const filtered = proof || q || health || prometheus || pool;
  return (
    <div class="page targets">
      {state.error && <Notice tone="warn"><p>{state.error}. What stands here is of {ago(data.at, now.value)}.</p></Notice>}
      <div class="prometheis">{data.prometheis.map((p) => <Server key={p.id} p={p} alone={data.prometheis.length === 1} picked={prometheus === p.id} />)}</div>
      <section class="card" aria-labelledby="rows">
        <div class="card-head wrap">
          <h2 id="rows" class="hidden">Targets</h2>
          <Proofs summary={data.summary} proof={proof} />
          <label class="field"><span>Search</span><Search value={q} /></label>
          <label class="select">Health
            <select value={health} onChange={(event) => set({ health: event.currentTarget.value || undefined })}>
              <option value="">any</option><option value="up">up</option><option value="down">down</option><option value="unknown">not scraped yet</option>
            </select>
          </label>
          {pool && <button type="button" class="chip" onClick={() => set({ pool: undefined })}><span>pool {pool}</span><Icon name="close" size={12} /><span class="hidden">remove</span></button>}
          <button type="button" class="csv" onClick={() => void csv()}><Icon name="download" />CSV</button>
        </div>
        {data.targets.length === 0
          ? <Empty title={filtered ? "No target matches" : "No targets yet"} icon="targets"><p>{filtered ? <a href="/targets">Show all of them</a> : "Prometheus has discovered nothing to scrape. Look at its configuration's scrape jobs."}</p></Empty>
          : (
            <div class="scroll" tabIndex={0} role="region" aria-label="Scrape targets">
              <table class="targetrows">
                <thead><tr><th scope="col">Proof</th><th scope="col">Target</th><th scope="col">Client to server identity</th><th scope="col">Health</th><th scope="col" class="num">Last scrape</th><th scope="col"><span class="hidden">Evidence</span></th></tr></thead>
                <tbody>{data.targets.map((target) => <Row key={target.id} target={target} many={data.prometheis.length > 1} />)}</tbody>
              </table>
            </div>
          )}
        {data.total > data.targets.length && <p class="more"><button type="button" onClick={() => setLimit(Math.min(20_000, limit + PAGE * 4))}>Show more of {count(data.total)}</button></p>}
      </section>
    </div>
  );
}

function NoPrometheus() {
  return (
    <Empty title="No Prometheus is known" icon="targets">
      <p>It is found by the label <code>app.kubernetes.io/name=prometheus</code> on its pods, or named to the observer:</p>
      <Command value="ambit observe --prometheus http://prometheus.monitoring:9090" />
      <p class="muted">The overview and the graph work without one.</p>
    </Empty>
  );
}

function Server({ p, alone, picked }: { p: Prometheus; alone: boolean; picked: boolean }) {
  const s = p.summary;
  const all = s.total > 0 && s.proven === s.total;
  const wrong = s.total - s.proven;
  const tone = s.total === 0 ? "quiet" : all ? "proven" : s.plaintext > 0 ? "open" : "unproven";
  return (
    <section class={`card server ${picked ? "picked" : ""}`} aria-label={`Prometheus ${p.id}`}>
      <div class={`server-lock tone-${tone}`}><LockIcon sign={all ? "closed" : s.total === 0 ? "none" : "half"} size={30} /></div>
      <div class="server-main">
        <h2>{alone ? <Name>{p.id}</Name> : <button type="button" class="linklike" aria-pressed={picked} onClick={() => set({ prometheus: picked ? undefined : p.id })}><Name>{p.id}</Name></button>}</h2>
        <p class="server-sub">{p.identity ? <Identity value={p.identity} /> : <span class="tone-open">{p.enrolled === false ? "not in the mesh: all of its scrapes are plaintext" : "no identity of it was proven yet"}</span>}</p>
      </div>
      <div class="server-count">
        <p><b class={`tone-${tone}`}>{count(s.proven)}</b> <span class="muted">of {plural(s.total, "target")} proven</span></p>
        <Split label={`${s.total === 0 ? "none" : percent((s.proven / s.total) * 100)} of targets proven`} parts={[
          { tone: "proven", value: s.proven }, { tone: "unproven", value: s.one_sided + s.unproven }, { tone: "open", value: s.plaintext }, { tone: "denied", value: s.denied },
        ]} />
        <p class="muted">{all ? "every scrape is mutual TLS at both ends" : s.total === 0 ? "" : `${plural(wrong, "target")} to look at`}</p>
      </div>
      {p.error && <Notice tone="warn"><p>{p.error}</p><p class="muted">Its rows are of {ago(p.polled_at, now.value)}.</p></Notice>}
      {p.enrolled === false && <Command value={`kubectl label namespace ${p.id.split("/")[0] ?? "NAME"} istio.io/dataplane-mode=ambient`} />}
    </section>
  );
}

function Proofs({ summary, proof }: { summary: ProofCounts; proof: string }) {
  const picked = new Set(proof.split(",").filter(Boolean));
  const toggle = (which: Proof): void => {
    const next = new Set(picked);
    if (!next.delete(which)) next.add(which);
    set({ proof: [...next].join(",") || undefined });
  };
  return (
    <div class="proofs" role="group" aria-label="Proof">
      <button type="button" aria-pressed={picked.size === 0} onClick={() => set({ proof: undefined })}>All <b>{count(summary.total)}</b></button>
      {ORDER.map((which) => (
        <button key={which} type="button" aria-pressed={picked.has(which)} title={PROOF[which].meaning} onClick={() => toggle(which)}>
          <LockIcon sign={SIGN[which]} tone={summary[which] > 0 ? PROOF[which].tone : "quiet"} />{PROOF[which].word} <b>{count(summary[which])}</b>
        </button>
      ))}
    </div>
  );
}

function Search({ value }: { value: string }) {
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  const [text, setText] = useState(value);
  useEffect(() => setText(value), [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  return <input type="search" value={text} placeholder="pod, namespace, pool, reason …" maxLength={200} autocomplete="off" spellcheck={false} data-search onInput={(event) => {
    const next = event.currentTarget.value;
    setText(next);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => set({ q: next || undefined }), 250);
  }} />;
}

function Row({ target, many }: { target: Target; many: boolean }) {
  const open = route.value.params.get("target") === target.id;
  const p = PROOF[target.proof] ?? PROOF.unproven;
  const sign = SIGN[target.proof] ?? "contradiction";
  const path = pathOf(target.scrape_url);
  const drawer = `evidence-${target.id.replace(/[^A-Za-z0-9]/g, "-")}`;
  const toggle = (): void => set({ target: open ? undefined : target.id });
  return (
    <>
      <tr class={open ? "open" : ""}>
        <td><span class={`mark tone-${p.tone}`} title={p.meaning}><LockIcon sign={sign} size={18} />{p.word}</span></td>
        <th scope="row">
          <Name>{target.pod ? `${target.namespace}/${target.pod}` : target.address}</Name>
          <span class="sub"><bdi>{target.address}{path}</bdi> · {target.pool}{many && ` · ${target.prometheus}`}</span>
        </th>
        <td>
          {target.why && <span class="whyline"><Name>{target.why.text}</Name> <span class="code">{target.why.code}</span></span>}
          {target.source_identity && target.destination_identity
            ? <span class="chain"><Identity value={target.source_identity} /><Identity value={target.destination_identity} /></span>
            : !target.why && <span class="muted">–</span>}
        </td>
        <td><span class={`health ${target.health}`} title={target.last_error}><i />{target.health === "unknown" ? "not yet" : target.health}</span>{target.notes.length > 0 && <span class="code">{target.notes[0]?.code}</span>}</td>
        <td class="num">{target.last_scrape === null ? "never" : ago(target.last_scrape, now.value)}</td>
        <td class="num"><button type="button" class="ghost" aria-expanded={open} aria-controls={open ? drawer : undefined} onClick={toggle} aria-label={`Evidence for ${target.pod || target.address}`}><Icon name="down" /></button></td>
      </tr>
      {open && <tr class="drawer" id={drawer}><td colSpan={6}><Evidence target={target} /></td></tr>}
    </>
  );
}

function pathOf(url: string): string {
  try {
    return new URL(url).pathname;
  } catch {
    return "";
  }
}

function Evidence({ target }: { target: Target }) {
  const { evidence } = target;
  const span = evidence.from !== null && evidence.to !== null ? `Bytes had to move between ${clock(evidence.from)} and ${clock(evidence.to)}, around the scrape at ${target.last_scrape === null ? "–" : clock(target.last_scrape)}.` : "";
  return (
    <div class="evidence-drawer">
      <p class="verdict">{evidence.text.replace(/\.?$/, ".")} <span class="muted">{span}</span></p>
      {target.why && <Reason why={target.why} />}
      {target.notes.map((note) => <Reason key={note.code} why={note} />)}
      {target.last_error && <p class="lasterror"><span class="muted">Prometheus says</span> {target.last_error}</p>}
      <Records records={evidence.records} />
      {target.target_id && <p><a class="button" href={link("/graph", { level: "pod", ns: target.namespace, sel: target.target_id })}>Show the pod in the graph</a></p>}
    </div>
  );
}

function clock(at: number): string {
  return new Date(at).toLocaleTimeString("en-GB", { hour12: false });
}

/** By request rather than by link: a link cannot carry a token. */
async function csv(): Promise<void> {
  const response = await fetch("/api/v1/targets.csv", { headers: authHeaders() });
  if (!response.ok) return;
  const href = URL.createObjectURL(await response.blob());
  const anchor = document.createElement("a");
  anchor.href = href;
  anchor.download = "scrape-targets.csv";
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}
