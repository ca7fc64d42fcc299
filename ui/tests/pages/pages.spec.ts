import { expect, test } from "@playwright/test";
import { SILENT, THOUSAND } from "../../playwright.config.js";
import { accessible, complaints, ready } from "../parts/look.js";

const TRUNK = "trunk:wl:monitoring/prometheus>ns:bookinfo";

test.describe("every page", () => {
  for (const [path, heading] of [["/", "Overview"], ["/graph", "Graph"], ["/graph?view=list", "Graph"], ["/targets", "Scrape targets"]] as const) {
    for (const colorScheme of ["light", "dark"] as const) {
      test(`${path} in ${colorScheme} is accessible, complains of nothing and asks nobody else`, async ({ page, baseURL }) => {
        const list = complaints(page);
        const foreign: string[] = [];
        page.on("request", (request) => {
          if (!request.url().startsWith(baseURL ?? "")) foreign.push(request.url());
        });
        await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
        await page.goto(path);
        await expect(page.getByRole("heading", { level: 1 })).toHaveText(heading);
        await expect(page.getByText(/mTLS/).first()).toBeVisible();
        if (path === "/graph") await ready(page);
        await page.waitForTimeout(300);
        await accessible(page);
        expect(list).toEqual([]);
        expect(foreign).toEqual([]);
      });
    }
  }

  test("is served under a policy that allows no inline script or style", async ({ page }) => {
    const answer = await page.goto("/graph");
    const policy = answer?.headers()["content-security-policy"] ?? "";
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toContain("unsafe");
  });

  test("can be reached by keys, and help closes again", async ({ page }) => {
    await page.goto("/");
    await expect(page.getByRole("heading", { level: 1 })).toHaveText("Overview");
    await page.keyboard.press("g");
    await page.keyboard.press("t");
    await expect(page).toHaveURL(/\/targets$/);
    await page.keyboard.press("g");
    await page.keyboard.press("g");
    await expect(page).toHaveURL(/\/graph$/);
    await page.keyboard.press("/");
    await expect(page.getByLabel("Find")).toBeFocused();
    await page.getByLabel("Find").blur();
    await page.keyboard.press("?");
    await expect(page.getByRole("dialog")).toBeVisible();
    await accessible(page);
    await page.keyboard.press("Escape");
    await expect(page.getByRole("dialog")).toBeHidden();
    await page.goBack();
    await expect(page).toHaveURL(/\/targets$/);
  });

  test("keeps the colours that were chosen", async ({ page }) => {
    await page.goto("/");
    await page.getByRole("button", { name: /Colours/ }).click();
    await page.getByRole("button", { name: /Colours/ }).click();
    await expect(page.locator("html")).toHaveAttribute("data-theme", "dark");
    await page.reload();
    await expect(page.locator("html")).toHaveAttribute("data-theme", "dark");
  });

  test("that does not exist says where to begin", async ({ page }) => {
    await page.goto("/nowhere");
    await expect(page.getByText("There is no such page")).toBeVisible();
  });

  test("is usable on a narrow screen", async ({ page }) => {
    await page.setViewportSize({ width: 420, height: 800 });
    for (const path of ["/", "/graph", "/targets"]) {
      await page.goto(path);
      await expect(page.getByRole("heading", { level: 1 })).toBeVisible();
      const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth + 1);
      expect(wide, path).toBe(false);
    }
  });
});

test.describe("the overview", () => {
  test("says what is still plaintext, why, and the command that cures it", async ({ page }) => {
    await page.goto("/");
    const findings = page.getByRole("region", { name: "Still plaintext, and why" });
    await expect(findings).toContainText("OPTED_OUT");
    await expect(findings).toContainText("kubectl label pod -n bookinfo");
    await expect(page.getByText("What cannot be seen:")).toBeVisible();
    await findings.getByRole("link", { name: /^In graph/ }).first().click();
    await expect(page).toHaveURL(/\/graph\?.*sel=/);
    await expect(page.getByRole("complementary")).toContainText("plaintext");
  });
});

