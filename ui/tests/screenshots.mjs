// The pictures of the documentation, from the embedded build fed by the generator:
// node tests/screenshots.mjs ../docs/images

import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { chromium } from "@playwright/test";

const out = process.argv[2] ?? "../docs/images";
mkdirSync(out, { recursive: true });
const generator = process.env.AMBIT_GENERATOR ?? "../target/debug/examples/generator";
const ports = { 10: 18_410, 100: 18_411, 1000: 18_412, silent: 18_413 };
const children = Object.entries(ports).map(([pods, port]) =>
  spawn(generator, pods === "silent" ? ["--pods", "40", "--silence", "1", "--port", String(port)] : ["--pods", pods, "--port", String(port)], { stdio: "ignore" }));

const TRUNK = "trunk:wl:monitoring/prometheus>ns:payments";
const pictures = [
  ["overview-light", 100, "/", "light"],
  ["overview-dark", 100, "/", "dark"],
  ["graph-10-light", 10, "/graph", "light"],
  ["graph-10-dark", 10, "/graph", "dark"],
  ["graph-10-outside-light", 10, `/graph?sel=${encodeURIComponent("wl:bookinfo/cart")}`, "light"],
  ["graph-100-trunk-light", 100, `/graph?sel=${encodeURIComponent(TRUNK)}`, "light"],
  ["graph-1000-namespaces-light", 1000, "/graph?level=namespace", "light"],
  ["graph-1000-namespaces-dark", 1000, "/graph?level=namespace", "dark"],
  ["graph-1000-pods-light", 1000, "/graph?level=pod", "light"],
  ["graph-1000-pods-dark", 1000, "/graph?level=pod", "dark"],
  ["graph-list-light", 100, "/graph?view=list", "light"],
  ["graph-silent-proxy-light", "silent", "/graph", "light"],
  ["targets-light", 100, "/targets", "light", "tbody tr:nth-child(3) button.ghost"],
  ["targets-1000-dark", 1000, "/targets", "dark"],
];
try {
  for (const port of Object.values(ports)) await answers(port);
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  for (const [name, pods, path, colorScheme, click] of pictures) {
    const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, colorScheme });
    const page = await context.newPage();
    if (pods === "silent") {
      await page.goto(`http://127.0.0.1:${ports[pods]}${path}`);
      await page.getByRole("alert").waitFor({ timeout: 60_000 });
    } else {
      await page.goto(`http://127.0.0.1:${ports[pods]}${path}`);
    }
    await page.waitForTimeout(2_500);
    if (click) {
      await page.locator(click).click();
      await page.mouse.move(5, 5);
      await page.waitForTimeout(500);
    }
    await page.screenshot({ path: `${out}/${name}.png` });
    await context.close();
  }
  await browser.close();
} finally {
  for (const child of children) child.kill();
}

async function answers(port) {
  for (let tries = 0; tries < 100; tries++) {
    try {
      if ((await fetch(`http://127.0.0.1:${port}/healthz`)).ok) return;
    } catch {
      // not yet there
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  throw new Error(`no generator answers on port ${port}: is ${generator} built?`);
}
