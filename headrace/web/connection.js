// This browser's own stream: POST /offer, the channels beside it, and coming back after a loss.

import { Refusal, json, request } from "./api.js";
import { sleep } from "./dom.js";
import { connected, gatheredOffer, lost, newPeer } from "./ice.js";
import { Trouble, offerTrouble } from "./messages.js";

const BACK_OFF = [500, 1000, 2000, 4000, 8000]; // ms before each further attempt; the last again and again
const ATTEMPTS = 20;
const REPLY = 15_000; // ms in which the worker answers on the control channel; a workflow may load models

/** A name that nobody guesses: whoever knows it can watch and steer. */
export function newSessionName() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `page-${[...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/**
 * One stream from its start to its stop, over as many peer connections as it takes.
 *
 * Dispatches `phase` (detail: {phase, trouble?, attempt?}; phases are connecting, live, reconnecting, failed,
 * ended), `peer` (a new RTCPeerConnection before its offer), `stream` (the processed picture), `text`, `data`,
 * `notice` (an event of the worker's) and `timing` (frames).
 */
export class Connection extends EventTarget {
  constructor(stream, { workflow, size, params = {} }) {
    super();
    this.stream = stream;
    this.session = newSessionName();
    this.workflow = workflow;
    this.params = params;
    this.size = size;
    this.pc = null;
    this.control = null;
    this.replies = new Map();
    this.number = 0;
    this.ending = new AbortController();
  }

  get live() {
    return this.control?.readyState === "open";
  }

  say(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Runs until the stop, the end of the session, or a failure that trying again does not mend. */
  async run() {
    let failures = 0;
    const ended = new Promise((done) => this.ending.signal.addEventListener("abort", done));
    while (!this.ending.signal.aborted) {
      this.say("phase", { phase: failures || this.wasLive ? "reconnecting" : "connecting", attempt: failures });
      try {
        await Promise.race([this.connect(), ended]);
        if (this.ending.signal.aborted) break;
        failures = 0;
        this.wasLive = true;
        this.say("phase", { phase: "live" });
        await Promise.race([lost(this.pc, this.ending), this.controlClosed, ended]);
      } catch (error) {
        const trouble = error instanceof Trouble ? error : new Trouble("This page has a fault", String(error));
        failures += 1;
        if (!trouble.retry || failures > ATTEMPTS) {
          this.finish();
          this.say("phase", { phase: "failed", trouble });
          return;
        }
        this.say("phase", { phase: "reconnecting", attempt: failures, trouble });
      }
      this.closePeer();
      // Browsers that lost the same worker do not come back all at once.
      const wait = BACK_OFF[Math.min(failures, BACK_OFF.length - 1)] * (0.8 + 0.4 * Math.random());
      await Promise.race([sleep(failures ? wait : 200), ended]);
    }
    this.closePeer();
  }

  stop(reason = null) {
    if (this.ending.signal.aborted) return;
    this.finish();
    this.say("phase", { phase: "ended", reason });
  }

  /** End it here, and at the worker, which would keep the session a while for its publisher to come back. */
  finish() {
    if (this.ending.signal.aborted) return;
    this.ending.abort();
    this.closePeer();
    request("/stream/stop", { method: "POST", body: {}, session: this.session, keepalive: true }).catch(() => {
      // Then the session ends by itself, after its grace.
    });
  }

  /** Change parameters; returns the first frame for which they hold. */
  async updateParams(params) {
    const { frame } = await this.ask({ type: "update_params", params });
    Object.assign(this.params, params);
    return frame;
  }

  /** Run another workflow in place of the one that runs, without a break. */
  async switchWorkflow(workflow) {
    if (this.live) await this.ask({ type: "switch_workflow", workflow });
    this.workflow = workflow;
    this.params = {};
  }

  closePeer() {
    this.pc?.close();
    this.pc = this.control = null;
    for (const { refuse } of this.replies.values()) refuse(new Trouble("The connection was lost", "It is tried again."));
    this.replies.clear();
  }

  async connect() {
    const pc = (this.pc = await newPeer(encodedStreams()));
    if (this.ending.signal.aborted) return pc.close();
    for (const track of this.stream.getTracks()) pc.addTransceiver(track, { direction: "sendrecv", streams: [this.stream] });
    const incoming = new MediaStream();
    pc.addEventListener("track", ({ track, receiver }) => {
      // As little in the jitter buffer as the network allows.
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
      incoming.addTrack(track);
      this.say("stream", incoming);
    });
    this.openChannels(pc);
    this.say("peer", pc);
    const offer = { type: "offer", sdp: await gatheredOffer(pc) };
    const answer = await this.exchange(offer);
    if (pc.signalingState === "closed") return;
    await pc.setRemoteDescription({ type: answer.type, sdp: answer.sdp });
    await connected(pc, () => this.whyNot());
    await this.controlOpen;
  }

  async exchange(offer) {
    const { session, size } = this;
    // A session that still runs is joined as it was begun; one that is gone begins as it last was.
    if (!this.wasLive || !(await this.alive())) this.begun = { workflow: this.workflow, params: { ...this.params } };
    const { workflow, params } = this.begun;
    // Its name is this page's alone: whoever still publishes under it is this page's own connection before.
    const body = { offer, session, params, takeover: true };
    if (workflow != null) body.workflow = workflow;
    if (size) body.resolution = size;
    try {
      return await json("/offer", { method: "POST", body, signal: this.ending.signal });
    } catch (error) {
      // The worker may not have noticed yet that the connection before is gone.
      if (error instanceof Refusal && error.status === 409 && this.wasLive) {
        throw new Trouble("The worker still holds the connection before", "It is tried again.", { retry: true });
      }
      const trouble = offerTrouble(error);
      trouble.cause = error;
      throw trouble;
    }
  }

  /** What the worker knows of this session. */
  about() {
    return json(`/api/page?${new URLSearchParams({ session: this.session })}`, { signal: AbortSignal.timeout(3000) });
  }

  async alive() {
    return this.about().then(({ session }) => session !== null, () => false);
  }

  /** What the worker says about a connection that did not come about. */
  async whyNot() {
    return (await this.about()).failure;
  }

  // -- channels ----------------------------------------------------------------------------------------

  openChannels(pc) {
    const control = (this.control = pc.createDataChannel("control"));
    const data = pc.createDataChannel("data");
    this.controlOpen = new Promise((open) => control.addEventListener("open", open));
    this.controlClosed = new Promise((closed) => control.addEventListener("close", closed));
    control.addEventListener("open", () => control.send(JSON.stringify({ type: "timing", on: true })));
    control.addEventListener("message", ({ data: text }) => this.heard(text));
    data.addEventListener("message", ({ data: text }) => this.heard(text));
  }

  heard(text) {
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      console.warn("what came on a data channel is not JSON", text);
      return;
    }
    const reply = this.replies.get(message.id);
    if (reply) {
      this.replies.delete(message.id);
      reply.given(message);
    } else if (message.type === "timing") this.say("timing", message.frames);
    else if (message.type === "text") this.say("text", message.data);
    else if (message.type === "data") this.say("data", message.data);
    else if (message.type === "event") this.say("notice", message.event);
  }

  /** The reply to a message on the control channel. Throws `Refusal` for a refusal. */
  async ask(message) {
    if (!this.live) throw new Trouble("There is no connection at present", "Try again when the stream is back.");
    const id = `${++this.number}`;
    const reply = await new Promise((given, refuse) => {
      const timer = setTimeout(() => {
        this.replies.delete(id);
        refuse(new Trouble("The worker did not answer in time", "Try again."));
      }, REPLY);
      const settle = (how) => (value) => {
        clearTimeout(timer);
        how(value);
      };
      this.replies.set(id, { given: settle(given), refuse: settle(refuse) });
      this.control.send(JSON.stringify({ ...message, id }));
    });
    if (reply.success === false) throw new Refusal(400, { ...reply, message: reply.error });
    return reply;
  }
}

/** Older Chromium reads encoded frames by an option of the connection instead of a transform. */
function encodedStreams() {
  const old = typeof RTCRtpScriptTransform === "undefined" && "createEncodedStreams" in RTCRtpSender.prototype;
  return old ? { encodedInsertableStreams: true } : {};
}