test.describe("the graph", () => {
  test("opens a trunk by its lock and shows its reason, its cure and what each proxy said", async ({ page }) => {
    await page.goto("/graph");
    await ready(page);
    const at = await page.evaluate((id) => window.__ambit?.screenPos(id), TRUNK);
    await page.locator(".canvas").click({ position: at ?? { x: 0, y: 0 } });
    await expect(page).toHaveURL(new RegExp("sel=trunk:"));
    const panel = page.getByRole("complementary");
    await expect(panel).toContainText("4/5 mTLS");
    await expect(panel).toContainText("OPTED_OUT");
    await expect(panel).toContainText("spiffe://cluster.local");
    await panel.locator("summary").last().click();
    await expect(panel).toContainText("The caller's node proxy");
    await expect(panel).toContainText("The called pod's node proxy");
    await accessible(page);
    await page.keyboard.press("Escape");
    await expect(panel).toBeHidden();
  });

  test("says of a workload outside the mesh why it is there, and the command that cures it", async ({ page }) => {
    await page.goto(`/graph?sel=${encodeURIComponent("wl:bookinfo/cart")}`);
    await ready(page);
    const reason = page.getByRole("complementary").locator("section", { hasText: "Why not in the mesh" });
    await expect(reason).toContainText("OPTED_OUT");
    await expect(reason).toContainText("kubectl label pod -n bookinfo");
    await accessible(page);
  });

  test("shows of a scraped workload what each proxy said of its scrapes, though the hub's trunk ends at its box", async ({ page }) => {
    await page.goto(`/graph?sel=${encodeURIComponent("wl:bookinfo/productpage-v1")}`);
    await ready(page);
    const scrapes = page.getByRole("complementary").locator("section", { hasText: "From monitoring/prometheus" });
    await scrapes.locator("summary").first().click();
    await expect(scrapes).toContainText("The caller's node proxy");
    await expect(scrapes).toContainText("spiffe://cluster.local/ns/bookinfo/sa/productpage-v1");
    await accessible(page);
    await page.goto(`/graph?sel=${encodeURIComponent("wl:monitoring/prometheus")}`);
    await ready(page);
    await expect(page.getByRole("complementary")).toContainText("Calls");
    await expect(page.getByRole("complementary")).not.toContainText("From monitoring/prometheus");
  });

  test("can be walked by keys and says what is picked", async ({ page }) => {
    await page.goto("/graph");
    await ready(page);
    await page.getByRole("application").focus();
    await page.keyboard.press("ArrowRight");
    await expect(page).toHaveURL(/sel=/);
    await page.keyboard.press("ArrowRight");
    await expect(page.locator("[aria-live=polite]")).toContainText(/workload, namespace/);
    await page.keyboard.press("n");
    await expect(page.locator("[aria-live=polite]")).toContainText(" to ");
  });

  test("moves nothing while it is live", async ({ page }) => {
    await page.goto("/graph");
    await ready(page);
    const before = await page.evaluate(() => window.__ambit?.places());
    await page.waitForResponse((response) => response.url().includes("/api/v1/overview"));
    await page.waitForResponse((response) => response.url().includes("/api/v1/overview"));
    expect(await page.evaluate(() => window.__ambit?.places())).toEqual(before);
  });

  test("finds and hides", async ({ page }) => {
    await page.goto("/graph?q=plaintext&view=list");
    await expect(page.locator("tbody tr").first()).toContainText("OPTED_OUT");
    const found = await page.locator("tbody tr").count();
    await page.goto("/graph?view=list");
    await expect.poll(() => page.locator("tbody tr").count()).toBeGreaterThan(found);
    await page.goto("/graph?hide=ns:shop");
    await ready(page);
    expect((await page.evaluate(() => window.__ambit?.visible()))?.filter((id) => id.startsWith("wl:shop"))).toEqual([]);
  });

  test("as a list holds the same lines, and the same selection", async ({ page }) => {
    await page.goto("/graph");
    await ready(page);
    const lines = (await page.evaluate(() => window.__ambit?.visible()))?.filter((id) => id.includes(">")).length;
    await page.keyboard.press("l");
    await expect(page.locator("tbody tr")).toHaveCount(lines ?? -1);
    await page.getByRole("button", { name: "monitoring/prometheus" }).first().click();
    await expect(page.getByRole("complementary")).toContainText("trunk of a hub");
  });

  test("shows a link's level, namespace and selection at once", async ({ page }) => {
    await page.goto("/graph?level=pod&ns=shop");
    await ready(page);
    await expect(page.getByRole("button", { name: "Pods", exact: true })).toHaveAttribute("aria-pressed", "true");
    expect((await page.evaluate(() => window.__ambit?.visible()))?.some((id) => id.startsWith("pod:shop/"))).toBe(true);
    await page.getByRole("button", { name: /only namespace shop/ }).click();
    await expect(page).not.toHaveURL(/ns=/);
  });

  test("of a thousand pods is painted soon and stays movable", async ({ page }) => {
    await page.goto(`http://127.0.0.1:${THOUSAND}/graph?level=pod`);
    await ready(page);
    const box = await page.locator(".canvas").boundingBox();
    if (!box) throw new Error("no canvas");
    const frames = page.evaluate(() => new Promise<number>((resolve) => {
      let n = 0;
      const begun = performance.now();
      const turn = (): void => {
        n += 1;
        if (performance.now() - begun < 2000) requestAnimationFrame(turn);
        else resolve(n / ((performance.now() - begun) / 1000));
      };
      requestAnimationFrame(turn);
    }));
    await page.mouse.move(box.x + 600, box.y + 400);
    await page.mouse.down();
    for (let i = 0; i < 40; i++) await page.mouse.move(box.x + 600 + Math.sin(i / 4) * 120, box.y + 400 + Math.cos(i / 5) * 60);
    await page.mouse.up();
    const times = await page.evaluate(() => window.__ambit?.times() ?? []);
    console.log(`1,000 pods: ${(await frames).toFixed(0)} frames a second while panned, still picture ${Math.max(...times).toFixed(0)} ms at most`);
    expect(times.length).toBeGreaterThan(0);
    expect((await page.evaluate(() => window.__ambit?.visible()))?.filter((id) => id.startsWith("pod:") && !id.includes(">")).length).toBe(1001);
  });

  test("greys what a silent proxy saw, with its age", async ({ page }) => {
    await page.goto(`http://127.0.0.1:${SILENT}/graph?view=list`);
    await expect(page.getByRole("alert")).toContainText(/node-001 for \d+ s/, { timeout: 30_000 });
    await expect(page.locator("tr.old").first()).toContainText(/\d+ s old/);
    await expect(page.locator("tr.old .tone-proven")).toHaveCount(0);
    await accessible(page);
  });
});

