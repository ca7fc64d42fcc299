// How pages are looked at, against the generator and in a lab alike.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { expect, type Page } from "@playwright/test";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

interface Axe { run: (options: unknown) => Promise<{ violations: { id: string; impact: string; nodes: { html: string }[] }[] }> }

/** No violation that axe calls serious or worse. It is run beside the page's policy, which rightly lets no script in. */
export async function accessible(page: Page): Promise<void> {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => (window as unknown as { axe: Axe }).axe.run({ resultTypes: ["violations"] }));
  const grave = found.violations.filter((v) => v.impact === "serious" || v.impact === "critical")
    .map((v) => `${v.id}: ${v.nodes.slice(0, 2).map((n) => n.html).join(" | ")}`);
  expect(grave).toEqual([]);
}

/** What the browser complains of: errors of scripts, and whatever the policy had to stop. */
export function complaints(page: Page): string[] {
  const list: string[] = [];
  page.on("pageerror", (error) => list.push(error.message));
  page.on("console", (message) => {
    if (message.type() === "error" && !/Failed to load resource/.test(message.text())) list.push(message.text());
  });
  return list;
}

export async function ready(page: Page): Promise<void> {
  await page.waitForFunction(() => window.__ambit !== undefined && window.__ambit.times().length > 0);
}
