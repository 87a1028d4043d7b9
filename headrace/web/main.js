// The page of a worker: this browser's own stream, or the watching of another. What the worker knows of either
// comes from GET /api/page once a second; what a connection tells is measured here.

import { Addresses } from "./addresses.js";
import { Refusal, json } from "./api.js";
import { Connection } from "./connection.js";
import { Controls } from "./controls.js";
import { $, say, sentence, show, sleep } from "./dom.js";
import { followEvents } from "./events.js";
import { Figures } from "./figures.js";
import { Graph } from "./graph.js";
import { Trouble, engineWords, wordsOf } from "./messages.js";
import { Meter } from "./meter.js";
import { Preview } from "./preview.js";
import { Recorder } from "./recorder.js";
import { SessionChoice, nameOf } from "./sessions.js";
import { Sources } from "./sources.js";
import { Stage } from "./stage.js";
import { Status, setStatus } from "./status.js";
import { Texts } from "./texts.js";
import { Viewer } from "./viewer.js";
import { Workflows } from "./workflow.js";

const POLL = 1000; // ms between two looks at the worker

class Page {
  constructor() {
    this.state = null;
    this.own = null;
    this.status = new Status();
    this.due = false;
    this.woken = () => {};
    this.graph = new Graph($("graph"));
    this.figures = new Figures(this.graph);
    this.meters = { own: this.newMeter("own"), watch: this.newMeter("watch") };
    this.stage = new Stage();
    this.stage.onFrame = (about) => this.meter.shown(about);
    this.stage.onFresh = () => this.state && this.showPicture();
    this.preview = new Preview($("picture"), () => this.stage.drew());
    this.viewer = this.newViewer();
    this.texts = new Texts();
    this.recorder = new Recorder(() => this.stage.recorded(), (words) => this.tell(words));
    this.controls = new Controls($("params"), (session, params) => this.applyParams(session, params));
    this.workflows = new Workflows({
      onChosen: (workflow, title) => this.runWorkflow(workflow, title),
      onMedia: (file) => this.sources.useFile(file),
      tuned: () => this.tuned,
    });
    this.sources = new Sources({
      onEnded: (kind) => this.own?.stop(kind === "screen" ? "The screen is no longer shared." : "The source has ended."),
      onChanged: () => this.showStart(),
      onFile: (file) => this.sources.useFile(file),
    });
    this.addresses = new Addresses();
    this.choice = new SessionChoice();
    this.listen();
  }

  listen() {
    $("start").addEventListener("click", () => (this.own ? this.own.stop("Stopped here.") : this.start()));
    $("demo").addEventListener("click", () => this.toggleDemo());
    addEventListener("hashchange", () => {
      this.status.note = null;
      this.wake();
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.preview.watch(null);
      else this.wake();
    });
    addEventListener("pagehide", () => {
      this.own?.finish();
      this.viewer.watch(null);
    });
  }

  newMeter(mode) {
    return new Meter((point) => this.mode === mode && this.graph.add(point));
  }

  newViewer() {
    const viewer = new Viewer();
    viewer.addEventListener("peer", () => this.meters.watch.follow(viewer.pc));
    viewer.addEventListener("stream", ({ detail }) => this.mode === "watch" && this.stage.setResult(detail));
    viewer.addEventListener("fallback", ({ detail }) => {
      this.fallback = detail;
      this.meters.watch.reset();
      this.wake();
    });
    return viewer;
  }

  // -- what is on stage --------------------------------------------------------------------------------

  get wanted() {
    return new URLSearchParams(location.hash.slice(1)).get("session");
  }

  /** `own` while this browser's stream is shown, `watch` otherwise. */
  get mode() {
    return this.own && (this.wanted === null || this.wanted === this.own.session) ? "own" : "watch";
  }

  /** The session on stage where somebody has changed the parameters of its workflow; else null. */
  get tuned() {
    const changed = Object.keys(this.controls?.changed() ?? {}).length;
    return changed && this.state?.session ? this.state.session.id : null;
  }

  get meter() {
    return this.meters[this.mode];
  }

