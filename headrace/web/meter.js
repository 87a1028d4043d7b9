// Figures of the connection: latency, frames shown, bitrates, losses. Measured here; the worker's own come from it.

import { now } from "./dom.js";
import { GlassToGlass, percentile } from "./latency.js";

const WINDOW = 5000; // ms of latencies that a figure stands for

/** Follows one peer connection at a time. `onLatency` gets {low, p50, p95} as they come. */
export class Meter {
  constructor(onLatency) {
    this.onLatency = onLatency;
    this.reset();
  }

  reset() {
    this.pc = null;
    this.glass = new GlassToGlass();
    this.latencies = [];
    this.before = null;
    this.figures = {};
    this.stamps?.terminate();
    this.stamps = null;
    this.out = null;
  }

  /** Measure another connection; `sender` is that of the picture, null for a viewer. */
  follow(pc, sender = null) {
    this.reset();
    this.pc = pc;
    if (sender) this.stampSent(sender);
  }

  stampSent(sender) {
    try {
      this.stamps = new Worker("/page/stamps.js", { type: "module" });
      this.stamps.addEventListener("message", ({ data }) => this.glass.sent(data));
      if (typeof RTCRtpScriptTransform !== "undefined") sender.transform = new RTCRtpScriptTransform(this.stamps, {});
      else if (sender.createEncodedStreams) {
        const streams = sender.createEncodedStreams();
        this.stamps.postMessage(streams, [streams.readable, streams.writable]);
      } else throw new Error("no encoded frames");
    } catch (error) {
      // This browser does not show what it sends; the latency is then told from its parts, and named so.
      console.info("latency is told from its parts:", error);
      this.stamps?.terminate();
      this.stamps = null;
    }
  }

  /** A picture was shown; what `requestVideoFrameCallback` says of it. */
  shown(about) {
    if (about.rtpTimestamp === undefined) return;
    this.glass.displayed(about.rtpTimestamp, performance.timeOrigin + about.expectedDisplayTime);
  }

  timing(frames) {
    const values = this.glass.timing(frames);
    if (!values.length) return;
    const moment = now();
    this.latencies.push(...values.map((value) => ({ value, moment })));
    this.latencies = this.latencies.filter((each) => moment - each.moment < WINDOW);
    this.onLatency?.({ low: Math.min(...values), p50: percentile(values, 0.5), high: Math.max(...values) });
  }

  /** {kind, p50, p95}: `measured` frame by frame, told from its `parts`, or that of the `worker` alone; or null. */
  latency(workerMs) {
    const moment = now();
    const values = this.latencies.filter((each) => moment - each.moment < WINDOW).map((each) => each.value);
    if (values.length) return { p50: percentile(values, 0.5), p95: percentile(values, 0.95), kind: "measured" };
    const { roundTrip, buffer } = this.figures;
    if (workerMs == null) return null;
    if (!Number.isFinite(roundTrip)) return { p50: workerMs, p95: null, kind: "worker" };
    return { p50: roundTrip + workerMs + (buffer ?? 0), p95: null, kind: "parts" };
  }

  /** Read the connection's statistics; call about once a second. */
  async look() {
    const { pc } = this;
    if (!pc || pc.connectionState !== "connected") {
      this.before = null;
      this.figures = {};
      return;
    }
    const reports = [...(await pc.getStats()).values()];
    if (pc !== this.pc) return;
    const video = (type) => reports.find((each) => each.type === type && each.kind === "video") ?? {};
    const pair = reports.find((each) => each.type === "candidate-pair" && each.nominated && each.state === "succeeded");
    const [sent, got] = [video("outbound-rtp"), video("inbound-rtp")];
    const current = { at: performance.now(), sent, got };
    this.figures = { ...rates(this.before, current), roundTrip: pair?.currentRoundTripTime * 1000, lost: got.packetsLost,
      dropped: got.framesDropped, codec: codecOf(reports, got), width: got.frameWidth, height: got.frameHeight };
    if (sent.framesEncoded) this.glass.clock.encodeTime = (1000 * sent.totalEncodeTime) / sent.framesEncoded;
    this.before = current;
  }
}

function rates(before, { at, sent, got }) {
  if (!before) return {};
  const seconds = (at - before.at) / 1000;
  const rate = (name, from, to, factor = 1) => {
    const change = (to[name] - from[name]) * factor;
    return Number.isFinite(change) && change >= 0 ? change / seconds : null;
  };
  const emitted = got.jitterBufferEmittedCount - before.got.jitterBufferEmittedCount;
  return {
    up: rate("bytesSent", before.sent, sent, 8),
    down: rate("bytesReceived", before.got, got, 8),
    fps: rate("framesDecoded", before.got, got),
    buffer: emitted > 0 ? (1000 * (got.jitterBufferDelay - before.got.jitterBufferDelay)) / emitted : null,
  };
}

function codecOf(reports, got) {
  const codec = reports.find((each) => each.id === got.codecId);
  return codec?.mimeType?.replace(/^video\//, "") ?? null;
}
