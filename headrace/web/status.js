// What is said beside and over the picture: a state, the reason for it, and what to do next.

import { $, say, sentence, show } from "./dom.js";
import { STATES } from "./messages.js";
import { nameOf } from "./sessions.js";

const ENDING = 4000; // ms for which the end of a stream is told over another that is shown
const PHASES = { connecting: "Connecting", reconnecting: "Reconnecting", failed: "Not connected", ended: "Ended" };

/** A state with its reason, on the bar under the picture. */
export function setStatus(state, name, reason) {
  $("status").dataset.state = state;
  say("state-name", name);
  say("reason", reason);
}

function overlay(title, text) {
  say("empty-title", title);
  say("empty-text", text);
}

/** Words for `view`: the worker's `state`, the `mode`, the connection's `phase`, a `note`, and a `fallback`. */
export class Status {
  constructor() {
    this.note = null;
  }

  show(view) {
    const { state, mode, phase, fallback } = view;
    const { session, ended, demo } = state;
    // An end that was meant is news for a moment only, where there is something else to see.
    if (this.note?.ending && session && performance.now() - this.note.since > ENDING) this.note = null;
    const { note } = this;
    if (mode === "own" && phase.phase !== "live") this.showPhase(phase);
    else if (note) setStatus(note.ending ? "OFFLINE" : "ERROR", note.title, note.advice);
    else if (session) {
      const over = fallback ? " Shown over HTTP." : "";
      setStatus(session.state, STATES[session.state] ?? session.state, session.explanation + over);
      $("status").title = fallback ?? "";
    } else if (mode === "own") setStatus("LOADING", "Connecting", "Waiting for the worker.");
    else setStatus("OFFLINE", "No stream", ended ? sentence(`${ended.id}: ${ended.error?.message ?? ended.reason ?? "ended"}`) : "");
    const name = mode === "own" ? "Your stream" : session?.id === demo?.id ? "Demo" : session ? nameOf(session.id) : "";
    document.title = [$("state-name").textContent, name, "Headrace"].filter(Boolean).join(" · ");
  }

  showPhase({ phase, trouble, attempt }) {
    const plain = phase === "connecting" ? "Asking the worker to take your stream." : "The connection was lost.";
    const words = trouble ? `${trouble.title}. ${trouble.advice}` : plain;
    const again = phase === "reconnecting" && attempt ? ` Attempt ${attempt + 1}.` : "";
    setStatus(phase === "failed" ? "ERROR" : "LOADING", PHASES[phase] ?? phase, words + again);
  }

  /** What lies over the picture: nothing while there is one. `fresh` says whether pictures come. */
  cover({ state, mode, phase, wanted, fresh }) {
    const { session, demo } = state;
    const connected = mode === "watch" ? session !== null : phase.phase === "live";
    const seen = connected && fresh;
    $("screen").classList.toggle("stale", !seen);
    show("empty", !seen);
    const progress = session?.progress;
    show("progress", !seen && progress != null);
    if (progress != null) $("progress").value = progress;
    if (seen) return true;
    if (mode === "own" && phase.phase !== "live") overlay(PHASES[phase.phase] ?? "", $("reason").textContent);
    else if (session) overlay("Waiting for a picture", session.explanation);
    else if (this.note) overlay(this.note.title, this.note.advice);
    else if (wanted) overlay(`There is no session ${wanted}`, "It has ended, or has not begun yet; this page shows it when it is there.");
    else {
      overlay("No stream is running", demo ? "Start your own below, or the demo again."
        : "Choose a source and start it below, or send one from OBS to the address on this page.");
    }
    return false;
  }
}
