// Glass to glass, frame by frame: from the moment a picture was captured here to the moment its result is
// shown here, both on this machine's clock. Pure bookkeeping over RTP timestamps; no timers, no elements.

const KEPT = 1200; // frames remembered, some 20 to 40 seconds
const RTP = 2 ** 32; // timestamps wrap at this
const CLOCK = 90; // RTP ticks in a millisecond of video

/** Newest entries of a map that would grow without end. */
function trim(map) {
  for (const key of map.keys()) {
    if (map.size <= KEPT) return;
    map.delete(key);
  }
}

/** `b - a` of two RTP timestamps, the shorter way round. */
export function rtpDistance(a, b) {
  const distance = (b - a) % RTP;
  if (distance > RTP / 2) return distance - RTP;
  return distance < -RTP / 2 ? distance + RTP : distance;
}

/**
 * When each frame was captured. The encoder's RTP timestamps run with the capture clock, so the frame that
 * waited least for the encoder tells the distance between both; `encodeTime` is what that frame still took.
 */
export class CaptureClock {
  constructor() {
    this.recent = [];
    this.first = null;
    this.encodeTime = 0;
  }

  /** A frame left the encoder at `encoded`; `captured` where the browser tells that itself. */
  stamp({ rtp, encoded, captured }) {
    if (captured !== null) return captured;
    this.first ??= rtp;
    const since = rtpDistance(this.first, rtp) / CLOCK;
    // A source that paused or jumped begins anew.
    if (this.recent.length && Math.abs(since - this.recent.at(-1).since) > 60_000) return this.restart({ rtp, encoded });
    this.recent.push({ since, delay: encoded - since });
    if (this.recent.length > 150) this.recent.shift();
    const least = this.recent.reduce((min, { delay }) => Math.min(min, delay), Infinity);
    return since + least - this.encodeTime;
  }

  restart({ rtp, encoded }) {
    this.recent = [];
    this.first = rtp;
    return this.stamp({ rtp, encoded, captured: null });
  }
}

/** Joins what was sent, what the worker made of it, and what was shown. */
export class GlassToGlass {
  constructor() {
    this.clock = new CaptureClock();
    this.captured = new Map();
    this.shown = new Map();
    this.made = new Map();
  }

  sent(stamp) {
    this.captured.set(stamp.rtp, this.clock.stamp(stamp));
    trim(this.captured);
  }

  displayed(rtp, moment) {
    // The first showing counts; a repeated callback for the same picture does not.
    if (!this.shown.has(rtp)) this.shown.set(rtp, moment);
    trim(this.shown);
  }

  /** The worker's frames `[source_rtp, out_rtp, worker_ms]`. Returns the latencies (ms) that are known now. */
  timing(frames) {
    for (const [source, out] of frames) if (source != null && out != null) this.made.set(out >>> 0, source >>> 0);
    trim(this.made);
    const latencies = [];
    for (const [out, source] of this.made) {
      const [begun, ended] = [this.captured.get(source), this.shown.get(out)];
      if (begun === undefined || ended === undefined) continue;
      this.made.delete(out);
      // What cannot be is no figure: a frame is not shown before it was captured.
      if (ended > begun && ended - begun < 60_000) latencies.push(ended - begun);
    }
    return latencies;
  }
}

/** The value that `share` of the values do not exceed. */
export function percentile(values, share) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}
