// The overview: how much is proven, what is not and what cures it, and what the mesh cannot see.

import { useEffect, useState } from "preact/hooks";
import type { Finding, Measure, NamespaceRow, Overview } from "../api/types.js";
import { now } from "../clock.js";
import { ago, bytes, count, percent, plural } from "../model/format.js";
import { headline } from "../model/words.js";
import { LockIcon } from "../parts/icon.js";
import { Command, Failure, measureLabel, measureParts, Name, Notice, Reason, Segments, Spark, Split } from "../parts/parts.js";
import { link } from "../router.js";
import { overview } from "./mesh.js";

type Kind = "plaintext" | "unproven" | "denied" | "failed";

export function OverviewPage() {
  useEffect(() => overview.use(), []);
  const { data, error } = overview.state.value;
  if (!data) return error ? <Failure error={error} again={() => overview.now()} /> : <Skeleton />;
  return (
    <div class="page overview">
      {data.hints.map((hint) => (
        <Notice key={hint.code} tone={hint.code === "NO_PROMETHEUS" ? "info" : "warn"}><p>{hint.text}</p><Command value={hint.command} /></Notice>
      ))}
      <div class="tiles">
        <Coverage data={data} />
        <div class="stats">
          <Scrapes data={data} />
          <Stat href={link("/graph", { q: "denied or failed", view: "list" })} tone={data.coverage.denied + data.coverage.failed > 0 ? "denied" : "quiet"}
            value={count(data.coverage.denied + data.coverage.failed)} title="Refused or failed"
            text={data.coverage.denied + data.coverage.failed === 0 ? "no connection in five minutes" : `${count(data.coverage.denied)} denied by policy, ${count(data.coverage.failed)} failed`} />
          <Proxies data={data} />
        </div>
      </div>
      <Findings data={data} />
      <Namespaces rows={data.namespaces} />
    </div>
  );
}

function Skeleton() {
  return <div class="page overview" aria-busy="true"><div class="tiles"><div class="card coverage skeleton" /><div class="stats"><div class="card skeleton" /><div class="card skeleton" /><div class="card skeleton" /></div></div></div>;
}

function Coverage({ data }: { data: Overview }) {
  const { by_bytes, by_connections, by_pairs, uncounted_pairs, denominator } = data.coverage;
  const { of, measure, tone, sign } = headline(data.coverage);
  return (
    <section class="card coverage" aria-labelledby="coverage">
      <h2 id="coverage">Mutual TLS, proven at both ends</h2>
      <div class="hero">
        <span class={`hero-lock tone-${tone}`}><LockIcon sign={sign} size={40} /></span>
        <p class="hero-number">{measure.percent === null ? "no traffic" : percent(measure.percent)}</p>
        <p class="hero-text">{measure.percent === null ? "in the last five minutes" : <>of {of === "bytes" ? bytes(measure.total) : `${plural(measure.total, "pair")} of pods`}<br />in the last five minutes</>}</p>
      </div>
      <Measured what="Bytes" m={by_bytes} show={bytes} />
      <Measured what="Connections" m={by_connections} show={count} />
      <Measured what="Pairs of pods" m={by_pairs} show={count} />
      <ul class="key" aria-hidden="true">
        <li><i class="fill-proven" />mutual TLS</li><li><i class="fill-unproven" />unproven</li><li><i class="fill-open" />plaintext</li>
      </ul>
      {uncounted_pairs > 0 && <p class="fine"><b>Not counted:</b> the bytes of {plural(uncounted_pairs, "scrape that goes", "scrapes that go")} past the mesh. Prometheus says so; no node proxy sees {uncounted_pairs === 1 ? "it" : "them"}.</p>}
      <p class="fine"><b>Of what?</b> Of {denominator}.</p>
      <p class="fine"><b>What cannot be seen:</b> {data.blind.text}.</p>
    </section>
  );
}

function Measured({ what, m, show }: { what: string; m: Measure; show: (value: number) => string }) {
  return (
    <div class="measured">
      <span>{what}</span>
      <Split parts={measureParts(m)} label={measureLabel(what, m)} />
      <b>{percent(m.percent)}</b>
      <span class="muted">{m.plaintext > 0 ? `${show(m.plaintext)} plaintext` : m.unproven > 0 ? `${show(m.unproven)} unproven` : ""}</span>
    </div>
  );
}

