// Keeping a workflow under a name: as it was brought, or with the values that were tuned on a stream.

import { Refusal, json, request } from "./api.js";
import { $, say, sentence, show } from "./dom.js";
import { wordsOf } from "./messages.js";

const LONGEST = 100; // characters of a name

export const pathOf = (name) => `/workflows/${encodeURIComponent(name)}`;

/** A name that the worker takes, as near to `title` as there is one. */
export function nameFrom(title) {
  const name = title.replace(/\.(json|png|webp|jpe?g)$/i, "").replace(/[^\p{L}\p{N}_ .()+&,'@-]+/gu, " ").replace(/\s+/g, " ");
  return name.replace(/^[^\p{L}\p{N}_]+/u, "").slice(0, LONGEST).replace(/[ .,(]+$/, "") || "workflow";
}

/** The dialog that asks for a name. `onKept(name)` is told when it is done. */
export class KeepDialog {
  constructor(onKept) {
    this.onKept = onKept;
    this.what = null;
    $("keep-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.keep($("keep-name").value.trim());
    });
    $("keep-cancel").addEventListener("click", () => $("keep-dialog").close());
    $("keep-name").addEventListener("input", () => this.doubt(null));
  }

  /**
   * Ask under which name. `session` is the one whose workflow and values are kept; else `content` (text or a file)
   * is, as it came.
   */
  ask({ name, session, content, note }) {
    this.what = { session, content };
    $("keep-name").value = name;
    say("keep-note", note);
    this.doubt(null);
    $("keep-dialog").showModal();
    $("keep-name").select();
  }

  async keep(name) {
    const replace = this.replacing === name;
    $("keep-submit").disabled = true;
    try {
      await (this.what.session ? this.saveSession(name, replace) : this.putContent(name, replace));
      $("keep-dialog").close();
      await this.onKept(name);
    } catch (error) {
      this.doubt(sentence(wordsOf(error)), error instanceof Refusal && this.mayReplace(error) ? name : null);
    }
    $("keep-submit").disabled = false;
  }

  /** Whether the refusal is that another workflow has the name, and not that it cannot be written at all. */
  mayReplace(error) {
    return error.status === 412 || (error.status === 409 && error.message.includes("another workflow"));
  }

  saveSession(name, replace) {
    return json(`${pathOf(name)}/save`, { method: "POST", body: { session: this.what.session, replace } });
  }

  async putContent(name, replace) {
    const { content } = this.what;
    const type = typeof content === "string" ? "application/json" : content.type || "application/octet-stream";
    const headers = replace ? {} : { "If-None-Match": "*" };
    const answer = await request(pathOf(name), { method: "PUT", body: content, type, headers });
    if (!answer.ok) throw new Refusal(answer.status, await answer.json().catch(() => null));
  }

  /** What stands in the way; a second press replaces what has the name `replacing`. */
  doubt(words, replacing = null) {
    this.replacing = replacing;
    say("keep-problem", words ?? "");
    show("keep-problem", words !== null);
    say("keep-submit", replacing ? "Replace it" : "Keep");
  }
}
