// Which workflow runs: a bundled one, or one that somebody drops, pastes or opens, with its problems by node.

import { Refusal, json } from "./api.js";
import { $, el, say, sentence, show } from "./dom.js";
import { wordsOf } from "./messages.js";

const LARGEST = 4 << 20; // characters of a workflow that are read at all
const SETTLE = 1500; // ms after a choice in which what the worker said before it counts for nothing
const FEW = 12; // nodes up to which those without a problem are listed too

/** `onChosen(workflow, title)` makes a workflow (a bundled name, or JSON data) run; throws when refused. */
export class Workflows {
  constructor({ onChosen, onMedia }) {
    this.onChosen = onChosen;
    this.known = [];
    this.own = null;
    this.selected = null;
    this.busy = false;
    this.settled = 0;
    $("workflow-file").addEventListener("change", () => {
      const [file] = $("workflow-file").files;
      if (file) this.readFile(file);
      $("workflow-file").value = "";
    });
    $("paste").addEventListener("click", () => {
      $("paste-text").value = "";
      $("paste-dialog").showModal();
    });
    $("paste-cancel").addEventListener("click", () => $("paste-dialog").close());
    $("paste-form").addEventListener("submit", (event) => {
      event.preventDefault();
      $("paste-dialog").close();
      this.bring($("paste-text").value, "Pasted workflow");
    });
    $("problems-close").addEventListener("click", () => this.hideProblems());
    this.listenForDrops(onMedia);
  }

  async load() {
    this.known = (await json("/workflows")).workflows;
    this.draw();
  }

  // -- bringing one ------------------------------------------------------------------------------------

