// The page of a worker: one session's picture, figures and parameters, and the demo's workflow.
// Everything it knows comes from GET /api/page once a second; it decides nothing by itself.

const POLL = 1000; // ms between two looks at the worker
const RETRY = 600; // ms until a picture stream that ended is asked for again
const SEND = 80; // ms at least between two changes of parameters
const HISTORY = 60; // looks that the small chart remembers
const FRESH = 3000; // ms after which the last picture counts as the past; a session repeats it twice a second
const MAX_HELD = 16 << 20; // bytes of a picture stream without a whole picture in them
const TOKEN = "headrace.token";

const STATES = {
  LOADING: "Loading", ONLINE: "Running", DEGRADED_INPUT: "No input",
  DEGRADED_INFERENCE: "Degraded", ERROR: "Error", OFFLINE: "Ended",
};
const STAGES = [
  ["decode", "Decode", "From the last byte received to the picture"],
  ["wait", "Wait", "Until the processor is free; the newest frame goes first"],
  ["process", "Process", "In the engine, there and back"],
  ["encode", "Encode", "From the result to the compressed picture"],
  ["send", "Send", "Until the last byte has left"],
];

const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

function say(id, words) {
  const node = $(id);
  if (node.textContent !== words) node.textContent = words;
}

function show(id, visible) {
  $(id).hidden = !visible;
}

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

// -- talking to the worker ---------------------------------------------------------------------------

class Refusal extends Error {
  constructor(status, body) {
    super(body?.message ?? body?.detail?.msg ?? `The worker answered with status ${status}.`);
    this.status = status;
  }
}

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
async function request(path, { method = "GET", body, session, signal } = {}) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = {};
    if (token) headers.Authorization = `Bearer ${token}`;
    if (session) headers["X-Stream-Id"] = session;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const answer = await fetch(path, {
      method, headers, signal, cache: "no-store", body: body === undefined ? undefined : JSON.stringify(body),
    });
    if (answer.status !== 401) return answer;
    if (sessionStorage.getItem(TOKEN) === token) await askForToken(token !== null);
  }
}

async function json(path, options) {
  const answer = await request(path, options);
  const body = await answer.json().catch(() => null);
  if (!answer.ok) throw new Refusal(answer.status, body);
  return body;
}

const wordsOf = (error) => (error instanceof Refusal ? error.message : "The worker does not answer.");

// -- the live picture --------------------------------------------------------------------------------

/** The parts of a multipart/x-mixed-replace body, by the length that each declares. */
async function* pictures(body) {
  const reader = body.getReader();
  let held = new Uint8Array(0);
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const joined = new Uint8Array(held.length + value.length);
      joined.set(held);
      joined.set(value, held.length);
      held = joined;
      for (let part = takePart(held); part; part = takePart(held)) {
        held = part.rest;
        yield part.jpeg;
      }
      if (held.length > MAX_HELD) throw new Error("no whole picture in what was received");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function takePart(bytes) {
  let end = 0;
  for (;;) {
    end = bytes.indexOf(13, end);
    if (end < 0 || end + 4 > bytes.length) return null;
    if (bytes[end + 1] === 10 && bytes[end + 2] === 13 && bytes[end + 3] === 10) break;
    end += 1;
  }
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, end));
  const length = Number(/content-length: *(\d+)/i.exec(head)?.[1]);
  const start = end + 4;
  if (!Number.isFinite(length)) throw new Error("a part without its length");
  if (bytes.length < start + length) return null;
  const jpeg = new Blob([bytes.slice(start, start + length)], { type: "image/jpeg" });
  return { jpeg, rest: bytes.subarray(start + length) };
}