test.describe("the scrape targets", () => {
  test("show each with its proof, and the evidence of both proxies", async ({ page }) => {
    await page.goto("/targets");
    await expect(page.getByRole("button", { name: /^All/ })).toContainText("10");
    const rows = page.locator("tbody tr");
    await expect(rows.first()).toContainText("Plaintext");
    await expect(rows.first()).toContainText("OPTED_OUT");
    await page.getByRole("button", { name: /^Proven/ }).click();
    await expect(page).toHaveURL(/proof=proven/);
    await expect(rows).toHaveCount(9);
    await rows.first().getByRole("button", { name: /Evidence/ }).click();
    await expect(page.locator(".evidence-drawer")).toContainText("The caller's node proxy");
    await expect(page.locator(".evidence-drawer")).toContainText("mutual TLS, allowed");
    await page.reload();
    await expect(page.locator(".evidence-drawer")).toBeVisible();
    await accessible(page);
  });

  test("show a denied scrape with its policy, and a one-sided one as not proven", async ({ page }) => {
    await page.goto(`http://127.0.0.1:${THOUSAND}/targets?proof=denied,one_sided`);
    await expect(page.locator("tbody tr", { hasText: "Denied" })).toContainText("policy");
    await expect(page.locator("tbody tr", { hasText: "One-sided" })).toContainText("NOT_REPORTED");
    await expect(page.locator("tbody .tone-proven")).toHaveCount(0);
  });

  test("are found by a search, and a search without a hit leads back", async ({ page }) => {
    await page.goto("/targets");
    await page.getByLabel("Search").fill("nothing-is-called-this");
    await expect(page.getByText("No target matches")).toBeVisible();
    await page.getByRole("link", { name: "Show all of them" }).click();
    await expect(page.locator("tbody tr")).toHaveCount(10);
  });

  test("can be taken along as CSV", async ({ page }) => {
    await page.goto("/targets");
    const download = page.waitForEvent("download");
    await page.getByRole("button", { name: "CSV" }).click();
    expect((await download).suggestedFilename()).toBe("scrape-targets.csv");
  });
});

