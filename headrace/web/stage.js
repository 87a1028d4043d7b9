// The picture: result, source, or both with a split between them that can be dragged; full screen; sound.

import { $, say, show } from "./dom.js";

const FRESH = 3000; // ms after which the last picture counts as the past; a session repeats it twice a second

export class Stage {
  constructor() {
    this.result = $("result");
    this.source = $("source");
    this.picture = $("picture");
    this.drawnAt = -Infinity;
    this.frames = 0;
    this.drawing = this.holding = false;
    this.onFrame = null;
    this.onFresh = null;
    this.split = 50;
    for (const radio of document.querySelectorAll("input[name=view]")) {
      radio.addEventListener("change", () => this.layout());
    }
    $("mute").addEventListener("click", () => this.setMuted(!this.result.muted));
    $("fullscreen").addEventListener("click", () => this.toggleFullscreen());
    show("fullscreen", document.fullscreenEnabled ?? false);
    $("screen").addEventListener("dblclick", () => this.toggleFullscreen());
    document.addEventListener("fullscreenchange", () => {
      $("fullscreen").setAttribute("aria-pressed", String(document.fullscreenElement !== null));
    });
    for (const video of [this.result, this.source]) video.addEventListener("resize", () => this.layout());
    this.watchSplit();
    this.watchFrames();
    this.setMuted(true);
    this.layout();
  }

  // -- what is shown -----------------------------------------------------------------------------------

  /** The processed picture as a stream; null for none. */
  setResult(stream) {
    show("mute", Boolean(stream?.getAudioTracks().length));
    if (this.result.srcObject !== stream) {
      this.holding = stream !== null && this.hold();
      this.result.srcObject = stream;
    }
    if (stream) this.result.play().catch(() => {});
    this.usePicture(this.holding);
  }

  /** Keep the last picture on the canvas until the next stream shows one: no black between the two. */
  hold() {
    const { result, picture } = this;
    if (!this.fresh || (!this.drawing && !result.videoWidth)) return false;
    if (!this.drawing) {
      picture.width = result.videoWidth;
      picture.height = result.videoHeight;
      picture.getContext("2d", { alpha: false }).drawImage(result, 0, 0);
    }
    return true;
  }

  setSource(stream) {
    this.source.srcObject = stream;
    if (stream) this.source.play().catch(() => {});
    this.layout();
  }

  /** Show the canvas of the preview instead of the video. */
  usePicture(used) {
    this.drawing = used;
    this.layout();
  }

  /** A picture of the preview was drawn. */
  drew() {
    if (!this.drawing || this.holding) return;
    this.arrived();
    this.layout();
  }

  clear() {
    this.drawnAt = -Infinity;
    this.holding = false;
    this.setResult(null);
  }

  get fresh() {
    return performance.now() - this.drawnAt < FRESH;
  }

  /** What a recording takes. */
  recorded() {
    return this.drawing ? this.picture.captureStream(30) : this.result.srcObject;
  }

  // -- views -------------------------------------------------------------------------------------------

  get view() {
    if (!this.source.srcObject) return "result";
    return document.querySelector("input[name=view]:checked").value;
  }

  setView(view) {
    document.querySelector(`input[name=view][value=${view}]`).checked = true;
    this.layout();
  }

  layout() {
    const { view, drawing } = this;
    show("views", Boolean(this.source.srcObject));
    $("screen").dataset.view = view;
    // The canvas lies over the video, which goes on beneath it.
    this.picture.hidden = !drawing;
    this.source.hidden = view === "result";
    show("split", view === "split");
    for (const id of ["before", "after"]) show(id, view === "split");
    const [width, height] = this.shownSize();
    if (width && height) $("frame").style.setProperty("--ratio", String(width / height));
    $("frame").style.setProperty("--split", `${this.split}%`);
    $("split").setAttribute("aria-valuenow", String(Math.round(this.split)));
  }

  shownSize() {
    if (this.drawing) return [this.picture.width, this.picture.height];
    const shown = this.result.videoWidth ? this.result : this.source;
    return [shown.videoWidth, shown.videoHeight];
  }

  watchSplit() {
    const handle = $("split");
    const move = (event) => {
      const box = $("frame").getBoundingClientRect();
      this.setSplit(((event.clientX - box.left) * 100) / box.width);
    };
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      handle.addEventListener("pointermove", move);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      handle.addEventListener(end, () => handle.removeEventListener("pointermove", move));
    }
    handle.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: -2, ArrowRight: 2, PageDown: -10, PageUp: 10, Home: -100, End: 100 };
      if (!(event.key in steps)) return;
      event.preventDefault();
      this.setSplit(this.split + steps[event.key]);
    });
  }

  setSplit(percent) {
    this.split = Math.min(100, Math.max(0, percent));
    this.layout();
  }

  // -- sound and full screen ---------------------------------------------------------------------------

  setMuted(muted) {
    this.result.muted = muted;
    $("mute").setAttribute("aria-pressed", String(!muted));
    say("mute-words", muted ? "Sound off" : "Sound on");
  }

  toggleFullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if (document.fullscreenEnabled) $("screen").requestFullscreen();
  }

  // -- frames ------------------------------------------------------------------------------------------

  watchFrames() {
    if ("requestVideoFrameCallback" in HTMLVideoElement.prototype) {
      const next = (_, about) => {
        if (this.holding) this.usePicture((this.holding = false));
        this.arrived(about);
        this.result.requestVideoFrameCallback(next);
      };
      this.result.requestVideoFrameCallback(next);
    } else this.result.addEventListener("timeupdate", () => this.arrived());
  }

  arrived(about) {
    const late = !this.fresh;
    this.frames += 1;
    this.drawnAt = performance.now();
    if (about) this.onFrame?.(about);
    if (late) this.onFresh?.();
  }
}

