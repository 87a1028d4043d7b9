// The figures under the picture, and where the time goes inside the worker.

import { $, el, say, short } from "./dom.js";

const STAGES = [
  ["decode", "Decode", "From the last byte received to the picture"],
  ["wait", "Wait", "Until the processor is free; the newest frame goes first"],
  ["process", "Process", "In the engine, there and back"],
  ["encode", "Encode", "From the result to the compressed picture"],
  ["send", "Send", "Until the last byte has left"],
];
const LOOK = 500; // ms at least between two counts of pictures
const LATENCY = {
  measured: ["Glass to glass", "From the capture of a frame here until its result is shown here; half of the frames took at most so long"],
  parts: ["Latency, about", "The worker's time, the network's round trip and the buffer here: single frames cannot be followed in this browser, or for a session that is only watched"],
  worker: ["In the worker", "From the last byte received to the compressed picture; the way here is not in it"],
};
const LEFT_OUT = ["dropped_busy", "dropped_rate", "dropped_encoder", "dropped_away", "failed"];

/** Everything that is told in numbers, of the session on stage. */
export class Figures {
  constructor(graph) {
    this.graph = graph;
    this.counted = null;
    this.fps = 0;
  }

  /** `shown` counts the pictures that the stage has shown. */
  show(session, meter, shown, own) {
    const all = session.latency?.total ?? session.latency?.received_to_encoded;
    const latency = meter.latency(all?.p50_ms);
    // What is measured frame by frame comes to the graph as it comes in.
    if (latency && latency.kind !== "measured") this.graph.add({ low: latency.p50, p50: latency.p50, high: latency.p50 });
    showCounts(session);
    showConnection(meter.figures, latency, this.rate(shown), own);
    showStages(session);
  }

  clear(ended) {
    for (const id of ["latency", "fps-input", "fps-processed", "fps-shown", "left-out", "bitrate"]) say(id, "–");
    showStages(ended);
  }

  /** Pictures shown a second, smoothed over two looks. */
  rate(shown) {
    const at = performance.now();
    const { counted } = this;
    if (counted && at - counted.at < LOOK) return this.fps;
    if (counted && shown >= counted.shown) this.fps = (this.fps + ((shown - counted.shown) * 1000) / (at - counted.at)) / 2;
    this.counted = { shown, at };
    return this.fps;
  }
}

function put(id, value, unit) {
  $(id).replaceChildren(value, ...(unit ? [" ", el("small", {}, unit)] : []));
}

/** What the worker counts. */
function showCounts({ fps, counts }) {
  put("fps-input", fps.input.toFixed(1), "fps");
  put("fps-processed", fps.processed.toFixed(1), "fps");
  const left = LEFT_OUT.reduce((sum, name) => sum + (counts[name] ?? 0), 0);
  const share = counts.frames_in ? (100 * left) / counts.frames_in : 0;
  put("left-out", String(left), `${share.toFixed(share < 10 ? 1 : 0)} %`);
  $("left-out").title = `${counts.dropped_busy} because the processor was busy, ${counts.dropped_away} because it was away, `
    + `${counts.dropped_encoder} because the encoder was busy, ${counts.dropped_rate} for the frame rate's cap, `
    + `${counts.failed} failed; ${counts.repeated} pictures were repeated`;
}

/** What is measured here, at the connection. */
function showConnection(figures, latency, shownFps, own) {
  put("fps-shown", shownFps.toFixed(1), "fps");
  $("fps-shown").title = [figures.width ? `${figures.width} × ${figures.height}` : null, figures.codec,
    figures.lost ? `${figures.lost} packets lost` : null, figures.dropped ? `${figures.dropped} left out here` : null]
    .filter(Boolean).join(", ");
  const rates = own ? [figures.up, figures.down] : [figures.down];
  if (rates.every((rate) => rate != null)) put("bitrate", rates.map((rate) => (rate / 1e6).toFixed(2)).join(" / "));
  else say("bitrate", "–");
  say("bitrate-name", own ? "Mbit/s out / in" : "Mbit/s in");
  showGlass(latency, own);
}

function showGlass(latency, own) {
  const [name, help] = LATENCY[latency?.kind ?? (own ? "measured" : "worker")];
  say("latency-name", name);
  $("latency-name").title = help;
  if (!latency) say("latency", "–");
  else {
    put("latency", latency.p50.toFixed(0), "ms");
    if (latency.p95 != null) $("latency").append(el("small", { class: "more" }, ` · p95 ${latency.p95.toFixed(0)}`));
  }
}

/** The stages inside the worker as a bar and a table. */
function showStages(session) {
  const latency = session?.latency ?? {};
  const drawn = session?.decoder.name === "test pattern";
  const stages = STAGES.filter(([name]) => latency[name]);
  if (!stages.length) {
    $("bar").replaceChildren();
    $("stages").replaceChildren(el("tr", {}, el("td", { colspan: 5, class: "dim" }, "No frame has gone all the way yet.")));
    return;
  }
  const rows = stages.map(([name, title, help]) =>
    stageRow(name, name === "decode" && drawn ? "Draw the pattern" : title, help, latency[name]));
  const all = latency.total ?? latency.received_to_encoded;
  if (all) {
    const row = stageRow(null, latency.total ? "All, until sent" : "All, until encoded", `${all.count} frames`, all);
    row.className = "total";
    rows.push(row);
  }
  $("stages").replaceChildren(...rows);
  const bars = stages.map(([name, title]) => {
    const part = el("span", { title: `${title}: ${short(latency[name].p50_ms)} ms` });
    part.style.flexGrow = Math.max(latency[name].p50_ms ?? 0, 0.001);
    part.style.background = `var(--${name})`;
    return part;
  });
  $("bar").replaceChildren(...bars);
}

function stageRow(name, title, help, summary) {
  const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
  if (name) swatch.style.background = `var(--${name})`;
  const cells = ["p50_ms", "p95_ms", "p99_ms", "max_ms"].map((key) => el("td", {}, short(summary[key])));
  return el("tr", { title: help }, el("th", { scope: "row" }, name ? swatch : null, title), ...cells);
}
