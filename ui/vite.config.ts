// The build goes where the observer's build script embeds it. Names carry a hash of the content, so the
// observer may tell browsers to keep them for ever; the same sources give the same bytes.
import { defineConfig } from "vitest/config";

const observer = process.env["AMBIT_OBSERVER"] ?? "http://127.0.0.1:8089";

export default defineConfig({
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
