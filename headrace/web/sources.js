// Where the picture comes from: camera, screen, file or test pattern, each as a stream that can be stopped.

import { fileStream } from "./clip.js";
import { $, el, say, show } from "./dom.js";
import { Trouble, captureTrouble } from "./messages.js";
import { patternStream } from "./pattern.js";

const FPS = 30;
const NAMES = { camera: "camera", screen: "screen", file: "file", pattern: "test pattern" };

/** The choice of a source, and the one that is open. */
export class Sources {
  constructor({ onEnded, onChanged, onFile }) {
    this.onEnded = onEnded;
    this.onChanged = onChanged;
    this.opened = null;
    this.chosen = null;
    for (const radio of document.querySelectorAll("input[name=source]")) {
      radio.addEventListener("change", () => this.changed());
    }
    for (const id of ["camera", "size", "sound-in"]) $(id).addEventListener("change", () => this.changed());
    $("file").addEventListener("change", () => {
      if ($("file").files.length) onFile($("file").files[0]);
    });
    navigator.mediaDevices?.addEventListener?.("devicechange", () => this.listCameras());
    if (!globalThis.isSecureContext || !navigator.mediaDevices) {
      say("source-note", captureTrouble("camera").advice);
      show("source-note", true);
      this.choose("pattern");
    }
    this.changed();
    this.listCameras();
  }

  get kind() {
    return document.querySelector("input[name=source]:checked").value;
  }

  get name() {
    return NAMES[this.kind];
  }

  choose(kind) {
    document.querySelector(`input[name=source][value=${kind}]`).checked = true;
  }

  /** A file that was chosen or dropped becomes the source. */
  useFile(file) {
    this.chosen = file;
    say("file-name", file.name);
    this.choose("file");
    this.changed();
  }

  changed() {
    const { kind } = this;
    show("camera-row", kind === "camera" && $("camera").options.length > 1);
    show("file-row", kind === "file");
    show("sound-row", kind !== "file");
    show("size-row", kind !== "file");
    say("sound-words", { camera: "With the microphone", screen: "With its sound", pattern: "With a beep" }[kind] ?? "");
    this.onChanged(kind);
  }

  get size() {
    const [width, height] = $("size").value.split("x").map(Number);
    return { width, height };
  }

  /** Open the chosen source. Throws `Trouble`. */
  async open() {
    this.close();
    const { kind } = this;
    const opened = await this[kind]();
    this.opened = opened;
    const video = opened.stream.getVideoTracks()[0];
    if (!video) {
      this.close();
      throw new Trouble("The source has no picture", "Choose another one.");
    }
    // Movement matters more than detail: the browser then lowers the size before the rate.
    video.contentHint = "motion";
    video.addEventListener("ended", () => this.opened === opened && this.onEnded(kind));
    if (kind === "camera") this.listCameras();
    return opened.stream;
  }

  close() {
    this.opened?.stop();
    this.opened = null;
  }

  async camera() {
    const { width, height } = this.size;
    const wanted = $("camera").value;
    const video = { width: { ideal: width }, height: { ideal: height }, frameRate: { ideal: FPS } };
    if (wanted) video.deviceId = { exact: wanted };
    return this.captured("camera", () => navigator.mediaDevices.getUserMedia({ video, audio: $("sound-in").checked }));
  }

  async screen() {
    const { width, height } = this.size;
    const video = { frameRate: { ideal: FPS }, width: { max: Math.max(width, height) * 2 } };
    return this.captured("screen", () => navigator.mediaDevices.getDisplayMedia({ video, audio: $("sound-in").checked }));
  }

  async captured(what, ask) {
    try {
      const stream = await ask();
      return { stream, stop: () => stream.getTracks().forEach((track) => track.stop()) };
    } catch (error) {
      throw captureTrouble(what, error);
    }
  }

  async pattern() {
    const { width, height } = this.size;
    return patternStream(width, height, FPS, $("sound-in").checked);
  }

  async file() {
    if (!this.chosen) throw new Trouble("No file is chosen", "Choose a video or a picture, or drop one anywhere on this page.");
    return fileStream(this.chosen);
  }

  async listCameras() {
    if (!navigator.mediaDevices?.enumerateDevices) return;
    const devices = await navigator.mediaDevices.enumerateDevices().catch(() => []);
    const cameras = devices.filter((device) => device.kind === "videoinput" && device.deviceId);
    const chosen = $("camera").value;
    $("camera").replaceChildren(...cameras.map((camera, index) =>
      el("option", { value: camera.deviceId, selected: camera.deviceId === chosen }, camera.label || `Camera ${index + 1}`)));
    show("camera-row", this.kind === "camera" && cameras.length > 1);
  }
}
