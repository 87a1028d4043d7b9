// What every peer connection of the page needs: servers, candidates gathered in time, and words for a failure.

import { json } from "./api.js";
import { iceTrouble } from "./messages.js";

const GATHER = 2000; // ms until the offer goes out with the candidates that there are
const CONNECT = 12_000; // ms in which a connection must come about
const PATIENCE = 4000; // ms that a connection may be disconnected: ICE often finds its way back

/** The STUN and TURN servers that the worker names; none when it names none. */
async function iceServers() {
  try {
    return (await json("/ice")).iceServers ?? [];
  } catch {
    // Without servers the machine's own addresses remain; whether they do is told when connecting fails.
    return [];
  }
}

export async function newPeer(options = {}) {
  return new RTCPeerConnection({ iceServers: await iceServers(), bundlePolicy: "max-bundle", ...options });
}

/** The offer with its candidates: all of them, or those of the first two seconds. */
export async function gatheredOffer(pc) {
  await pc.setLocalDescription();
  if (pc.iceGatheringState !== "complete") {
    await new Promise((done) => {
      const timer = setTimeout(done, GATHER);
      pc.addEventListener("icegatheringstatechange", () => {
        if (pc.iceGatheringState !== "complete") return;
        clearTimeout(timer);
        done();
      });
    });
  }
  return pc.localDescription.sdp;
}

/** Resolves once connected; throws `Trouble` when that fails. `askWhy` may tell the worker's own words. */
export async function connected(pc, askWhy = async () => null) {
  const state = await new Promise((done) => {
    const timer = setTimeout(() => done("timeout"), CONNECT);
    const look = () => {
      if (!["connected", "failed", "closed"].includes(pc.connectionState)) return;
      clearTimeout(timer);
      done(pc.connectionState);
    };
    pc.addEventListener("connectionstatechange", look);
    look();
  });
  if (state === "connected") return;
  const [failure, tried] = await Promise.all([askWhy().catch(() => null), triedHere(pc)]);
  throw iceTrouble(failure, tried);
}

/** Resolves with a word once a connection is lost for good: `failed`, `closed` or `disconnected`. */
export function lost(pc, { signal } = {}) {
  return new Promise((done) => {
    let timer = null;
    const look = () => {
      clearTimeout(timer);
      const state = pc.connectionState;
      if (state === "failed" || state === "closed" || signal?.aborted) done(state);
      if (state === "disconnected") timer = setTimeout(() => done(state), PATIENCE);
    };
    pc.addEventListener("connectionstatechange", look);
    // The worker says good-bye by DTLS, which Chromium's connection takes seconds to follow.
    const transports = new Set([...pc.getReceivers(), ...pc.getSenders()].map(({ transport }) => transport));
    for (const transport of transports) {
      transport?.addEventListener("statechange", () => transport.state === "closed" && done("closed"));
    }
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      done("closed");
    });
    look();
  });
}

/** Which candidates this browser tried, in words. */
async function triedHere(pc) {
  const found = { "local-candidate": new Set(), "remote-candidate": new Set() };
  const stats = pc.signalingState === "closed" ? new Map() : await pc.getStats();
  for (const report of stats.values()) {
    found[report.type]?.add(`${report.candidateType} ${report.protocol} ${report.address ?? ""}:${report.port ?? ""}`);
  }
  const words = (set) => [...set].slice(0, 6).join(", ") || "none";
  return `Tried here: ${words(found["local-candidate"])}; offered by the worker: ${words(found["remote-candidate"])}.`;
}
