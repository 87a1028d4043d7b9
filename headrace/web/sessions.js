// Which session is on stage: this browser's own, or one of those that run.

import { $, el, show } from "./dom.js";

/** What a session is called: that of a page has a name to be unguessable, not to be read. */
export const nameOf = (id) => (id.startsWith("page-") ? `A page's stream (${id.slice(5, 9)})` : id);

export class SessionChoice {
  constructor() {
    this.key = null;
    $("session").addEventListener("change", () => {
      location.hash = new URLSearchParams({ session: $("session").value }).toString();
    });
  }

  /** `own` and `current` are names of sessions or null; `wanted` is the one that the address asks for. */
  update(sessions, { own, current, wanted }) {
    const options = new Map(sessions.map(({ id }) => [id, nameOf(id)]));
    if (own) options.set(own, "Your stream");
    if (current && !options.has(current)) options.set(current, nameOf(current));
    show("session-choice", options.size > 1 || (wanted !== null && options.size > 0));
    const key = JSON.stringify([...options]);
    if (key !== this.key) {
      $("session").replaceChildren(...[...options].map(([value, words]) => el("option", { value }, words)));
    }
    this.key = key;
    if (document.activeElement !== $("session")) $("session").value = current ?? "";
  }
}
