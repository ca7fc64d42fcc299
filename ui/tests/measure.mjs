// How fast it is, as a table: node tests/measure.mjs NAME=URL… (each an observer fed by the generator).
// Software rendering, since that is what a virtual desktop or a CI machine has.

import { chromium } from "@playwright/test";

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-precise-memory-info"],
});
console.log("| pods | level | open to picture, ms | still picture, ms | frames/s, panned | heap, MB | stream, kB/s |");
console.log("|---|---|---|---|---|---|---|");
for (const argument of process.argv.slice(2)) {
  const [name, url] = argument.split("=");
  for (const level of ["namespace", "workload", "pod"]) {
    const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
    const page = await context.newPage();
    const network = await context.newCDPSession(page);
    await network.send("Network.enable");
    let received = 0;
    network.on("Network.dataReceived", (data) => (received += data.encodedDataLength));
    const begun = Date.now();
    await page.goto(`${url}/graph?level=${level}`);
    await page.waitForFunction(() => window.__ambit?.times().length > 0, undefined, { polling: 20, timeout: 60_000 });
    const picture = Date.now() - begun;
    await page.waitForTimeout(2_000);
    const before = received;
    await page.waitForTimeout(5_000);
    const stream = (received - before) / 5_000;
    const counted = page.evaluate(() => new Promise((resolve) => {
      let n = 0;
      const start = performance.now();
      const turn = () => {
        n += 1;
        if (performance.now() - start < 3_000) requestAnimationFrame(turn);
        else resolve(n / 3);
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
    const { times, heap } = await page.evaluate(() => ({ times: window.__ambit.times(), heap: performance.memory.usedJSHeapSize / 1e6 }));
    const typical = times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
    console.log(`| ${name} | ${level} | ${picture} | ${typical.toFixed(0)} | ${frames.toFixed(0)} | ${heap.toFixed(0)} | ${stream.toFixed(1)} |`);
    await context.close();
  }
}
await browser.close();
