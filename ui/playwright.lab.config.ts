// The pages over a real mesh: a lab of two nodes with real programs, installed and opened by the commands that users
// have. Needs root, and Debian's packages of the lab. Beforehand: npm run build && cargo build -p ambit.

import { defineConfig } from "@playwright/test";
import { CHROMIUM } from "./tests/parts/chromium.js";

export default defineConfig({
  testDir: "tests/lab",
  timeout: 150_000,
  workers: 1,
  reporter: [["list"]],
  use: { viewport: { width: 1440, height: 900 }, launchOptions: CHROMIUM },
});
