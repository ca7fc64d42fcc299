// The story that the view exists for, over the real mesh: an open lock with its reason, two labels, a closed one; then
// what must not look right: a scrape that a policy refuses, and data whose proxy is gone.

import { expect, test, type Page } from "@playwright/test";
import { accessible, complaints, ready } from "../parts/look.js";
import { Cluster } from "./cluster.js";

const LINE = "wl:monitoring/prometheus>wl:bookinfo/productpage-v1";
/** A short window, so that what was plaintext before the labels is soon past. */
const GRAPH = `/graph?level=workload&hubs=edges&window=30&sel=${encodeURIComponent(LINE)}`;
const SCRAPER = "spiffe://cluster.local/ns/monitoring/sa/prometheus";
const POLICIES = "/apis/security.istio.io/v1/namespaces/bookinfo/authorizationpolicies";

const cluster = new Cluster();
let address = "";

test.describe.configure({ mode: "serial" });
test.beforeAll(async () => {
  test.setTimeout(240_000);
  await cluster.up();
  address = await cluster.open();
});
test.afterAll(() => cluster.down());

const sign = (page: Page): Promise<string | null | undefined> => page.evaluate((id) => window.__ambit?.sign(id), LINE);

/** For the documentation, where a directory is given. */
async function picture(page: Page, name: string): Promise<void> {
  const directory = process.env["AMBIT_PICTURES"];
  if (directory === undefined) return;
  await page.mouse.move(4, 4);
  await page.waitForTimeout(1_500);
  await page.screenshot({ path: `${directory}/${name}.png` });
}

test("before the labels the lock is open, with its reason and its cure", async ({ page }) => {
  const list = complaints(page);
  await page.goto(address + GRAPH);
  await expect.poll(() => sign(page), { timeout: 60_000 }).toBe("open");
  const panel = page.getByRole("complementary");
  await expect(panel).toContainText("SRC_NOT_ENROLLED");
  await expect(panel).toContainText("kubectl label namespace monitoring istio.io/dataplane-mode=ambient");
  await expect(panel).toContainText("No node proxy saw it");
  await accessible(page);
  await page.goto(`${address}/`);
  // One cause, one line, with its cure.
  await expect(page.getByRole("region", { name: "Still plaintext, and why" })).toContainText("12 workloads of bookinfo", { timeout: 60_000 });
  await expect(page.getByRole("region", { name: "Mutual TLS, proven at both ends" })).not.toContainText("100 %");
  await accessible(page);
  await page.goto(`${address}/graph?level=workload&sel=${encodeURIComponent("wl:bookinfo/productpage-v1")}`);
  const outside = page.getByRole("complementary").locator("section", { hasText: "Why not in the mesh" });
  await expect(outside).toContainText("NOT_ENROLLED");
  await expect(outside).toContainText("kubectl label namespace bookinfo istio.io/dataplane-mode=ambient");
  await page.goto(`${address}/graph`);
  await ready(page);
  await picture(page, "lab-before-light");
  expect(list).toEqual([]);
});

test("two labels close it, on a page that is open all the while", async ({ page }) => {
  await page.goto(address + GRAPH);
  await expect.poll(() => sign(page)).toBe("open");
  await cluster.enrol("bookinfo");
  await cluster.enrol("monitoring");
  await expect.poll(() => sign(page), { timeout: 120_000 }).toBe("closed");
  const panel = page.getByRole("complementary");
  await expect(panel).toContainText("mutual TLS");
  await panel.locator("summary").first().click();
  await expect(panel).toContainText("The caller's node proxy");
  await expect(panel).toContainText("The called pod's node proxy");
  for (const identity of [SCRAPER, "spiffe://cluster.local/ns/bookinfo/sa/productpage"]) {
    await expect(panel.getByTitle(identity).first()).toBeVisible();
  }
  await accessible(page);

  await page.goto(`${address}/targets`);
  await expect(page.locator("tbody tr", { hasText: "productpage" })).toContainText("Proven", { timeout: 60_000 });
  await expect(page.locator("tbody tr", { hasText: "Plaintext" })).toHaveCount(0, { timeout: 60_000 });
  await accessible(page);
  await picture(page, "lab-targets-light");
  await page.goto(`${address}/graph`);
  await ready(page);
  await picture(page, "lab-after-light");
});

test("a scrape that a policy refuses is shown with its policy", async ({ page }) => {
  await cluster.create(POLICIES, {
    apiVersion: "security.istio.io/v1", kind: "AuthorizationPolicy", metadata: { name: "no-scrapes", namespace: "bookinfo" },
    spec: { selector: { matchLabels: { app: "productpage" } }, action: "DENY", rules: [{ from: [{ source: { principals: [SCRAPER.replace("spiffe://", "")] } }] }] },
  });
  await page.goto(`${address}/targets?proof=denied`);
  const row = page.locator("tbody tr", { hasText: "productpage" });
  await expect(row).toContainText("Denied", { timeout: 60_000 });
  await expect(row).toContainText("bookinfo/no-scrapes", { timeout: 60_000 });
  await accessible(page);
  await page.goto(`${address}${GRAPH}`);
  await expect(page.getByRole("complementary")).toContainText("bookinfo/no-scrapes", { timeout: 60_000 });
  await page.goto(`${address}/`);
  await page.getByRole("button", { name: /^Denied [1-9]/ }).click();
  await expect(page.getByRole("region", { name: "Denied, and by whom" })).toContainText("bookinfo/no-scrapes");
  await cluster.remove(`${POLICIES}/no-scrapes`);
});

test("a node proxy that is gone greys what it saw, with its age", async ({ page }) => {
  const { spec: { nodeName } } = await cluster.pod("bookinfo", "productpage");
  const other = nodeName === "node1" ? "node2" : "node1";
  await page.goto(`${address}/graph?level=workload&hubs=edges&view=list`);
  await expect(page.locator("tbody tr").first()).toBeVisible();
  await expect(page.locator("tr.old")).toHaveCount(0);
  await cluster.proxiesOnlyOn(other);
  await expect(page.getByRole("alert")).toContainText(new RegExp(`${nodeName} for \\d+ s`), { timeout: 90_000 });
  const row = page.locator("tr.old", { has: page.getByText("bookinfo/productpage-v1") }).first();
  await expect(row).toContainText(/\d+ s old/);
  await expect(page.locator("tr.old .tone-proven")).toHaveCount(0);
  await accessible(page);
  await page.getByRole("button", { name: "Graph", exact: true }).click();
  await ready(page);
  await picture(page, "lab-proxy-gone-light");
});
