// The pages against the observer itself, fed by its generator: the real API, the real headers, the embedded build.
// Beforehand: npm run build && cargo build -p ambit-observe --example generator. Browser: Debian's Chromium.

import { defineConfig } from "@playwright/test";
import { CHROMIUM } from "./tests/parts/chromium.js";

const generator = process.env["AMBIT_GENERATOR"] ?? "../target/debug/examples/generator";

export const TEN = 18_310, THOUSAND = 18_311, SILENT = 18_312;

const serve = (port: number, args: string) => ({
  command: `${generator} --port ${port} ${args}`,
  url: `http://127.0.0.1:${port}/healthz`,
  reuseExistingServer: false,
  gracefulShutdown: { signal: "SIGTERM" as const, timeout: 2_000 },
});

export default defineConfig({
  testDir: "tests/pages",
  timeout: 40_000,
  workers: 1,
  reporter: [["list"]],
  use: {
    baseURL: `http://127.0.0.1:${TEN}`,
    viewport: { width: 1440, height: 900 },
    launchOptions: CHROMIUM,
  },
  webServer: [serve(TEN, "--pods 10"), serve(THOUSAND, "--pods 1000"), serve(SILENT, "--pods 40 --silence 1")],
});