  listenForDrops(onMedia) {
    const overlay = (visible) => show("drop", visible);
    addEventListener("dragover", (event) => {
      event.preventDefault();
      overlay(true);
    });
    addEventListener("dragleave", (event) => event.relatedTarget === null && overlay(false));
    addEventListener("drop", (event) => {
      event.preventDefault();
      overlay(false);
      const [file] = event.dataTransfer.files;
      if (!file) this.bring(event.dataTransfer.getData("text"), "Dropped workflow");
      else if (/^(video|image)\//.test(file.type)) onMedia(file);
      else this.readFile(file);
    });
    addEventListener("paste", (event) => {
      if (event.target.closest?.("input, textarea, select, dialog")) return;
      const text = event.clipboardData.getData("text");
      if (text.trim().startsWith("{")) this.bring(text, "Pasted workflow");
    });
  }

  async readFile(file) {
    const title = file.name.replace(/\.json$/i, "");
    if (file.size > LARGEST) return this.showProblems(title, [], [{ message: `A workflow has at most ${LARGEST >> 20} MB, this file ${(file.size / 1048576).toFixed(1)} MB.` }]);
    return this.bring(await file.text(), title);
  }

  /** Check what somebody brought; make it run when it can, and show what is wrong when it cannot. */
  async bring(text, title) {
    let data;
    try {
      data = JSON.parse(text);
    } catch (error) {
      this.showProblems(title, [], [{ message: `This is not JSON: ${error.message}.` }]);
      return;
    }
    try {
      const { nodes, problems } = await json("/workflows/check", { method: "POST", body: { workflow: data } });
      if (problems.length) {
        this.showProblems(title, nodes, problems);
        return;
      }
      this.own = { title, data, nodes, steps: nodes.map((node) => node.title) };
      await this.choose("own:");
    } catch (error) {
      this.showProblems(title, [], [{ message: wordsOf(error) }]);
    }
  }

  // -- choosing ----------------------------------------------------------------------------------------

  /** What a stream that starts now is to run: a name, JSON data, or null for the worker's own choice. */
  get chosen() {
    if (this.selected === "own:") return this.own.data;
    // A file on the worker runs only where the operator named it.
    return this.known.some((entry) => entry.name === this.selected) ? this.selected : null;
  }

  get title() {
    return this.entry(this.selected)?.title ?? this.selected ?? "";
  }

  entry(key) {
    return key === "own:" ? this.own : this.known.find((entry) => entry.name === key);
  }

  /** A session that is shown runs `name`; what a person just chose is not overwritten. */
  follow(name, note) {
    say("workflow-of", note ?? "");
    if (performance.now() < this.settled) return;
    if (!this.busy && name && name !== this.selected && !(this.selected === "own:" && name === this.own.title)) {
      this.selected = name;
      this.draw();
    }
  }

  async choose(key) {
    const before = this.selected;
    this.selected = key;
    this.busy = true;
    this.hideProblems();
    this.draw();
    try {
      await this.onChosen(this.chosen, this.title);
    } catch (error) {
      const entry = this.entry(key);
      this.selected = before;
      const problems = error instanceof Refusal && error.details.length ? error.details : [{ message: wordsOf(error) }];
      this.showProblems(entry?.title ?? key, entry?.nodes ?? [], problems);
    }
    this.busy = false;
    this.settled = performance.now() + SETTLE;
    this.draw();
  }

  // -- drawing -----------------------------------------------------------------------------------------

  draw() {
    const focused = document.activeElement?.name === "workflow";
    const entries = this.known.map((entry) => this.choice(entry.name, entry));
    if (this.own) entries.unshift(this.choice("own:", { ...this.own, description: `Your workflow, ${this.own.nodes.length} nodes.` }));
    else if (this.selected && !this.entry(this.selected)) {
      const title = this.selected.split("/").at(-1);
      entries.unshift(this.choice(this.selected, { title, description: "From a file on the worker.", steps: [] }));
    }
    $("workflows").replaceChildren(...entries);
    $("workflows").setAttribute("aria-busy", String(this.busy));
    if (focused) $("workflows").querySelector(":checked")?.focus();
  }

  choice(key, entry) {
    const radio = el("input", {
      type: "radio", name: "workflow", value: key, checked: key === this.selected, disabled: this.busy || Boolean(entry.problem),
    });
    radio.addEventListener("change", () => this.choose(key));
    return el("label", { class: "choice", title: entry.description }, radio, el("strong", {}, entry.title),
      el("span", { class: entry.problem ? "hindrance" : null }, entry.problem ?? entry.description),
      entry.steps.length ? el("span", { class: "steps" }, entry.steps.join(" → ")) : null);
  }

  hideProblems() {
    show("problems", false);
  }

  /** Every problem beside the node that has it; those of no node first. */
  showProblems(title, nodes, problems) {
    const count = `${problems.length} problem${problems.length === 1 ? "" : "s"}`;
    say("problems-title", `${title}: ${count}`);
    const at = new Map();
    for (const problem of problems) {
      const key = problem.node_id ?? null;
      at.set(key, [...(at.get(key) ?? []), problem]);
    }
    // A node that the list lacks (one in a group of nodes) is told by what the problem says of it.
    const listed = new Set(nodes.map((node) => node.id));
    const others = problems.filter((problem) => problem.node_id != null && !listed.has(problem.node_id));
    const extra = [...new Map(others.map((problem) => [problem.node_id,
      { id: problem.node_id, title: problem.title ?? problem.class_type ?? "?", class_type: problem.class_type ?? "" }])).values()];
    const shown = [...nodes, ...extra].filter((node) => nodes.length <= FEW || at.has(node.id));
    const left = nodes.length + extra.length - shown.length;
    $("problem-list").replaceChildren(
      ...(at.get(null) ?? []).map((problem) => el("li", { class: "general" }, problemLine(problem))),
      ...shown.map((node) => nodeLine(node, at.get(node.id) ?? [])),
      ...(left ? [el("li", { class: "dim" }, `${left} other nodes have no problem.`)] : []));
    show("problems", true);
    $("problems").scrollIntoView({ block: "nearest" });
  }
}

function nodeLine(node, problems) {
  const about = node.class_type && node.class_type !== node.title ? ` ${node.class_type}` : "";
  return el("li", { class: problems.length ? "node wrong" : "node" }, el("strong", {}, node.title),
    el("small", {}, `${about} · node ${node.id}`), ...problems.map(problemLine));
}

function problemLine(problem) {
  const input = problem.input ? el("code", {}, problem.input) : null;
  return el("p", { class: "problem" }, input, input ? " " : "", sentence(problem.message));
}
