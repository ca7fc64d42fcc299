// Asking the observer. Owns the bearer token (in memory and this tab's session, never in a link) and turns every
// failure into a sentence that says what to do. Never retries by itself: who asks decides when to ask again.

import { signal } from "@preact/signals";

const KEY = "ambit.token";

/** Whether the observer wants a token that it has not been given. */
export const tokenWanted = signal(false);

export function setToken(token: string): void {
  sessionStorage.setItem(KEY, token.trim());
  tokenWanted.value = false;
}

export function authHeaders(): Record<string, string> {
  const token = sessionStorage.getItem(KEY);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

export class ApiError extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

/** What is wrong with an answer, in the observer's own words where it gave some. */
export async function problem(response: Response): Promise<ApiError> {
  if (response.status === 401) tokenWanted.value = true;
  let text = "";
  try {
    const body: unknown = await response.clone().json();
    if (body && typeof body === "object" && "error" in body && typeof body.error === "string") text = body.error;
  } catch {
    // not JSON: the status alone must do
  }
  return new ApiError(response.status, text || `the observer answered ${response.status} ${response.statusText}`);
}

export type Params = Record<string, string | number | undefined>;

export function url(path: string, params: Params = {}): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    if (value !== undefined && value !== "") query.set(name, String(value));
  }
  const text = query.toString();
  return text ? `${path}?${text}` : path;
}

/** GET of JSON, bounded in time. */
export async function get<T>(path: string, params: Params = {}, signal?: AbortSignal): Promise<T> {
  const limit = AbortSignal.timeout(15_000);
  let response: Response;
  try {
    response = await fetch(url(path, params), {
      headers: { Accept: "application/json", ...authHeaders() },
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, limit.aborted
      ? "the observer did not answer within 15 seconds"
      : "the observer cannot be reached: is `ambit dashboard` (or the port-forward) still running?");
  }
  if (!response.ok) throw await problem(response);
  return (await response.json()) as T;
}
