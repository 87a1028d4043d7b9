// The picture over plain HTTP, as motion JPEG: for where WebRTC does not get through.

import { request } from "./api.js";
import { sleep } from "./dom.js";

const RETRY = 600; // ms until a picture stream that ended is asked for again
const MAX_HELD = 16 << 20; // bytes of a picture stream without a whole picture in them

/** The parts of a multipart/x-mixed-replace body, by the length that each declares. */
async function* pictures(body) {
  const reader = body.getReader();
  let held = new Uint8Array(0);
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const joined = new Uint8Array(held.length + value.length);
      joined.set(held);
      joined.set(value, held.length);
      held = joined;
      for (let part = takePart(held); part; part = takePart(held)) {
        held = part.rest;
        yield part.jpeg;
      }
      if (held.length > MAX_HELD) throw new Error("no whole picture in what was received");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function takePart(bytes) {
  let end = 0;
  for (;;) {
    end = bytes.indexOf(13, end);
    if (end < 0 || end + 4 > bytes.length) return null;
    if (bytes[end + 1] === 10 && bytes[end + 2] === 13 && bytes[end + 3] === 10) break;
    end += 1;
  }
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, end));
  const length = Number(/content-length: *(\d+)/i.exec(head)?.[1]);
  const start = end + 4;
  if (!Number.isFinite(length)) throw new Error("a part without its length");
  if (bytes.length < start + length) return null;
  const jpeg = new Blob([bytes.slice(start, start + length)], { type: "image/jpeg" });
  return { jpeg, rest: bytes.subarray(start + length) };
}

/** Draws the output of one session at a time on a canvas; the newest picture first. */
export class Preview {
  constructor(canvas, onDrawn) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.onDrawn = onDrawn;
    this.session = null;
  }

  /** Show the output of a session; null shows nothing new. Asking again for the same changes nothing. */
  watch(session) {
    if (session === this.session) return;
    this.abort?.abort();
    this.session = session;
    if (session === null) return;
    this.abort = new AbortController();
    this.follow(session, this.abort.signal);
  }

  async follow(session, signal) {
    while (!signal.aborted) {
      try {
        const path = `/sessions/${encodeURIComponent(session)}/preview.mjpeg`;
        const answer = await request(path, { signal });
        if (answer.ok) for await (const jpeg of pictures(answer.body)) this.offer(jpeg, signal);
      } catch {
        // A worker that is away is told by the look at /api/page; here it is only tried again.
      }
      await sleep(RETRY);
    }
  }

  /** Draw it, or keep it in place of an older one while another is being drawn. */
  async offer(jpeg, signal) {
    this.next = jpeg;
    if (this.busy) return;
    this.busy = true;
    while (this.next && !signal.aborted) {
      const newest = this.next;
      this.next = null;
      try {
        const bitmap = await createImageBitmap(newest);
        if (!signal.aborted) this.draw(bitmap);
        bitmap.close();
      } catch {
        // A broken picture is followed by another.
      }
    }
    this.busy = false;
  }

  draw(bitmap) {
    const { canvas } = this;
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    this.context.drawImage(bitmap, 0, 0);
    this.onDrawn();
  }
}
