// Small pieces that every page uses. All texts are children, so nothing from a cluster can become markup.

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { setToken, tokenWanted } from "../api/client.js";
import type { Measure, Why } from "../api/types.js";
import { visible } from "../graph/pen.js";
import { percent, plural, shortIdentity } from "../model/format.js";
import type { Tone } from "../model/words.js";
import type { Sign } from "./glyphs.js";
import { Icon, LockIcon, type IconName } from "./icon.js";

/** A name from a cluster: controls are made visible, and its direction cannot reach its surroundings. */
export function Name({ children, class: extra = "" }: { children: string; class?: string }) {
  const shown = visible(children);
  return <bdi class={`name ${extra}`} title={shown.length > 24 ? shown : undefined}>{shown}</bdi>;
}

export function Badge({ tone, sign, children }: { tone: Tone; sign: Sign; children: ComponentChildren }) {
  return <span class={`badge tone-${tone}`}><LockIcon sign={sign} size={14} />{children}</span>;
}

export function Identity({ value }: { value: string }) {
  if (!value) return <span class="muted">–</span>;
  const { domain, rest } = shortIdentity(visible(value));
  return <bdi class="identity" title={visible(value)}>{domain && <span class="muted">spiffe://{domain}</span>}{rest.split("/").map((part, i) => (i === 0 ? part : <><wbr />/{part}</>))}</bdi>;
}

export function Command({ value }: { value: string }) {
  const [copied, setCopied] = useState(false);
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined);
  useEffect(() => () => clearTimeout(timer.current), []);
  if (!value) return null;
  const copy = async (): Promise<void> => {
    try {
      await navigator.clipboard.writeText(value);
      setCopied(true);
      clearTimeout(timer.current);
      timer.current = setTimeout(() => setCopied(false), 2000);
    } catch {
      // The text stands there to be marked by hand.
    }
  };
  return (
    <span class="command">
      <code tabIndex={0}>{visible(value)}</code>
      <button type="button" class="ghost small" onClick={() => void copy()} aria-label={copied ? "Copied" : `Copy command: ${value}`}>
        <Icon name={copied ? "check" : "copy"} size={14} />
      </button>
    </span>
  );
}

/** Why something is not proven, and what cures it. */
export function Reason({ why, of }: { why: Why; of?: "pair" | "pod" }) {
  return (
    <div class="reason">
      <p>{visible(why.text)}{of && why.count > 1 && <span class="muted"> · {plural(why.count, of)}</span>} <span class="code">{why.code}</span></p>
      {why.fix && <p class="fix"><span class="muted">Cure</span> {visible(why.fix)}</p>}
      <Command value={why.command} />
    </div>
  );
}

/** Parts of a whole as one bar. Thin parts stay visible: a rare plaintext must not vanish in a thousand locks. */
export function Split({ parts, label }: { parts: { tone: Tone; value: number }[]; label: string }) {
  const total = parts.reduce((sum, part) => sum + part.value, 0);
  return (
    <div class="split" role="img" aria-label={label}>
      {total === 0
        ? <i class="none" />
        : parts.map((part) => part.value > 0 && <i key={part.tone} class={`fill-${part.tone}`} style={{ flexGrow: String(Math.max(part.value / total, 0.006)) }} />)}
    </div>
  );
}

export function measureParts(m: Measure): { tone: Tone; value: number }[] {
  return [{ tone: "proven", value: m.proven }, { tone: "unproven", value: m.unproven }, { tone: "open", value: m.plaintext }];
}

export function measureLabel(what: string, m: Measure): string {
  return m.total === 0 ? `${what}: nothing in this window` : `${what}: ${percent(m.percent)} proven mutual TLS`;
}

export function Empty({ title, children, icon = "help" }: { title: string; children?: ComponentChildren; icon?: IconName }) {
  return (
    <div class="empty">
      <span class="empty-icon"><Icon name={icon} size={22} /></span>
      <h2>{title}</h2>
      {children}
    </div>
  );
}

export function Notice({ tone, children }: { tone: "warn" | "info"; children: ComponentChildren }) {
  return <div class={`notice ${tone}`} role={tone === "warn" ? "alert" : "status"}>{children}</div>;
}

/** What stands where data should be when there never was any. */
export function Failure({ error, again }: { error: string; again: () => void }) {
  return (
    <Empty title="The observer does not answer">
      <p>{error}</p>
      <p><button type="button" onClick={again}>Try again now</button></p>
    </Empty>
  );
}

export function Segments<T extends string>({ label, value, options, onChange }: {
  label: string;
  value: T;
  options: { value: T; label: string; title?: string }[];
  onChange: (value: T) => void;
}) {
  return (
    <div class="segments" role="group" aria-label={label}>
      {options.map((option) => (
        <button key={option.value} type="button" aria-pressed={option.value === value} title={option.title} onClick={() => onChange(option.value)}>
          {option.label}
        </button>
      ))}
    </div>
  );
}

export function TokenForm({ then }: { then: () => void }) {
  const [text, setText] = useState("");
  if (!tokenWanted.value) return null;
  return (
    <Empty title="This observer wants to know who asks" icon="help">
      <p>It shows what the owner of a Kubernetes token may list. Make one that lasts an hour:</p>
      <Command value="kubectl create token -n NAMESPACE SERVICE_ACCOUNT" />
      <form class="token" onSubmit={(event) => {
        event.preventDefault();
        setToken(text);
        then();
      }}>
        <label>Token <input type="password" autocomplete="off" value={text} onInput={(event) => setText(event.currentTarget.value)} /></label>
        <button type="submit" disabled={text.trim() === ""}>Show</button>
      </form>
      <p class="muted">It stays in this tab and is forgotten with it.</p>
    </Empty>
  );
}

export function Spark({ values, label }: { values: number[]; label: string }) {
  const max = Math.max(...values, 1);
  const w = 90, h = 22;
  // The last part of the window has only begun, so its height would mislead.
  const whole = values.slice(0, -1);
  if (whole.length < 2) return null;
  const points = whole.map((value, i) => `${((i / (whole.length - 1)) * w).toFixed(1)},${(h - 2 - (value / max) * (h - 4)).toFixed(1)}`);
  return (
    <svg class="spark" width={w} height={h} viewBox={`0 0 ${w} ${h}`} role="img" aria-label={label}>
      <polygon points={`0,${h} ${points.join(" ")} ${w},${h}`} />
      <polyline points={points.join(" ")} />
    </svg>
  );
}