class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.session = null;
    this.drawn = 0;
    this.drawnAt = 0;
  }

  /** Show the output of a session; null shows nothing new. Asking again for the same changes nothing. */
  watch(session) {
    if (session === this.session) return;
    this.abort?.abort();
    this.session = session;
    this.drawn = 0;
    if (session === null) return;
    this.abort = new AbortController();
    this.follow(session, this.abort.signal);
  }

  async follow(session, signal) {
    while (!signal.aborted) {
      try {
        const path = `/sessions/${encodeURIComponent(session)}/preview.mjpeg`;
        const answer = await request(path, { signal });
        if (answer.ok) for await (const jpeg of pictures(answer.body)) this.offer(jpeg, signal);
      } catch {
        // A worker that is away is told by the look at /api/page; here it is only tried again.
      }
      await sleep(RETRY);
    }
  }

  /** Draw it, or keep it in place of an older one while another is being drawn. */
  async offer(jpeg, signal) {
    this.next = jpeg;
    if (this.busy) return;
    this.busy = true;
    while (this.next && !signal.aborted) {
      const newest = this.next;
      this.next = null;
      try {
        const bitmap = await createImageBitmap(newest);
        if (!signal.aborted) this.draw(bitmap);
        bitmap.close();
      } catch {
        // A broken picture is followed by another.
      }
    }
    this.busy = false;
  }

  draw(bitmap) {
    const { canvas } = this;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    this.context.drawImage(bitmap, 0, 0);
    const late = this.drawn === 0 || performance.now() - this.drawnAt > FRESH;
    this.drawn += 1;
    this.drawnAt = performance.now();
    if (late) this.onBack?.();
  }
}

// -- parameters --------------------------------------------------------------------------------------