test.describe("when something is wrong", () => {
  test("an observer that does not answer is named, and asked again on request", async ({ page }) => {
    let down = true;
    await page.route("**/api/v1/overview*", (route) => (down ? route.abort() : route.continue()));
    await page.goto("/");
    await expect(page.getByText("The observer does not answer")).toBeVisible();
    await expect(page.getByText(/ambit dashboard/)).toBeVisible();
    down = false;
    await page.getByRole("button", { name: "Try again now" }).click();
    await expect(page.getByText("Mutual TLS, proven at both ends")).toBeVisible();
  });

  test("old data stays, with its age", async ({ page }) => {
    await page.goto("/");
    await expect(page.getByText("Mutual TLS, proven at both ends")).toBeVisible();
    await page.route("**/api/v1/overview*", (route) => route.fulfill({ status: 500, json: { error: "the store is on fire" } }));
    await expect(page.getByText(/data is \d+ s old: the store is on fire/)).toBeVisible({ timeout: 15_000 });
    await expect(page.getByText("Mutual TLS, proven at both ends")).toBeVisible();
  });

  test("a missing token is asked for and then sent", async ({ page }) => {
    const seen: (string | undefined)[] = [];
    await page.route("**/api/v1/**", (route) => {
      const token = route.request().headers()["authorization"];
      seen.push(token);
      return token === "Bearer let-me-in" ? route.continue() : route.fulfill({ status: 401, json: { error: "a token is needed" } });
    });
    await page.goto("/");
    await page.getByRole("textbox", { name: "Token" }).fill("let-me-in");
    await page.getByRole("button", { name: "Show", exact: true }).click();
    await expect(page.getByText("Mutual TLS, proven at both ends")).toBeVisible();
    expect(page.url()).not.toContain("let-me-in");
    expect(seen.at(-1)).toBe("Bearer let-me-in");
  });

  test("an empty mesh says the next step", async ({ page }) => {
    const answer = await (await page.request.get("/api/v1/graph")).json() as Record<string, unknown>;
    await page.route("**/api/v1/stream*", (route) => route.fulfill({
      contentType: "text/event-stream",
      body: `event: snapshot\nid: x-1\ndata: ${JSON.stringify({ sequence: "x-1", graph: { ...answer, nodes: [], edges: [] } })}\n\n`,
    }));
    await page.goto("/graph");
    await expect(page.getByText("Nothing to draw yet")).toBeVisible();
    await expect(page.getByText("kubectl label namespace NAME istio.io/dataplane-mode=ambient")).toBeVisible();
    await page.route("**/api/v1/targets*", (route) => route.fulfill({ json: { at: 1, prometheis: [], summary: { total: 0, proven: 0, one_sided: 0, plaintext: 0, denied: 0, unproven: 0, up: 0 }, total: 0, targets: [] } }));
    await page.goto("/targets");
    await expect(page.getByText("No Prometheus is known")).toBeVisible();
  });

  test("hostile names are shown as text, whole pages stay in shape", async ({ page }) => {
    const list = complaints(page);
    const evil = "<img src=x onerror=\"window.hit=1\">\u202egpj.exe</script><script>window.hit=1</script>";
    const long = "x".repeat(253);
    const graph = await (await page.request.get("/api/v1/graph?level=workload")).json() as { nodes: { id: string; name: string; kind: string }[] };
    const named = { ...graph, nodes: graph.nodes.map((n, i) => ({ ...n, name: i % 2 ? evil : long })) };
    await page.route("**/api/v1/stream*", (route) => route.fulfill({
      contentType: "text/event-stream",
      body: `event: snapshot\nid: x-1\ndata: ${JSON.stringify({ sequence: "x-1", graph: named })}\n\n`,
    }));
    for (const path of ["/graph", `/graph?sel=${encodeURIComponent(graph.nodes.find((n) => n.kind === "workload")?.id ?? "")}`, "/graph?view=list"]) {
      await page.goto(path);
      await expect(page.getByRole("heading", { level: 1 })).toBeVisible();
      await page.waitForTimeout(500);
      expect(await page.evaluate(() => ({ hit: (window as { hit?: number }).hit, images: document.images.length, wide: document.documentElement.scrollWidth > innerWidth + 1 }))).toEqual({ hit: undefined, images: 0, wide: false });
    }
    await expect(page.locator("tbody")).toContainText("<img src=x");
    expect(await page.locator("tbody").textContent()).not.toContain("\u202e");
    expect(list).toEqual([]);
  });
});
