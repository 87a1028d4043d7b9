// Watching a session that somebody else feeds: WHEP, and motion JPEG where that does not get through.

import { Refusal, request } from "./api.js";
import { sentence, sleep } from "./dom.js";
import { connected, gatheredOffer, lost, newPeer } from "./ice.js";
import { Trouble, offerTrouble } from "./messages.js";

const AGAIN = 1000; // ms until a viewer that lost its connection asks for another
const WAIT = 5; // seconds that the worker waits for a session that has not begun
const ATTEMPTS = 2; // failures in a row after which motion JPEG is shown instead

/** Watches one session at a time. Dispatches `stream`, `peer`, `fallback` (detail: why, or null). */
export class Viewer extends EventTarget {
  constructor() {
    super();
    this.session = null;
    this.pc = null;
  }

  say(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Asking again for the same session changes nothing; one of the same name that began anew, at another
      moment `begun`, is another. null stops watching. */
  watch(session, begun = null) {
    if (session === this.session && (session === null || begun === this.begun)) return;
    this.abort?.abort();
    Object.assign(this, { session, begun });
    if (session === null) return;
    this.abort = new AbortController();
    this.follow(session, this.abort.signal);
  }

  async follow(session, signal) {
    for (let failures = 0; !signal.aborted;) {
      let peer = null;
      try {
        peer = await this.connect(session, signal);
        failures = 0;
        await lost(peer.pc, { signal });
      } catch (error) {
        if (signal.aborted) return;
        const trouble = viewTrouble(error);
        if (trouble) failures += 1;
        else {
          await sleep(AGAIN);
          continue;
        }
        if (failures >= ATTEMPTS || !trouble.retry) {
          this.say("fallback", sentence(`${trouble.title}: ${trouble.advice}`));
          return;
        }
      } finally {
        if (peer) leave(peer);
      }
      await sleep(AGAIN);
    }
  }

  /** A connected peer, with the resource that stands for it at the worker. */
  async connect(session, signal) {
    const peer = { pc: await newPeer(), resource: null };
    try {
      await this.negotiate(peer, session, signal);
    } catch (error) {
      leave(peer);
      throw error;
    }
    return peer;
  }

  async negotiate(peer, session, signal) {
    signal.throwIfAborted();
    const pc = (this.pc = peer.pc);
    const incoming = new MediaStream();
    for (const kind of ["video", "audio"]) pc.addTransceiver(kind, { direction: "recvonly" });
    pc.addEventListener("track", ({ track, receiver }) => {
      if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
      incoming.addTrack(track);
      if (track.kind === "video") this.say("stream", incoming);
    });
    signal.addEventListener("abort", () => pc.close());
    this.say("peer", pc);
    const path = `/whep/${encodeURIComponent(session)}?wait=${WAIT}`;
    const answer = await request(path, { method: "POST", body: await gatheredOffer(pc), type: "application/sdp", signal });
    if (answer.status !== 201) throw new Refusal(answer.status, await answer.json().catch(() => null));
    peer.resource = answer.headers.get("Location");
    await pc.setRemoteDescription({ type: "answer", sdp: await answer.text() });
    await connected(pc);
  }
}

/** Why there is no picture; null for what only has to be waited for: a worker that does not answer (which is
    told elsewhere), and the moment between two sessions of one name. */
function viewTrouble(error) {
  if (error instanceof Trouble) return error;
  if (error instanceof Refusal) return error.code === "not_found" ? null : offerTrouble(error);
  // What `fetch` throws.
  if (error instanceof TypeError) return null;
  return new Trouble("This browser does not take the answer", sentence(error.message), { retry: true });
}

/** Close the connection, and tell the worker, which would find out by itself only later. */
function leave({ pc, resource }) {
  pc.close();
  if (!resource) return;
  request(new URL(resource, location.href).href, { method: "DELETE", keepalive: true }).catch(() => {
    // It finds out by itself.
  });
}