function Stat({ href, tone, value, of, title, text }: { href: string; tone: "proven" | "open" | "unproven" | "denied" | "quiet"; value: string; of?: string; title: string; text: string }) {
  return (
    <a class="card stat" href={href}>
      <h2>{title}</h2>
      <p class={`stat-value tone-${tone}`}>{value}{of !== undefined && <span> / {of}</span>}</p>
      <p class="muted">{text}</p>
    </a>
  );
}

function Scrapes({ data }: { data: Overview }) {
  const s = data.scrapes;
  if (s.total === 0) return <Stat href="/targets" tone="quiet" value="–" title="Scrapes proven" text="no Prometheus with targets is known" />;
  const rest = [[s.plaintext, "plaintext"], [s.denied, "denied"], [s.unproven, "unproven"], [s.one_sided, "one-sided"]] as const;
  const words = rest.filter(([n]) => n > 0).map(([n, word]) => `${count(n)} ${word}`).join(", ");
  return <Stat href="/targets" tone={s.proven === s.total ? "proven" : s.plaintext > 0 ? "open" : "unproven"} value={count(s.proven)} of={count(s.total)} title="Scrapes proven" text={words || "every scrape is mutual TLS"} />;
}

function Proxies({ data }: { data: Overview }) {
  const silent = data.proxies.filter((proxy) => proxy.stale_ms !== null);
  const lost = data.limits.rows_lost_by_proxies;
  const text = silent.length > 0 ? `silent: ${silent.slice(0, 3).map((p) => p.node).join(", ")}${silent.length > 3 ? " …" : ""}` : lost > 0 ? `${count(lost)} rows lost by proxies` : "all report";
  return <Stat href={link("/graph", { q: "stale", view: "list" })} tone={silent.length > 0 ? "unproven" : "quiet"} value={count(data.proxies.length - silent.length)} of={count(data.proxies.length)} title="Node proxies" text={data.proxies.length === 0 ? "none has reported yet" : text} />;
}

function Findings({ data }: { data: Overview }) {
  const kinds: { value: Kind; word: string }[] = [
    { value: "plaintext", word: "Plaintext" }, { value: "unproven", word: "Unproven" }, { value: "denied", word: "Denied" }, { value: "failed", word: "Failed" },
  ];
  const [picked, setPicked] = useState<Kind | null>(null);
  const kind = picked ?? kinds.find((k) => data[k.value].length > 0)?.value ?? "plaintext";
  const [limit, setLimit] = useState(8);
  const rows = data[kind];
  return (
    <section class="card findings" aria-labelledby="findings">
      <div class="card-head">
        <h2 id="findings">{kind === "plaintext" ? "Still plaintext, and why" : kind === "unproven" ? "Not proven, and why" : kind === "denied" ? "Denied, and by whom" : "Failed, and why"}</h2>
        <Segments label="Kind" value={kind} onChange={(value) => { setPicked(value); setLimit(8); }} options={kinds.map((k) => ({ value: k.value, label: `${k.word} ${data[k.value].length}` }))} />
      </div>
      {rows.length === 0
        ? <p class="allgood"><LockIcon sign={kind === "plaintext" || kind === "unproven" ? "closed" : "none"} tone={kind === "plaintext" || kind === "unproven" ? "proven" : "quiet"} size={20} />{none(kind, data)}</p>
        : <ul>{rows.slice(0, limit).map((f) => <Row key={`${f.source} ${f.target} ${f.why.code}`} f={f} kind={kind} />)}</ul>}
      {rows.length > limit && <p class="more"><button type="button" onClick={() => setLimit(limit + 30)}>Show more of {rows.length}</button></p>}
    </section>
  );
}

function none(kind: Kind, data: Overview): string {
  if (data.coverage.by_pairs.total === 0) return "Nothing moved in the last five minutes.";
  return { plaintext: "No plaintext was seen in the last five minutes.", unproven: "Nothing is left unproven.", denied: "No policy refused anything.", failed: "No connection failed." }[kind];
}

