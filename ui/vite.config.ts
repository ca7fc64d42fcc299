// The build goes where the observer's build script embeds it. Names carry a hash of the content, so the
// observer may tell browsers to keep them for ever; the same sources give the same bytes.
import { gzipSync } from "node:zlib";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

const observer = process.env["AMBIT_OBSERVER"] ?? "http://127.0.0.1:8089";

/** All JavaScript together, gzipped: more than this is no build. */
const BUDGET = 120_000;

const budget: Plugin = {
  name: "budget",
  generateBundle(_, bundle) {
    let sum = 0;
    for (const file of Object.values(bundle)) if (file.type === "chunk") sum += gzipSync(file.code, { level: 9 }).length;
    if (sum > BUDGET) this.error(`the JavaScript is ${sum} bytes gzipped, more than ${BUDGET}`);
  },
};

export default defineConfig({
  plugins: [budget],
  build: {
    outDir: "../crates/observe/ui-dist",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: true,
  },
  server: { proxy: { "/api": observer } },
  preview: { proxy: { "/api": observer } },
  test: { include: ["tests/unit/**/*.test.ts"], environment: "node" },
});
