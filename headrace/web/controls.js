// The parameters of a session as controls drawn from their JSON Schema; each change is sent at once.

import { $, el, say, show, sleep } from "./dom.js";
import { makeInput } from "./inputs.js";
import { refusedValue, wordsOf } from "./messages.js";

const SEND = 80; // ms at least between two changes of parameters

/** `apply(session, params)` sends a change and returns the first frame for which it holds. */
export class Controls {
  constructor(form, apply) {
    this.form = form;
    this.apply = apply;
    this.controls = new Map();
    this.wanted = new Map();
    this.open = new Map();
    this.key = null;
    this.values = {};
    form.addEventListener("submit", (event) => event.preventDefault());
    $("reset").addEventListener("click", () => this.reset());
  }

  /** Show the parameters of a session; values that somebody is at work on are left alone. */
  update(session, schema, values) {
    const properties = schema?.properties ?? {};
    const key = JSON.stringify([session, properties]);
    if (key !== this.key) this.build(session, properties);
    this.key = key;
    this.values = values;
    for (const [name, control] of this.controls) {
      const untouched = !this.wanted.has(name) && this.sending !== name && !control.wrong;
      if (untouched && !control.node.contains(document.activeElement)) control.write(values[name]);
    }
    this.showChanges();
  }

  /** What differs from the workflow's own values, to begin another session with. */
  changed() {
    const changed = [...this.controls].filter(([name, { about }]) => this.values[name] !== about.default);
    return Object.fromEntries(changed.map(([name]) => [name, this.values[name]]));
  }

  /** Mark what is not as the workflow has it. */
  showChanges() {
    let any = false;
    for (const [name, control] of this.controls) {
      const differs = this.values[name] !== control.about.default;
      control.node.classList.toggle("changed", differs);
      any ||= differs || control.wrong;
    }
    show("reset", any);
  }

  clear(words) {
    if (this.key === words) return;
    this.key = words;
    this.controls.clear();
    this.wanted.clear();
    show("reset", false);
    say("applied", "");
    this.form.replaceChildren(el("p", { class: "dim" }, words));
  }

  build(session, properties) {
    this.session = session;
    this.controls.clear();
    this.wanted.clear();
    say("applied", "");
    const groups = new Map();
    for (const [name, about] of Object.entries(properties)) {
      // Those of a workflow belong to nodes, a processor's own to none.
      const node = name.slice(0, Math.max(0, name.lastIndexOf(".")));
      if (!groups.has(node)) groups.set(node, []);
      groups.get(node).push([name, about]);
    }
    const few = Object.keys(properties).length <= 8;
    const nodes = [...groups].map(([node, parameters], index) => this.group(node, parameters, few || !index));
    this.form.replaceChildren(...(nodes.length ? nodes : [el("p", { class: "dim" }, "This workflow has none.")]));
  }

  group(node, parameters, open) {
    const title = node ? (parameters[0][1].title ?? node).replace(/: [^:]*$/, "") : "Settings";
    const known = `${this.session} ${node} ${title}`;
    const count = parameters.length;
    const group = el("details", { class: "group", open: this.open.get(known) ?? open },
      el("summary", {}, title, el("small", {}, `${count} parameter${count === 1 ? "" : "s"}`)),
      ...parameters.map(([name, about]) => this.control(name, about)));
    group.addEventListener("toggle", () => this.open.set(known, group.open));
    return group;
  }

  control(name, about) {
    const id = `p-${name.replace(/[^\w-]/g, "_")}-${this.controls.size}`;
    const made = makeInput(about, id);
    const problem = el("p", { class: "problem", id: `${id}-problem`, hidden: true, role: "alert" });
    made.value.setAttribute("aria-describedby", problem.id);
    const label = el("label", { for: id, title: about.description }, name.slice(name.lastIndexOf(".") + 1));
    const plain = made.inputs.length === 1;
    const node = el("div", { class: plain ? "control plain" : "control" }, label, ...made.inputs, problem);
    const { value, write, move } = made;
    const control = { node, about, problem, value, write, move, wrong: false };
    made.onchange = (changed) => this.change(name, changed);
    this.controls.set(name, control);
    return node;
  }

  change(name, value) {
    this.wanted.delete(name);
    this.wanted.set(name, value);
    this.send();
  }

  /** One change under way at a time; of a control that moves on meanwhile, the newest value alone is sent. */
  async send() {
    if (this.sending !== undefined) return;
    while (this.wanted.size) {
      const [name, value] = this.wanted.entries().next().value;
      const { session } = this;
      this.wanted.delete(name);
      this.sending = name;
      try {
        const frame = await this.apply(session, { [name]: value });
        if (this.session === session) say("applied", `in force from frame ${frame}`);
        this.values[name] = value;
        this.mark(name, null);
      } catch (error) {
        this.mark(name, wordsOf(error));
      }
      await sleep(SEND);
    }
    this.sending = undefined;
  }

  mark(name, words) {
    const control = this.controls.get(name);
    if (!control) return;
    control.wrong = words !== null;
    control.node.classList.toggle("wrong", control.wrong);
    control.value.setAttribute("aria-invalid", String(control.wrong));
    control.problem.textContent = control.wrong ? refusedValue(name, words, this.values[name]) : "";
    control.problem.hidden = !control.wrong;
    this.showChanges();
    control.move?.(this.values[name]);
    if (control.wrong) say("applied", "");
  }

  reset() {
    for (const [name, control] of this.controls) {
      if (control.wrong || this.values[name] !== control.about.default) {
        control.write(control.about.default);
        this.change(name, control.about.default);
      }
    }
  }
}