  /** Bring stage, viewer and preview in line with what is to be shown. */
  attach(session) {
    const { mode } = this;
    const key = mode === "own" ? `own ${this.own.session}` : `watch ${session?.id ?? ""}`;
    if (key !== this.attached) {
      this.attached = key;
      this.fallback = null;
      this.graph.clear();
      this.texts.clear();
      if (mode === "own") {
        this.stage.setResult(this.incoming ?? null);
        this.stage.setSource(this.own.stream);
      } else {
        this.stage.setSource(null);
        this.stage.clear();
      }
      this.followTexts(mode === "watch" ? session?.id : null);
    }
    if (session?.begun !== this.begun) this.fallback = null;
    this.begun = session?.begun;
    const watched = mode === "watch" ? (session?.id ?? null) : null;
    this.viewer.watch(watched, session?.begun);
    this.preview.watch(watched && this.fallback && !document.hidden ? watched : null);
    if (this.fallback && mode === "watch") this.stage.usePicture(true);
  }

  followTexts(session) {
    this.events?.abort();
    this.events = session ? new AbortController() : null;
    if (!session) return;
    followEvents(session, this.events.signal, (name, data) => {
      if (name === "text" || name === "data") this.texts.add(data?.data ?? data);
      else this.wake();
    });
  }

  // -- this browser's own stream -----------------------------------------------------------------------

  async start() {
    this.status.note = null;
    $("start").disabled = true;
    setStatus("LOADING", "Opening", `Waiting for the ${this.sources.name}.`);
    try {
      const stream = await this.sources.open();
      this.begin(stream);
    } catch (error) {
      this.status.note = error instanceof Trouble ? error : new Trouble("The source cannot be opened", sentence(String(error)));
    }
    $("start").disabled = false;
    this.showStart();
    this.wake();
  }

  begin(stream) {
    const { width, height } = stream.getVideoTracks()[0].getSettings();
    const size = width && height ? { width, height } : null;
    const own = new Connection(stream, { workflow: this.workflows.chosen, size });
    this.own = own;
    this.incoming = null;
    this.phase = { phase: "connecting" };
    if (this.wanted !== null) location.hash = "";
    own.addEventListener("phase", ({ detail }) => this.phaseChanged(own, detail));
    own.addEventListener("peer", ({ detail: pc }) => {
      const sender = pc.getSenders().find((each) => each.track?.kind === "video");
      this.meters.own.follow(pc, sender);
    });
    own.addEventListener("stream", ({ detail }) => {
      this.incoming = detail;
      if (this.mode === "own") this.stage.setResult(detail);
    });
    own.addEventListener("timing", ({ detail }) => this.meters.own.timing(detail));
    for (const kind of ["text", "data"]) own.addEventListener(kind, ({ detail }) => this.texts.add(detail));
    own.addEventListener("notice", ({ detail }) => this.noticed(own, detail));
    this.attach(null);
    own.run();
  }

  phaseChanged(own, detail) {
    if (own !== this.own) return;
    this.phase = detail;
    if (detail.phase === "failed" || detail.phase === "ended") {
      this.recorder.stop();
      this.sources.close();
      this.own = this.incoming = null;
      this.meters.own.reset();
      this.status.note = detail.trouble ?? new Trouble("Your stream has ended", detail.reason ?? "", { ending: true });
      const { cause } = detail.trouble ?? {};
      if (cause instanceof Refusal && cause.details.length) {
        this.workflows.showProblems(this.workflows.title, this.workflows.own?.nodes ?? [], cause.details);
      }
      this.stage.setSource(null);
      this.stage.clear();
      this.attached = null;
    }
    this.showStart();
    this.wake();
  }

  /** An event of the worker's about this browser's stream. */
  noticed(own, event) {
    if (event?.type === "ended" || event?.type === "stream_stopped") own.stop(sentence(event.reason ?? "The worker ended it"));
    else this.wake();
  }

  async applyParams(session, params) {
    if (session === this.own?.session && this.own.live) {
      return this.own.updateParams(params);
    }
    return (await json("/stream/params", { method: "POST", body: params, session })).applied.frame;
  }

  /** Make a chosen workflow run where there is a stream; without one it is what the next runs. */
  async runWorkflow(workflow, title) {
    const { mode, state } = this;
    const session = state?.session;
    if (mode === "own") {
      await this.own.switchWorkflow(workflow);
    } else if (session && session.id === state.demo?.id) {
      await json("/api/demo/start", { method: "POST", body: { workflow, title } });
    } else if (session) {
      await json("/stream/params", { method: "POST", body: { workflow }, session: session.id });
    }
    this.wake();
  }

  // -- the demo ----------------------------------------------------------------------------------------

