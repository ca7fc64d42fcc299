// How fast it is and what it takes, as a table: node tests/measure.mjs 10 100 1000 10000
// Each size is an observer of its own, fed by the generator (build it with --release: $AMBIT_GENERATOR). Software
// rendering, since that is what a virtual desktop or a CI machine has.

import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "@playwright/test";

const generator = process.env.AMBIT_GENERATOR ?? "../target/release/examples/generator";
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-precise-memory-info"];
/** The first picture is measured so many times, each in a fresh browser context; the middle one counts. */
const TIMES = 5;

const sizes = process.argv.slice(2).map(Number);
console.log("| pods | level | lines | open → picture | ask → snapshot | snapshot → picture | frames/s, panned | page | stream | observer |");
console.log("|---|---|---|---|---|---|---|---|---|---|");
for (const [index, pods] of sizes.entries()) {
  const port = 18_600 + index;
  const child = spawn(generator, ["--pods", String(pods), "--port", String(port)], { stdio: "ignore" });
  const home = mkdtempSync(join(tmpdir(), "ambit-measure-"));
  try {
    const url = `http://127.0.0.1:${port}`;
    await answers(url);
    const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS, env: { ...process.env, HOME: home } });
    for (const level of ["namespace", "workload", "pod"]) {
      const first = [];
      for (let i = 0; i < TIMES; i++) first.push(await firstPicture(browser, `${url}/graph?level=${level}`));
      const middle = (of) => first.map(of).sort((a, b) => a - b)[TIMES >> 1].toFixed(0);
      const live = await whileLive(browser, `${url}/graph?level=${level}`);
      console.log(`| ${pods} | ${level} | ${live.lines} | ${middle((f) => f.painted)} ms | ${middle((f) => f.snapshot - f.asked)} ms | ${middle((f) => f.painted - f.snapshot)} ms | ${live.frames.toFixed(0)} | ${live.heap.toFixed(0)} MB | ${live.stream.toFixed(1)} kB/s | ${resident(child.pid)} MB |`);
    }
    await browser.close();
  } finally {
    child.kill();
    rmSync(home, { recursive: true, force: true });
  }
}

/** Milliseconds since the address was entered: stream asked for, snapshot there, picture painted. */
async function firstPicture(browser, url) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  const page = await context.newPage();
  await page.goto(url);
  await page.waitForFunction(() => performance.getEntriesByName("ambit-painted").length > 0, undefined, { timeout: 60_000 });
  const marks = await page.evaluate(() => Object.fromEntries(["asked", "snapshot", "painted"].map((name) => [name, performance.getEntriesByName(`ambit-${name}`)[0].startTime])));
  await context.close();
  return marks;
}

/** Bytes of the stream while nobody touches it, and frames while somebody drags it about. */
async function whileLive(browser, url) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  const page = await context.newPage();
  const network = await context.newCDPSession(page);
  await network.send("Network.enable");
  let received = 0;
  network.on("Network.dataReceived", (data) => (received += data.encodedDataLength || data.dataLength));
  await page.goto(url);
  await page.waitForFunction(() => performance.getEntriesByName("ambit-painted").length > 0, undefined, { timeout: 60_000 });
  await page.waitForTimeout(3_000);
  const before = received;
  await page.waitForTimeout(10_000);
  const stream = (received - before) / 10_000;
  const counted = page.evaluate(() => new Promise((resolve) => {
    let n = 0;
    const begun = performance.now();
    const turn = () => {
      n += 1;
      const spent = performance.now() - begun;
      if (spent < 3_000) requestAnimationFrame(turn);
      else resolve((n * 1000) / spent);
    };
    requestAnimationFrame(turn);
  }));
  await page.mouse.move(700, 500);
  await page.mouse.down();
  for (let i = 0; i < 150; i++) {
    await page.mouse.move(700 + Math.sin(i / 6) * 150, 500 + Math.cos(i / 7) * 80);
    await page.waitForTimeout(15);
  }
  await page.mouse.up();
  const frames = await counted;
  const { heap, lines } = await page.evaluate(() => ({
    heap: performance.memory.usedJSHeapSize / 1e6,
    lines: window.__ambit.visible().filter((id) => id.includes(">")).length,
  }));
  await context.close();
  return { stream, frames, heap, lines };
}

function resident(pid) {
  const kb = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? "0";
  return Math.round(Number(kb) / 1000);
}

async function answers(url) {
  for (let tries = 0; tries < 300; tries++) {
    try {
      if ((await fetch(`${url}/healthz`)).ok) return;
    } catch {
      // not yet there
    }
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`no generator answers at ${url}: is ${generator} built?`);
}
