// Which workflow runs: a kept or bundled one, or one that somebody drops, pastes or opens, with its problems by node.

import { Refusal, json } from "./api.js";
import { $, el, say, sentence, show } from "./dom.js";
import { KeepDialog, nameFrom, pathOf } from "./keep.js";
import { wordsOf } from "./messages.js";

const LARGEST = 8 << 20; // bytes of a workflow that are read at all
const LARGEST_PICTURE = 64 << 20; // bytes of a picture that may carry one
const SETTLE = 1500; // ms after a choice in which what the worker said before it counts for nothing
const FEW = 12; // nodes up to which those without a problem are listed too

/**
 * `onChosen(workflow, title)` makes a workflow (a name, or JSON data) run; throws when refused. `tuned()` is the
 * session on stage whose parameters were changed, or null.
 */
export class Workflows {
  constructor({ onChosen, onMedia, tuned }) {
    this.onChosen = onChosen;
    this.onMedia = onMedia;
    this.tuned = tuned;
    this.dialog = new KeepDialog((name) => this.kept(name));
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
    $("keep").addEventListener("click", () => this.keep());
    $("save").addEventListener("click", () => this.keep());
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
    $("problems-keep").addEventListener("click", () => {
      const { title, content } = this.refused;
      this.dialog.ask({ name: nameFrom(title), content, note: "It cannot run yet; it is kept as it came, and can run when its problems are gone." });
    });
    $("problems-close").addEventListener("click", () => this.hideProblems());
    this.listenForDrops();
  }

  async load() {
    this.known = (await json("/workflows")).workflows;
    this.draw();
  }

  // -- bringing one ------------------------------------------------------------------------------------

