// The frame: rail, top bar, the page of the route, and keys that work everywhere. A page that comes later is one more
// line in PAGES.

import type { ComponentType } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { tokenWanted } from "./api/client.js";
import { now } from "./clock.js";
import { age, percent } from "./model/format.js";
import { headline } from "./model/words.js";
import { GraphPage } from "./pages/graph.js";
import { overview } from "./pages/mesh.js";
import { OverviewPage } from "./pages/overview.js";
import { TargetsPage } from "./pages/targets.js";
import { Icon, LockIcon, type IconName } from "./parts/icon.js";
import { Empty, TokenForm } from "./parts/parts.js";
import { go, route } from "./router.js";
import { setTheme, theme, type Theme } from "./theme.js";

interface Page { path: string; name: string; key: string; icon: IconName; page: ComponentType }

const PAGES: Page[] = [
  { path: "/", name: "Overview", key: "o", icon: "overview", page: OverviewPage },
  { path: "/graph", name: "Graph", key: "g", icon: "graph", page: GraphPage },
  { path: "/targets", name: "Scrape targets", key: "t", icon: "targets", page: TargetsPage },
];

export function App() {
  const here = PAGES.find((page) => page.path === route.value.path);
  const help = useRef<HTMLDialogElement>(null);
  useEffect(() => overview.use(), []);
  useEffect(() => {
    document.title = here ? `${here.name} · Ambit` : "Ambit";
  }, [here]);
  useEffect(() => keys(() => help.current?.showModal()), []);
  const Shown = here?.page;
  return (
    <div class="frame">
      <a class="skip" href="#main">Skip to content</a>
      <nav class="rail" aria-label="Pages">
        <a class="brand" href="/" aria-label="Ambit, overview">
          <svg width="26" height="26" viewBox="0 0 32 32" aria-hidden="true">
            <rect width="32" height="32" rx="9" class="brand-ground" />
            <path d="M8.500 23 16 8.500 23.500 23" class="brand-line" />
            <circle cx="16" cy="19" r="2.700" class="brand-dot" />
          </svg>
          <span>Ambit</span>
        </a>
        <ul>
          {PAGES.map((page) => (
            <li key={page.path}>
              <a href={page.path} aria-current={page === here ? "page" : undefined} title={page.name}>
                <Icon name={page.icon} size={18} /><span>{page.name}</span>
              </a>
            </li>
          ))}
        </ul>
        <div class="rail-foot">
          <ThemeSwitch />
          <button type="button" class="ghost" onClick={() => help.current?.showModal()} title="Keys and signs (?)">
            <Icon name="help" size={18} /><span>Help</span>
          </button>
        </div>
      </nav>
      <div class="stage">
        <header class="top">
          <h1 tabIndex={-1}>{here?.name ?? "Not found"}</h1>
          <MeshLock />
        </header>
        <main id="main" class={here?.path === "/graph" ? "full" : ""}>
          {tokenWanted.value
            ? <TokenForm then={() => location.reload()} />
            : Shown ? <Shown /> : <Empty title="There is no such page"><p>Begin at the <a href="/">overview</a>.</p></Empty>}
        </main>
      </div>
      <Help dialog={help} />
    </div>
  );
}

function MeshLock() {
  const { data, error, at } = overview.state.value;
  if (!data) return null;
  const { of, measure, tone, sign } = headline(data.coverage);
  return (
    <div class="mesh">
      {error && at !== null && <span class="stale" role="status">data is {age(now.value - at)} old: {error}</span>}
      <a class={`meshlock tone-${tone}`} href="/" title={data.coverage.denominator}>
        <LockIcon sign={sign} size={17} />
        <strong>{measure.percent === null ? "no traffic" : percent(measure.percent)}</strong>
        {measure.percent !== null && <span>mTLS{of === "pairs" && ", of pairs"}</span>}
      </a>
    </div>
  );
}

function ThemeSwitch() {
  const next: Record<Theme, Theme> = { auto: "light", light: "dark", dark: "auto" };
  const names: Record<Theme, string> = { auto: "As the system", light: "Light", dark: "Dark" };
  const icons: Record<Theme, IconName> = { auto: "auto", light: "sun", dark: "moon" };
  const value = theme.value;
  return (
    <button type="button" class="ghost" onClick={() => setTheme(next[value])} title={`Colours: ${names[value]}`} aria-label={`Colours: ${names[value]}. Change to ${names[next[value]]}`}>
      <Icon name={icons[value]} size={18} /><span>{names[value]}</span>
    </button>
  );
}

/** `/` searches, `g` and a letter goes to a page, `?` helps. Not while somebody types. */
function keys(help: () => void): () => void {
  let prefix = -Infinity;
  const down = (event: KeyboardEvent): void => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if ((event.target as Element).closest?.("input, textarea, select, dialog")) return;
    if (event.key === "?") help();
    else if (event.key === "/") {
      const box = document.querySelector<HTMLInputElement>("[data-search]");
      if (!box) return;
      box.focus();
      box.select();
    } else if (prefix > event.timeStamp - 1200) {
      const page = PAGES.find((candidate) => candidate.key === event.key);
      prefix = -Infinity;
      if (!page) return;
      go(page.path);
    } else if (event.key === "g") {
      prefix = event.timeStamp;
      return;
    } else return;
    event.preventDefault();
  };
  addEventListener("keydown", down);
  return () => removeEventListener("keydown", down);
}

function Help({ dialog }: { dialog: { current: HTMLDialogElement | null } }) {
  const rows: [string, string][] = [
    ["/", "search"], ["g o, g g, g t", "overview, graph, scrape targets"], ["?", "this"],
    ["arrows", "graph: to the nearest node that way"], ["n, p", "graph: next and previous line of what is picked"],
    ["Enter", "graph: open what is picked"], ["Esc", "graph: let go of it"], ["+ − 0", "graph: nearer, farther, all of it"],
    ["l", "graph: as a list, and back"],
  ];
  return (
    <dialog ref={dialog} class="help" aria-labelledby="help-title">
      <form method="dialog"><button class="ghost close" aria-label="Close"><Icon name="close" /></button></form>
      <h2 id="help-title">Signs and keys</h2>
      <div class="help-columns">
        <section>
          <h3>Signs</h3>
          <ul class="legend">
            <li><LockIcon sign="closed" tone="proven" size={18} /><span><b>Closed lock.</b> Every byte is proven mutual TLS: both node proxies say so, with the same two identities.</span></li>
            <li><LockIcon sign="open" tone="open" size={18} /><span><b>Open lock.</b> Plaintext. The reason and its cure stand beside it.</span></li>
            <li><LockIcon sign="half" tone="open" size={18} /><span><b>Half-filled, open.</b> Some of it is mutual TLS; the number says how much, cut, never rounded up.</span></li>
            <li><LockIcon sign="one_sided" tone="unproven" size={18} /><span><b>Half-filled, shut.</b> Only one of the two proxies saw it. Not proven.</span></li>
            <li><LockIcon sign="contradiction" tone="unproven" size={18} /><span><b>Unequal.</b> The two proxies contradict each other.</span></li>
            <li><LockIcon sign="denied" tone="denied" size={18} /><span><b>Barred.</b> A policy refused it, or it failed.</span></li>
          </ul>
        </section>
        <section>
          <h3>Keys</h3>
          <dl class="keys">{rows.map(([key, what]) => <><dt key={key}><kbd>{key}</kbd></dt><dd>{what}</dd></>)}</dl>
        </section>
      </div>
    </dialog>
  );
}