/** Form controls made from a JSON Schema; each change is sent by itself, the newest value first. */
class Parameters {
  constructor(form) {
    this.form = form;
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
      const node = name.slice(0, name.lastIndexOf("."));
      if (!groups.has(node)) groups.set(node, []);
      groups.get(node).push([name, about]);
    }
    const few = Object.keys(properties).length <= 8;
    const nodes = [...groups].map(([node, parameters], index) => this.group(node, parameters, few || !index));
    this.form.replaceChildren(...(nodes.length ? nodes : [el("p", { class: "dim" }, "This workflow has none.")]));
  }

  group(node, parameters, open) {
    const title = (parameters[0][1].title ?? node).replace(/: [^:]*$/, "");
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
    if (about.description) label.title = about.description;
    const plain = made.inputs.length === 1;
    const node = el("div", { class: plain ? "control plain" : "control" }, label, ...made.inputs, problem);
    const { value, write, move } = made;
    const control = { node, about, problem, value, write, move, wrong: false };
    made.onchange = (value) => this.change(name, value);
    this.controls.set(name, control);
    return node;
  }

  change(name, value) {
    this.wanted.delete(name);
    this.wanted.set(name, value);
    this.send();
  }

  async send() {
    if (this.sending !== undefined) return;
    while (this.wanted.size) {
      const [name, value] = this.wanted.entries().next().value;
      const { session } = this;
      this.wanted.delete(name);
      this.sending = name;
      try {
        const answer = await json("/stream/params", { method: "POST", body: { [name]: value }, session });
        if (this.session === session) say("applied", `in force from frame ${answer.applied.frame}`);
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
    control.problem.textContent = control.wrong ? refusal(name, words, this.values[name]) : "";
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

/** A refused value in words: the worker's own without the name, which stands above, and what holds instead. */
function refusal(name, words, value) {
  const own = words.startsWith(`${name}: `) ? words.slice(name.length + 2) : words;
  const sentence = own.charAt(0).toUpperCase() + own.slice(1) + (/[.!?]$/.test(own) ? "" : ".");
  return value === undefined ? sentence : `${sentence} ${value} stays in force.`;
}

/** Inputs for one property of the schema: what is shown, how it is written, and `onchange` with its value. */
function makeInput(about, id) {
  const made = { inputs: [], onchange: () => {} };
  const changed = (value) => made.onchange(value);
  if (Array.isArray(about.enum)) {
    const options = about.enum.map((item, index) => el("option", { value: index }, String(item)));
    made.value = el("select", { id, class: "value" }, ...options);
    made.value.addEventListener("change", () => changed(about.enum[Number(made.value.value)]));
    made.write = (value) => (made.value.value = String(about.enum.indexOf(value)));
    made.inputs = [made.value];
  } else if (about.type === "boolean") {
    made.value = el("input", { id, type: "checkbox" });
    made.value.addEventListener("change", () => changed(made.value.checked));
    made.write = (value) => (made.value.checked = Boolean(value));
    made.inputs = [made.value];
  } else if (about.type === "integer" || about.type === "number") {
    makeNumber(made, about, id, changed);
  } else {
    const wide = about.multiline ? "textarea" : "input";
    made.value = el(wide, { id, class: "value wide", rows: about.multiline ? 3 : null });
    const text = about.type === "string" || typeof about.default === "string";
    made.value.addEventListener("change", () => changed(text ? made.value.value : fromText(made.value.value)));
    made.write = (value) => (made.value.value = text ? (value ?? "") : JSON.stringify(value ?? null));
    made.inputs = [made.value];
  }
  return made;
}

function makeNumber(made, about, id, changed) {
  const { minimum: min, maximum: max } = about;
  const step = about.step ?? (about.type === "integer" ? 1 : null);
  const attributes = { min, max, step: step ?? "any" };
  made.value = el("input", { id, type: "number", class: "value", ...attributes });
  made.inputs = [made.value];
  const bounded = min != null && max != null && (max - min) / (step ?? (max - min) / 200) <= 2000;
  const range = bounded
    ? el("input", { type: "range", ...attributes, step: step ?? (max - min) / 200, tabindex: -1, "aria-hidden": "true" })
    : null;
  if (range) {
    made.inputs.push(range);
    range.addEventListener("input", () => {
      made.value.value = range.value;
      changed(Number(range.value));
    });
  }
  made.value.addEventListener("change", () => {
    const number = Number(made.value.value);
    // What is no number is sent as it is: the worker says what it expects.
    changed(made.value.value !== "" && Number.isFinite(number) ? number : made.value.value);
  });
  made.move = (value) => range && value != null && (range.value = value);
  made.write = (value) => {
    made.value.value = value ?? "";
    made.move(value);
  };
}

function fromText(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

// -- figures -----------------------------------------------------------------------------------------

const ms = (value) => (value == null ? "–" : value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0));

function rate(id, value) {
  $(id).replaceChildren(value.toFixed(1), " ", el("small", {}, "fps"));
}

function clearFigures() {
  for (const id of ["fps-input", "fps-processed", "fps-output", "left-out"]) say(id, "–");
}

function showFigures(session) {
  const { fps, counts } = session;
  rate("fps-input", fps.input);
  rate("fps-processed", fps.processed);
  rate("fps-output", fps.output);
  const left = counts.dropped_busy + counts.dropped_rate + counts.dropped_encoder + counts.dropped_away + counts.failed;
  const share = counts.frames_in ? (100 * left) / counts.frames_in : 0;
  $("left-out").replaceChildren(String(left), " ", el("small", {}, `${share.toFixed(share < 10 ? 1 : 0)} %`));
  $("left-out").title = `${counts.dropped_busy} because the processor was busy, ${counts.dropped_away} because it was away, `
    + `${counts.dropped_encoder} because the encoder was busy, ${counts.dropped_rate} for the frame rate's cap, `
    + `${counts.failed} failed; ${counts.repeated} pictures were repeated`;
}

function showHistory(history) {
  const top = Math.max(1, ...history) * 1.15;
  const points = history.map((value, index) => {
    const x = 120 - ((history.length - 1 - index) * 120) / (HISTORY - 1);
    return `${x.toFixed(1)},${(27 - (26 * value) / top).toFixed(1)}`;
  });
  $("history").firstElementChild.setAttribute("points", points.join(" "));
}

function showLatency(session) {
  const latency = session?.latency ?? {};
  const drawn = session?.decoder.name === "test pattern";
  const stages = STAGES.filter(([name]) => latency[name]);
  if (!stages.length) {
    $("bar").replaceChildren();
    $("stages").replaceChildren(el("tr", {}, el("td", { colspan: 5, class: "dim" }, "No frame has gone all the way yet.")));
    return;
  }
  const rows = stages.map(([name, title, help]) =>
    latencyRow(name, name === "decode" && drawn ? "Draw the pattern" : title, help, latency[name]));
  const all = latency.total ?? latency.received_to_encoded;
  if (all) {
    const row = latencyRow(null, latency.total ? "All, until sent" : "All, until encoded", `${all.count} frames`, all);
    row.className = "total";
    rows.push(row);
  }
  $("stages").replaceChildren(...rows);
  const bars = stages.map(([name, title]) => {
    const part = el("span", { title: `${title}: ${ms(latency[name].p50_ms)} ms` });
    part.style.flexGrow = Math.max(latency[name].p50_ms ?? 0, 0.001);
    part.style.background = `var(--${name})`;
    return part;
  });
  $("bar").replaceChildren(...bars);
}

function latencyRow(name, title, help, summary) {
  const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
  if (name) swatch.style.background = `var(--${name})`;
  const cells = ["p50_ms", "p95_ms", "p99_ms", "max_ms"].map((key) => el("td", {}, ms(summary[key])));
  return el("tr", { title: help }, el("th", { scope: "row" }, name ? swatch : null, title), ...cells);
}

// -- workflows ---------------------------------------------------------------------------------------

class Workflows {
  constructor(onChosen) {
    this.onChosen = onChosen;
    this.known = null;
    this.busy = false;
  }

  async load() {
    this.known = (await json("/workflows")).workflows;
  }

  /** Let the demo's workflow be chosen; for another session, say whose choice it was. */
  update(demo, session) {
    const choosable = demo && (!session || session.id === demo.id);
    const key = choosable ? `demo ${this.busy} ${demo.workflow}` : `other ${session?.workflow}`;
    if (key === this.key) return;
    this.key = key;
    say("source", choosable ? demo.source : "");
    if (choosable) this.offer(demo);
    else $("workflows").replaceChildren(el("p", { class: "dim" }, "Chosen by whoever starts the session."));
  }

  offer(demo) {
    const focused = document.activeElement?.name === "workflow";
    const entries = [...this.known];
    if (!entries.some((entry) => entry.name === demo.workflow)) {
      entries.unshift({ name: demo.workflow, title: demo.title, description: "From a file on the worker.", steps: [] });
    }
    $("workflows").replaceChildren(...entries.map((entry) => this.choice(entry, demo)));
    $("workflows").setAttribute("aria-busy", String(this.busy));
    if (focused) $("workflows").querySelector(":checked")?.focus();
  }

  choice(entry, demo) {
    const radio = el("input", {
      type: "radio", name: "workflow", value: entry.name,
      checked: entry.name === demo.workflow, disabled: this.busy || Boolean(entry.problem),
    });
    radio.addEventListener("change", () => this.choose(entry.name));
    return el("label", { class: "choice" }, radio, el("strong", {}, entry.title),
      el("span", {}, entry.problem ?? entry.description),
      entry.steps.length ? el("span", { class: "steps" }, entry.steps.join(" → ")) : null);
  }

  async choose(name) {
    this.busy = true;
    for (const radio of $("workflows").querySelectorAll("input")) radio.disabled = true;
    await this.onChosen(name);
    this.busy = false;
    // Whatever came of it, what is shown follows the next look at the worker.
    this.key = null;
  }
}

// -- the page ----------------------------------------------------------------------------------------

class Page {
  constructor() {
    this.picture = new Picture($("picture"));
    this.picture.onBack = () => this.showPicture();
    this.parameters = new Parameters($("params"));
    this.workflows = new Workflows((name) => this.startDemo({ workflow: name }));
    this.history = [];
    this.state = null;
    this.wake = () => {};
    $("start").addEventListener("click", () => this.startDemo({}));
    $("stop").addEventListener("click", () => this.stopDemo());
    $("session").addEventListener("change", () => {
      location.hash = new URLSearchParams({ session: $("session").value }).toString();
    });
    addEventListener("hashchange", () => this.wake());
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.picture.watch(null);
      else this.wake();
    });
  }

  get wanted() {
    return new URLSearchParams(location.hash.slice(1)).get("session");
  }

  async run() {
    for (;;) {
      if (!document.hidden) await this.look();
      await Promise.race([sleep(POLL), new Promise((wake) => (this.wake = wake))]);
    }
  }

  async look() {
    const query = this.wanted ? `?${new URLSearchParams({ session: this.wanted })}` : "";
    try {
      if (!this.workflows.known) await this.workflows.load();
      this.state = await json(`/api/page${query}`, { signal: AbortSignal.timeout(5000) });
    } catch (error) {
      this.away(error);
      return;
    }
    show("banner", false);
    $("main").classList.remove("past");
    try {
      this.update(this.state);
    } catch (error) {
      console.error(error);
      say("banner", `This page has a fault: ${error}`);
      show("banner", true);
    }
  }

  /** The worker does not answer: what was known is shown as the past that it is. */
  away(error) {
    say("banner", `${wordsOf(error)} Trying again …`);
    show("banner", true);
    $("engine").dataset.state = "unknown";
    say("engine-text", "No answer");
    this.setStatus("UNKNOWN", "No answer", "");
    $("main").classList.add("past");
    $("screen").classList.add("stale");
    this.picture.watch(null);
    show("stop", false);
  }

  update(state) {
    const { session, demo } = state;
    say("version", state.version);
    $("engine").dataset.state = state.engine.state;
    say("engine-text", engineWords(state.engine));
    this.updateChoice(state);
    this.workflows.update(demo, session);
    show("stop", Boolean(demo?.running && session?.id === demo.id));
    if (session) this.showSession(session, demo);
    else this.showNone(state);
    this.showPicture();
  }

  showSession(session, demo) {
    if (session.id !== this.shown || session.uptime_s < this.uptime) this.history = [];
    this.shown = session.id;
    this.uptime = session.uptime_s;
    this.setStatus(session.state, STATES[session.state] ?? session.state, session.explanation);
    this.history = [...this.history, session.fps.processed].slice(-HISTORY);
    showFigures(session);
    showHistory(this.history);
    showLatency(session);
    this.parameters.update(session.id, session.schema, session.values);
    if (!document.hidden) this.picture.watch(session.id);
    const name = session.id === demo?.id ? demo.title : session.id;
    $("picture").setAttribute("aria-label", `Live output of ${name}`);
    document.title = `${STATES[session.state] ?? session.state} · ${name} · Headrace`;
  }

  showNone({ ended }) {
    this.picture.watch(null);
    this.history = [];
    clearFigures();
    showHistory([]);
    showLatency(ended);
    this.parameters.clear("There are parameters while a stream runs.");
    const reason = ended ? `${ended.id}: ${ended.error?.message ?? ended.reason ?? "ended"}.` : "";
    this.setStatus("OFFLINE", "No stream", reason);
    document.title = "No stream · Headrace";
  }

  /** What lies over the picture: nothing while there is one. */
  showPicture() {
    const { state } = this;
    if (!state) return;
    const { session, demo } = state;
    const seen = session !== null && this.picture.drawn > 0 && performance.now() - this.picture.drawnAt < FRESH;
    $("screen").classList.toggle("stale", !seen);
    show("empty", !seen);
    show("start", !session && Boolean(demo));
    if (session) {
      say("empty-title", "Waiting for a picture");
      say("empty-text", session.explanation);
    } else if (demo) {
      say("empty-title", "No stream is running");
      say("empty-text", "The test pattern was stopped, or its stream has ended.");
    } else {
      say("empty-title", this.wanted ? `There is no session ${this.wanted}` : "No stream is running");
      say("empty-text", "Start one with POST /stream/start, or run headrace serve --demo for a test pattern.");
    }
  }

  setStatus(state, name, reason) {
    $("status").dataset.state = state;
    say("state-name", name);
    say("reason", reason);
  }

  updateChoice({ sessions, session }) {
    const ids = sessions.map((each) => each.id);
    const current = session?.id ?? this.wanted ?? "";
    if (current && !ids.includes(current)) ids.unshift(current);
    show("session-choice", ids.length > 1 || (this.wanted !== null && ids.length > 0));
    const key = JSON.stringify(ids);
    if (key !== this.choiceKey) $("session").replaceChildren(...ids.map((id) => el("option", { value: id }, id)));
    this.choiceKey = key;
    if (document.activeElement !== $("session")) $("session").value = current;
  }

  async startDemo(body) {
    show("workflow-problem", false);
    if (this.wanted !== null && this.wanted !== this.state?.demo?.id) location.hash = "";
    $("start").disabled = true;
    try {
      await json("/api/demo/start", { method: "POST", body });
    } catch (error) {
      say("workflow-problem", wordsOf(error));
      show("workflow-problem", true);
    }
    $("start").disabled = false;
    this.wake();
  }

  async stopDemo() {
    $("stop").disabled = true;
    try {
      await json("/api/demo/stop", { method: "POST", body: {} });
    } catch (error) {
      this.setStatus("ERROR", "Not stopped", wordsOf(error));
    }
    $("stop").disabled = false;
    this.wake();
  }
}

function engineWords(engine) {
  const words = { ready: "Engine ready", starting: "Engine starts", restarting: "Engine restarts", stopped: "Engine stopped" };
  const device = engine.state === "ready" && engine.device ? ` · ${engine.device}` : "";
  const restarts = engine.restarts ? ` · restarted ${engine.restarts}×` : "";
  const sentence = engine.message.charAt(0).toUpperCase() + engine.message.slice(1);
  return (words[engine.state] ?? sentence) + device + restarts;
}

new Page().run();