  listenForDrops() {
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
      else if (/^video\//.test(file.type)) this.onMedia(file);
      else this.readFile(file, true);
    });
    addEventListener("paste", (event) => {
      if (event.target.closest?.("input, textarea, select, dialog")) return;
      const text = event.clipboardData.getData("text");
      if (text.trim().startsWith("{")) this.bring(text, "Pasted workflow");
    });
  }

  /** A file that somebody chose or dropped; a `dropped` picture without a workflow is a source. */
  async readFile(file, dropped = false) {
    const title = file.name.replace(/\.(json|png|apng|webp|jpe?g)$/i, "");
    const picture = /^image\//.test(file.type);
    const most = picture ? LARGEST_PICTURE : LARGEST;
    if (file.size > most) return this.showProblems(title, [], [{ message: `A workflow has at most ${most >> 20} MB, this file ${(file.size / 1048576).toFixed(1)} MB.` }]);
    return picture ? this.bringPicture(file, title, dropped) : this.bring(await file.text(), title);
  }

  /** The workflow that a picture carries; the worker reads it. */
  async bringPicture(file, title, dropped) {
    try {
      const { nodes, problems, workflow } = await json("/workflows/check", { method: "POST", body: file, type: file.type });
      await this.take({ title, data: workflow, content: file, nodes }, problems);
    } catch (error) {
      if (dropped && error instanceof Refusal && error.code === "invalid_workflow") this.onMedia(file);
      else this.showProblems(title, [], [{ message: wordsOf(error) }]);
    }
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
      await this.take({ title, data, content: text, nodes }, problems);
    } catch (error) {
      this.showProblems(title, [], [{ message: wordsOf(error) }]);
    }
  }

  async take(own, problems) {
    if (problems.length) {
      this.showProblems(own.title, own.nodes, problems, own.content);
      return;
    }
    this.own = { ...own, steps: own.nodes.map((node) => node.title) };
    await this.choose("own:");
  }

  // -- keeping -----------------------------------------------------------------------------------------

  /** Ask for a name and keep what runs: with its values where they were tuned, else as it was brought. */
  keep() {
    const session = this.tuned();
    const own = this.selected === "own:" ? this.own : null;
    const known = this.entry(this.selected);
    const name = known?.kept ? known.name : nameFrom(own?.title ?? `my ${this.selected ?? "workflow"}`);
    if (session) {
      this.dialog.ask({ name, session, note: "With the values of its parameters as they are now; all else in the file stays." });
    } else if (own) this.dialog.ask({ name, content: own.content, note: "The file as it came, on the worker. It can be used by this name everywhere." });
  }

  /** `name` is kept now: it takes the place of what was brought. */
  async kept(name) {
    await this.load();
    if (this.selected === "own:") {
      this.own = null;
      this.selected = name;
    }
    this.settled = performance.now() + SETTLE;
    this.hideProblems();
    this.draw();
  }

  async remove(name) {
    if (!confirm(`Remove the workflow “${name}” from the worker?`)) return;
    try {
      await json(pathOf(name), { method: "DELETE" });
    } catch (error) {
      this.showProblems(name, [], [{ message: wordsOf(error) }]);
    }
    await this.load();
  }

  /** Every problem of a kept workflow, node by node. */
  async explain(name) {
    try {
      const workflow = await json(pathOf(name));
      const { nodes, problems } = await json("/workflows/check", { method: "POST", body: { workflow } });
      this.showProblems(name, nodes, problems);
    } catch (error) {
      this.showProblems(name, [], [{ message: wordsOf(error) }]);
    }
  }

  /** Show what can be kept. */
  showKeeping() {
    const tuned = this.tuned() !== null;
    show("keep", this.selected === "own:" && !tuned);
    show("save", tuned);
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

  /** A session that is shown runs `name`, of which `names` are others; what a person just chose stays. */
  follow(name, note, names = []) {
    say("workflow-of", note ?? "");
    this.showKeeping();
    if (name && !this.entry(name) && name !== this.unknown) {
      // Somebody else may have kept it.
      this.unknown = name;
      this.load();
    }
    if (performance.now() < this.settled) return;
    if (!this.busy && name && name !== this.selected && !names.includes(this.selected) && !(this.selected === "own:" && name === this.own.title)) {
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
    this.showKeeping();
    $("workflows").setAttribute("aria-busy", String(this.busy));
    if (focused) $("workflows").querySelector(":checked")?.focus();
  }

  choice(key, entry) {
    const radio = el("input", {
      type: "radio", name: "workflow", value: key, checked: key === this.selected, disabled: this.busy || Boolean(entry.problem),
    });
    radio.addEventListener("change", () => this.choose(key));
    const words = entry.problem ? el("span", { class: "hindrance" }, firstOf(entry.problem)) : el("span", {}, entry.description);
    // Of a kept one the steps are the description.
    const steps = entry.steps.length && !entry.kept ? el("span", { class: "steps" }, entry.steps.join(" → ")) : null;
    const label = el("label", { class: "choice", title: entry.description }, radio, el("strong", {}, entry.title), words, steps);
    return entry.kept ? el("div", { class: "kept" }, label, this.doings(entry)) : label;
  }

  /** What can be done with a kept workflow. */
  doings(entry) {
    const button = (words, about, act) => {
      const made = el("button", { type: "button", class: "quiet", "aria-label": `${about} ${entry.name}` }, words);
      made.addEventListener("click", act);
      return made;
    };
    return el("p", { class: "doings" },
      entry.problem ? button("Problems", "Problems of", () => this.explain(entry.name)) : null,
      button("Remove", "Remove", () => this.remove(entry.name)));
  }

  hideProblems() {
    show("problems", false);
  }

  /** Every problem beside the node that has it; those of no node first. What was brought can be kept all the same. */
  showProblems(title, nodes, problems, content = null) {
    this.refused = content && { title, content };
    show("problems-keep", content !== null);
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

/** The first of the problems of a workflow, and how many more there are. */
function firstOf(words) {
  const lines = words.split("\n- ");
  return lines.length > 1 ? `${sentence(lines[1])} And ${lines.length - 2} more.` : sentence(words);
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