  async toggleDemo() {
    const running = this.state?.demo?.running;
    $("demo").disabled = true;
    this.status.note = null;
    try {
      await json(`/api/demo/${running ? "stop" : "start"}`, { method: "POST", body: {} });
      if (!running && this.wanted !== null && this.wanted !== this.state.demo.id) location.hash = "";
    } catch (error) {
      this.status.note = new Trouble(running ? "The demo was not stopped" : "The demo was not started", sentence(wordsOf(error)));
    }
    $("demo").disabled = false;
    this.wake();
  }

  // -- looking at the worker ---------------------------------------------------------------------------

  async run() {
    for (;;) {
      this.due = false;
      await this.look();
      if (this.due) continue;
      await Promise.race([sleep(document.hidden ? 5 * POLL : POLL), new Promise((wake) => (this.woken = wake))]);
    }
  }

  /** Look at the worker now, or again once the look under way is done. */
  wake() {
    this.due = true;
    this.woken();
  }

  /** The session that is asked about; null for the worker's own choice. */
  get staged() {
    return this.mode === "own" ? this.own.session : this.wanted;
  }

  async look() {
    const id = this.staged;
    const query = id === null ? "" : `?${new URLSearchParams({ session: id })}`;
    try {
      if (!this.workflows.known.length) await this.workflows.load();
      const [state] = await Promise.all([
        json(`/api/page${query}`, { signal: AbortSignal.timeout(5000) }), this.meter.look(),
      ]);
      // Meanwhile something else was put on stage: that is looked at next.
      if (id !== this.staged) {
        this.due = true;
        return;
      }
      this.state = state;
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
      this.tell(`This page has a fault: ${error}`);
    }
  }

  tell(words) {
    say("banner", words);
    show("banner", true);
  }

  /** The worker does not answer: what was known is shown as the past that it is. */
  away(error) {
    this.tell(`${wordsOf(error)} Trying again …`);
    $("engine").dataset.state = "unknown";
    say("engine-text", "No answer");
    if (!this.own) {
      setStatus("UNKNOWN", "No answer", "");
      $("screen").classList.add("stale");
    }
    $("main").classList.add("past");
    show("demo", false);
  }

  update(state) {
    const { session, demo } = state;
    say("version", state.version);
    $("engine").dataset.state = state.engine.state;
    say("engine-text", engineWords(state.engine));
    const current = this.mode === "own" ? this.own.session : (session?.id ?? this.wanted);
    this.choice.update(state.sessions, { own: this.own?.session, current, wanted: this.wanted });
    this.attach(session);
    this.updateWorkflow(state);
    this.addresses.update({
      hosts: state.hosts ?? [], watched: session?.id ?? null,
      workflow: typeof this.workflows.chosen === "string" ? this.workflows.chosen : null,
    });
    show("demo", this.mode === "watch" && Boolean(demo) && (!session || session.id === demo.id));
    say("demo", demo?.running ? "Stop demo" : "Start demo");
    if (session) this.showSession(session, demo);
    else this.showNone(state);
    this.status.show(this);
    this.showPicture();
  }

  updateWorkflow({ session, demo }) {
    if (this.mode === "own") this.workflows.follow(session?.chosen, "of your stream", session?.known_as);
    else if (session && session.id === demo?.id) this.workflows.follow(session.chosen ?? demo.workflow, demo.source, session.known_as);
    else if (session) this.workflows.follow(session.chosen, `of ${nameOf(session.id)}`, session.known_as);
    else this.workflows.follow(this.workflows.selected ?? this.workflows.known.find((each) => each.name === this.state.workflow)?.name ?? "passthrough", "for the next stream");
  }

  showSession(session) {
    this.figures.show(session, this.meter, this.stage.frames, this.mode === "own");
    this.controls.update(session.id, session.schema, session.values);
  }

  showNone({ ended }) {
    this.figures.clear(ended);
    this.controls.clear("There are parameters while a stream runs.");
  }

  // -- what can be done --------------------------------------------------------------------------------

  showStart() {
    const { own } = this;
    say("start-words", own ? "Stop" : `Start ${this.sources?.name ?? "camera"}`);
    $("start").classList.toggle("primary", !own);
    $("sources").disabled = Boolean(own);
    show("live-note", Boolean(own));
  }

  showPicture() {
    const { state, mode, phase, wanted } = this;
    const seen = this.status.cover({ state, mode, phase, wanted, fresh: this.stage.fresh });
    $("record").disabled = !seen && !this.recorder.recorder;
  }
}

new Page().run();
