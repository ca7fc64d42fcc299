// A lab for the pages: brought up and opened by the commands that users type, changed through the Kubernetes API.

import { execFile, spawn, type ChildProcess } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { request } from "node:https";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";

const AMBIT = resolve(process.env["AMBIT"] ?? "../target/debug/ambit");
const PROGRAMS = resolve("../crates/ambit/src/demo/manifests.yaml");
const PATIENCE_MS = 120_000;
const run = promisify(execFile);

export interface Pod { metadata: { name: string }; spec: { nodeName: string }; status: { conditions?: { type: string; status: string }[] } }

export class Cluster {
  private readonly home = mkdtempSync(join(tmpdir(), "ambit-view-"));
  private readonly kubeconfig = join(this.home, "kubeconfig");
  private readonly name = `v${process.pid % 10_000}`;
  private dashboard: ChildProcess | null = null;

  /** The demo's programs, and the mesh; no namespace is labelled. */
  async up(): Promise<void> {
    await this.ambit("lab", "up", "--name", this.name, "--nodes", "2", "--kubeconfig", this.kubeconfig, "-f", PROGRAMS);
    await this.ambit("install", "--set", "profile=ambient", "--kubeconfig", this.kubeconfig);
  }

  async down(): Promise<void> {
    this.dashboard?.kill("SIGINT");
    await this.ambit("lab", "down", "--name", this.name);
    rmSync(this.home, { recursive: true, force: true });
  }

  /** `ambit dashboard`: the address that it prints. */
  async open(): Promise<string> {
    const child = spawn(AMBIT, ["dashboard", "--no-browser", "--kubeconfig", this.kubeconfig], { env: this.env(), stdio: ["ignore", "pipe", "pipe"] });
    this.dashboard = child;
    return new Promise((done, fail) => {
      let errors = "";
      child.stderr.on("data", (text: Buffer) => (errors += text.toString()));
      child.stdout.once("data", (text: Buffer) => done(text.toString().trim().replace(/\/$/, "")));
      child.once("exit", (code) => fail(new Error(`ambit dashboard ended with ${code}: ${errors}`)));
    });
  }

  /** `kubectl label namespace NAME istio.io/dataplane-mode=ambient`. */
  async enrol(namespace: string): Promise<void> {
    await this.ask("PATCH", `/api/v1/namespaces/${namespace}`, { metadata: { labels: { "istio.io/dataplane-mode": "ambient" } } });
  }

  async pod(namespace: string, app: string): Promise<Pod> {
    const list = await this.ask("GET", `/api/v1/namespaces/${namespace}/pods?labelSelector=app%3D${app}`) as { items: Pod[] };
    const [pod] = list.items;
    if (!pod) throw new Error(`no pod of ${app} in ${namespace}`);
    return pod;
  }

  async create(path: string, body: unknown): Promise<void> {
    await this.ask("POST", path, body);
  }

  async remove(path: string): Promise<void> {
    await this.ask("DELETE", path);
  }

  /** Takes the node proxy from all nodes but this one. */
  async proxiesOnlyOn(node: string): Promise<void> {
    const pinned = { spec: { template: { spec: { nodeSelector: { "kubernetes.io/hostname": node } } } } };
    await this.ask("PATCH", "/apis/apps/v1/namespaces/ambit-system/daemonsets/ambit-proxy", pinned);
  }

  private env(): NodeJS.ProcessEnv {
    return { ...process.env, HOME: this.home, KUBECONFIG: this.kubeconfig };
  }

  private async ambit(...args: string[]): Promise<void> {
    await run(AMBIT, args, { env: this.env(), timeout: PATIENCE_MS });
  }

  private ask(method: string, path: string, body?: unknown): Promise<unknown> {
    const config = readFileSync(this.kubeconfig, "utf8");
    const value = (key: string): string => {
      const found = new RegExp(`${key}:\\s+(?:>-\\s+)?(\\S+)`).exec(config)?.[1];
      if (found === undefined) throw new Error(`no ${key} in the kubeconfig`);
      return found;
    };
    const decoded = (key: string): Buffer => Buffer.from(value(key), "base64");
    const text = body === undefined ? undefined : JSON.stringify(body);
    const type = method === "PATCH" ? "application/merge-patch+json" : "application/json";
    return new Promise((done, fail) => {
      const asked = request(`${value("server")}${path}`, {
        method, timeout: 10_000,
        ca: decoded("certificate-authority-data"), cert: decoded("client-certificate-data"), key: decoded("client-key-data"),
        headers: text === undefined ? {} : { "Content-Type": type, "Content-Length": Buffer.byteLength(text) },
      }, (answer) => {
        let got = "";
        answer.setEncoding("utf8");
        answer.on("data", (part: string) => (got += part));
        answer.on("end", () => ((answer.statusCode ?? 500) < 300 ? done(JSON.parse(got)) : fail(new Error(`${method} ${path}: ${answer.statusCode} ${got}`))));
      });
      asked.on("timeout", () => asked.destroy(new Error(`${method} ${path}: no answer`)));
      asked.on("error", fail);
      asked.end(text);
    });
  }
}
