// Numbers for people. Percentages are never rounded up: the observer cuts them, and so do we.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

export function bytes(count: number): string {
  let value = count;
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.floor(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export function rate(perSecond: number): string {
  return `${bytes(perSecond)}/s`;
}

export function count(value: number): string {
  return value.toLocaleString("en", { maximumFractionDigits: 0 }).replace(/,/g, "\u2009");
}

/** 100 % only if all; one digit after the point otherwise, cut. */
export function percent(value: number | null): string {
  if (value === null) return "–";
  if (value >= 100) return "100 %";
  return `${(Math.floor(value * 10) / 10).toFixed(1)} %`;
}

export function age(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export function ago(at: number | null, now: number): string {
  return at === null ? "never" : `${age(now - at)} ago`;
}

export function plural(value: number, one: string, many = `${one}s`): string {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** An identity without what is the same in all of them: `ns/sa` of the trust domain that is said elsewhere. */
export function shortIdentity(identity: string): { domain: string; rest: string } {
  const match = /^spiffe:\/\/([^/]+)(\/.*)$/.exec(identity);
  return match ? { domain: match[1] ?? "", rest: match[2] ?? "" } : { domain: "", rest: identity };
}
