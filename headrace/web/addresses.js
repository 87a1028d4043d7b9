// Where other programs send to and watch from: WHIP and WHEP for OBS, and where a trickle stream is started.

import { hasToken } from "./api.js";
import { $, say, show } from "./dom.js";
import { nameOf } from "./sessions.js";

const HERE = /^(localhost|127\.|\[::1\])/;
const COPIED = 1500; // ms that a button says so

export class Addresses {
  constructor() {
    this.hosts = [];
    $("stream-name").addEventListener("input", () => this.draw());
    for (const button of document.querySelectorAll("button[data-copy]")) {
      button.addEventListener("click", () => this.copy(button));
    }
  }

  /** `workflow` is a bundled name or null; `watched` the session on stage, if any. */
  update({ hosts, workflow, watched }) {
    Object.assign(this, { hosts, workflow, watched });
    this.draw();
  }

  /** The worker's address as other machines know it, where this page was opened on its own machine. */
  get origin() {
    const { protocol, hostname, port, origin } = location;
    if (!HERE.test(hostname) || !this.hosts.length) return origin;
    const host = this.hosts.find((name) => /^[\d.]+$/.test(name)) ?? this.hosts[0];
    return `${protocol}//${host.includes(":") ? `[${host}]` : host}${port ? `:${port}` : ""}`;
  }

  draw() {
    const { origin, workflow, watched } = this;
    const name = encodeURIComponent($("stream-name").value.trim() || "obs");
    const query = workflow ? `?${new URLSearchParams({ workflow })}` : "";
    $("whip").value = `${origin}/whip/${name}${query}`;
    $("whep").value = `${origin}/whep/${watched ? encodeURIComponent(watched) : name}`;
    say("whep-of", watched ? `watches ${nameOf(watched)}` : `watches ${decodeURIComponent(name)}`);
    $("trickle").value = `${origin}/live-video-to-video`;
    show("token-hint", hasToken());
    const alone = HERE.test(location.hostname) && !this.hosts.length;
    show("alone-hint", alone);
  }

  async copy(button) {
    const field = $(button.dataset.copy);
    field.select();
    let done = true;
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      // Without https there is no clipboard; the address is selected, and the old command may still work.
      done = document.execCommand("copy");
    }
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), COPIED);
  }
}