function Row({ f, kind }: { f: Finding; kind: Kind }) {
  const sign = kind === "plaintext" ? "open" : kind === "unproven" ? (f.why.code === "NOT_REPORTED" ? "one_sided" : "contradiction") : "denied";
  const tone = kind === "plaintext" ? "open" : kind === "unproven" ? "unproven" : "denied";
  return (
    <li>
      <LockIcon sign={sign} tone={tone} size={18} />
      <div class="who">
        <p><Name>{f.source_name}</Name> <span class="muted">to</span> {f.targets > 1 && <>{count(f.targets)} workloads of </>}<Name>{f.target_name}</Name>{f.ports.length > 0 && <span class="muted">:{f.ports.slice(0, 4).join(",")}</span>}</p>
        <p class="muted">{kind === "plaintext" || kind === "unproven" ? f.why.reason === "unseen" ? "scraped past every node proxy, " : `${bytes(f.bytes)}, ` : `${plural(f.connections, "connection")}, `}{ago(f.last_activity, now.value)}{f.policy && <> · policy <Name>{f.policy}</Name></>}</p>
      </div>
      <Reason why={f.why} of="pair" />
      <a class="button" href={where(f, kind)} aria-label={`In graph: ${f.source_name} to ${f.target_name}`}>In graph</a>
    </li>
  );
}

/** One line is picked; of several, the list shows those and no others. */
function where(f: Finding, kind: Kind): string {
  if (f.targets === 1) return link("/graph", { level: "workload", sel: `${f.source}>${f.target}`, hubs: "edges" });
  return link("/graph", { level: "workload", ns: f.target_name, focus: f.source, hubs: "edges", view: "list", q: kind === "unproven" ? undefined : kind });
}

function Namespaces({ rows }: { rows: NamespaceRow[] }) {
  const [all, setAll] = useState(false);
  const busy = rows.filter((row) => (row.pods ?? 1) > 0 || row.coverage.total > 0);
  const shown = all ? rows : busy.slice(0, 12);
  if (rows.length === 0) return null;
  return (
    <section class="card" aria-labelledby="namespaces">
      <div class="card-head"><h2 id="namespaces">Namespaces</h2><span class="muted">{count(busy.length)} with pods or traffic</span></div>
      <div class="scroll" tabIndex={0} role="region" aria-labelledby="namespaces">
        <table class="namespaces">
          <thead><tr><th scope="col">Namespace</th><th scope="col">In the mesh</th><th scope="col">Proven mutual TLS</th><th scope="col" class="num">Denied</th><th scope="col">Traffic</th></tr></thead>
          <tbody>
            {shown.map((row) => (
              <tr key={row.id}>
                <th scope="row"><a href={link("/graph", { level: "workload", ns: row.name })}><Name>{row.name}</Name></a></th>
                <td><Enrolled row={row} /></td>
                <td><div class="cover"><Split parts={measureParts(row.coverage)} label={measureLabel(row.name, row.coverage)} /><span class={row.coverage.percent === 100 ? "tone-proven" : row.coverage.plaintext > 0 ? "tone-open" : "muted"}>{percent(row.coverage.percent)}</span></div></td>
                <td class="num">{row.denied > 0 ? <span class="tone-denied">{count(row.denied)}</span> : <span class="muted">–</span>}</td>
                <td><Spark values={row.sparkline} label={`Traffic of ${row.name}: ${bytes(row.sparkline.reduce((a, b) => a + b, 0))} in five minutes`} /></td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {rows.length > shown.length && <p class="more"><button type="button" onClick={() => setAll(true)}>Show all {rows.length}</button></p>}
    </section>
  );
}

function Enrolled({ row }: { row: NamespaceRow }) {
  if (row.pods === null || row.pods_enrolled === null) return <span class="muted">unknown</span>;
  if (row.pods === 0) return <span class="muted">no pods</span>;
  const host = row.pods_host_network ?? 0;
  const text = `${count(row.pods_enrolled)} of ${plural(row.pods, "pod")}`;
  return <span class={row.pods_enrolled < row.pods ? "" : "muted"}>{text}{host > 0 && <span class="muted"> · {host} on the host network</span>}{row.labelled === false && row.pods_enrolled === 0 && <span class="muted"> · not labelled</span>}</span>;
}

