// Recording what is shown to a file of this browser's.

import { $, download, say, show } from "./dom.js";

const TYPES = ["video/mp4;codecs=avc1,mp4a.40.2", "video/mp4", "video/webm;codecs=vp9,opus", "video/webm"];
const LARGEST = 1 << 30; // bytes held in memory until they are saved
const SLICE = 1000; // ms between two pieces
const CLOCK = 250; // ms between two looks at the clock

/** `take()` gives the stream to record, or null. */
export class Recorder {
  constructor(take, onProblem) {
    this.take = take;
    this.onProblem = onProblem;
    this.recorder = null;
    show("record", typeof MediaRecorder !== "undefined");
    $("record").addEventListener("click", () => (this.recorder ? this.stop() : this.start()));
  }

  start() {
    const stream = this.take();
    if (!stream) {
      this.onProblem("There is no picture to record yet.");
      return;
    }
    const type = TYPES.find((each) => MediaRecorder.isTypeSupported(each));
    let recorder;
    try {
      // A recording ends when tracks come or go; a copy has those of this moment for good.
      recorder = new MediaRecorder(new MediaStream(stream.getTracks()), { mimeType: type, videoBitsPerSecond: 6_000_000 });
      recorder.start(SLICE);
    } catch (error) {
      this.onProblem(`This browser cannot record it: ${error.message}`);
      return;
    }
    this.recorder = recorder;
    this.pieces = [];
    this.bytes = 0;
    this.began = performance.now();
    this.timer = setInterval(() => this.tell(), CLOCK);
    recorder.addEventListener("dataavailable", ({ data }) => this.keep(data));
    recorder.addEventListener("stop", () => this.save(recorder));
    recorder.addEventListener("error", ({ error }) => this.onProblem(`The recording broke off: ${error?.message ?? "unknown"}`));
    this.tell();
  }

  stop() {
    if (this.recorder?.state !== "inactive") this.recorder?.stop();
  }

  keep(data) {
    this.pieces.push(data);
    this.bytes += data.size;
    if (this.bytes > LARGEST) {
      this.onProblem("The recording was saved at 1 GB; start another to go on.");
      this.stop();
    }
  }

  save(recorder) {
    clearInterval(this.timer);
    this.recorder = null;
    this.tell();
    if (!this.bytes) return;
    const type = recorder.mimeType.split(";")[0];
    const moment = new Date().toISOString().slice(0, 19).replace(/[T:]/g, "-");
    download(new Blob(this.pieces, { type }), `headrace-${moment}.${type === "video/mp4" ? "mp4" : "webm"}`);
    this.pieces = [];
  }

  tell() {
    const seconds = Math.floor((performance.now() - this.began) / 1000);
    const clock = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    $("record").setAttribute("aria-pressed", String(this.recorder !== null));
    say("record-words", this.recorder ? `Recording ${clock}` : "Record");
  }
}
