// A video or picture file as a stream that begins again at its end.

import { Trouble } from "./messages.js";

const STILL_FPS = 10;
const LONGEST = 1280; // pixels of a still's longer side

/** The stream of a file. Throws `Trouble` for one that the browser cannot show. */
export async function fileStream(file) {
  const url = URL.createObjectURL(file);
  try {
    return file.type.startsWith("image/") ? await still(url) : await clip(url);
  } catch {
    URL.revokeObjectURL(url);
    throw new Trouble(`${file.name} cannot be shown`, "This browser does not know its format; MP4 with H.264, WebM and PNG or JPEG pictures work everywhere.");
  }
}

async function clip(url) {
  const video = document.createElement("video");
  Object.assign(video, { src: url, loop: true, muted: true, playsInline: true });
  await video.play();
  const capture = video.captureStream ?? video.mozCaptureStream;
  const stream = capture ? capture.call(video) : drawn(video, video.videoWidth, video.videoHeight, 30);
  const stop = () => {
    stream.getTracks().forEach((track) => track.stop());
    stream.stopDrawing?.();
    video.pause();
    video.removeAttribute("src");
    video.load();
    URL.revokeObjectURL(url);
  };
  return { stream, stop };
}

async function still(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const scale = Math.min(1, LONGEST / Math.max(picture.naturalWidth, picture.naturalHeight));
  const stream = drawn(picture, picture.naturalWidth * scale, picture.naturalHeight * scale, STILL_FPS);
  const stop = () => {
    stream.getTracks().forEach((track) => track.stop());
    stream.stopDrawing();
    URL.revokeObjectURL(url);
  };
  return { stream, stop };
}

/** What an element shows, drawn again and again. */
function drawn(element, width, height, fps) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(2, Math.round(width) & ~1);
  canvas.height = Math.max(2, Math.round(height) & ~1);
  const context = canvas.getContext("2d", { alpha: false });
  const draw = () => context.drawImage(element, 0, 0, canvas.width, canvas.height);
  draw();
  const timer = setInterval(draw, 1000 / fps);
  const stream = canvas.captureStream(fps);
  stream.stopDrawing = () => clearInterval(timer);
  return stream;
}
