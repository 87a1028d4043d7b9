// A worker beside the page: tells when each encoded picture left the encoder, by its RTP timestamp.

const now = () => performance.timeOrigin + performance.now();

function passing(readable, writable) {
  const stamp = new TransformStream({
    transform(frame, controller) {
      const about = frame.getMetadata();
      // In older browsers the frame's own timestamp is the one of RTP.
      const rtp = (about.rtpTimestamp ?? frame.timestamp) >>> 0;
      const captured = Number.isFinite(about.captureTime) ? performance.timeOrigin + about.captureTime : null;
      controller.enqueue(frame);
      postMessage({ rtp, encoded: now(), captured });
    },
  });
  readable.pipeThrough(stamp).pipeTo(writable).catch(() => {
    // The sender has ended.
  });
}

addEventListener("rtctransform", ({ transformer }) => passing(transformer.readable, transformer.writable));
addEventListener("message", ({ data }) => passing(data.readable, data.writable));
