// Requests to the worker, with the token where it asks for one.

import { $, say, show } from "./dom.js";

const TOKEN = "headrace.token";

/** An answer that is no success; `details` are problems as data, `field` what is at fault. */
export class Refusal extends Error {
  constructor(status, body) {
    super(body?.message ?? body?.detail?.msg ?? body?.error ?? `The worker answered with status ${status}.`);
    this.status = status;
    this.code = body?.code ?? null;
    this.field = body?.field ?? null;
    this.details = Array.isArray(body?.details) ? body.details : [];
  }
}

/** Whether the worker asks for a token; known once it has refused a request without. */
export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;

let asking = null;

/** One dialog, however many requests wait for the token. */
function askForToken(rejected) {
  if (asking) return asking;
  const dialog = $("token-dialog");
  say("token-problem", "The worker did not accept that token.");
  show("token-problem", rejected);
  $("token").value = "";
  dialog.showModal();
  asking = new Promise((given) => {
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      const token = $("token").value.trim();
      if (!/^[\x21-\x7e]+$/.test(token)) {
        say("token-problem", "A token has visible ASCII characters only.");
        show("token-problem", true);
        return;
      }
      sessionStorage.setItem(TOKEN, token);
      asking = null;
      dialog.close();
      given();
    };
  });
  // Escape closes a dialog; without the token there is nothing to see, so it comes back.
  dialog.onclose = () => asking && dialog.showModal();
  return asking;
}

/** The answer to a request; asks for the token when the worker does. Throws for an unreachable worker. */
export async function request(path, { method = "GET", body, type, session, signal, keepalive, headers: more } = {}) {
  const sent = body === undefined || type ? body : JSON.stringify(body);
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...more };
    if (token) headers.Authorization = `Bearer ${token}`;
    if (session) headers["X-Stream-Id"] = session;
    if (body !== undefined) headers["Content-Type"] = type ?? "application/json";
    const answer = await fetch(path, { method, headers, signal, keepalive, cache: "no-store", body: sent });
    if (answer.status !== 401) return answer;
    if (sessionStorage.getItem(TOKEN) === token) await askForToken(token !== null);
  }
}

/** The JSON of an answer. Throws `Refusal` for one that is no success. */
export async function json(path, options) {
  const answer = await request(path, options);
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refusal(answer.status, body);
  return body;
}
