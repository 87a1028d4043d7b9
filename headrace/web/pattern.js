// A test pattern: moving, colourful, with a clock, a frame number, and a flash with a beep each second.

const BARS = ["#c0c0c0", "#c0c000", "#00c0c0", "#00c000", "#c000c0", "#c00000", "#0000c0"];
const BEEP = 0.08; // seconds

/** Draw picture `number` at `seconds` since the start. */
export function drawPattern(context, width, height, number, seconds) {
  const bars = height * 0.62;
  BARS.forEach((colour, index) => {
    context.fillStyle = colour;
    context.fillRect((index * width) / BARS.length, 0, width / BARS.length + 1, bars);
  });
  const ramp = context.createLinearGradient(0, 0, width, 0);
  ramp.addColorStop(0, "#000");
  ramp.addColorStop(1, "#fff");
  context.fillStyle = ramp;
  context.fillRect(0, bars, width, height - bars);
  disc(context, width, height, seconds);
  const flash = seconds % 1 < BEEP;
  context.fillStyle = flash ? "#fff" : "#10151a";
  context.fillRect(width * 0.2, height * 0.72, width * 0.6, height * 0.17);
  context.fillStyle = flash ? "#10151a" : "#fff";
  context.font = `600 ${Math.round(height * 0.085)}px ui-monospace, "DejaVu Sans Mono", monospace`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(`${clock(seconds)}  #${String(number).padStart(5, "0")}`, width / 2, height * 0.806);
}

function disc(context, width, height, seconds) {
  const radius = height * 0.14;
  const x = width * (0.5 + 0.34 * Math.sin(seconds * 0.9));
  const y = height * (0.32 + 0.1 * Math.cos(seconds * 1.7));
  context.fillStyle = "#f4f1e8";
  context.strokeStyle = "#10151a";
  context.lineWidth = Math.max(2, height * 0.012);
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
  context.stroke();
  for (let spoke = 0; spoke < 6; spoke += 1) {
    const angle = seconds * 1.6 + (spoke * Math.PI) / 3;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
    context.stroke();
  }
}

function clock(seconds) {
  const minutes = String(Math.floor(seconds / 60)).padStart(2, "0");
  return `${minutes}:${(seconds % 60).toFixed(2).padStart(5, "0")}`;
}

/** The pattern as a stream; `sound` adds a quiet beep with each flash. */
export function patternStream(width, height, fps, sound) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { alpha: false });
  const began = performance.now();
  let number = 0;
  const draw = () => drawPattern(context, width, height, number++, (performance.now() - began) / 1000);
  draw();
  const timer = setInterval(draw, 1000 / fps);
  const stream = canvas.captureStream(fps);
  const beeps = sound ? beeping() : null;
  if (beeps) stream.addTrack(beeps.track);
  const stop = () => {
    clearInterval(timer);
    beeps?.stop();
    for (const track of stream.getTracks()) track.stop();
  };
  return { stream, stop };
}

function beeping() {
  const context = new AudioContext();
  const out = context.createMediaStreamDestination();
  const tone = new OscillatorNode(context, { frequency: 880 });
  const level = new GainNode(context, { gain: 0 });
  tone.connect(level).connect(out);
  tone.start();
  const began = context.currentTime;
  let next = 0;
  const timer = setInterval(() => {
    for (; began + next < context.currentTime + 2; next += 1) {
      level.gain.setValueAtTime(0.12, Math.max(began + next, context.currentTime));
      level.gain.setValueAtTime(0, began + next + BEEP);
    }
  }, 500);
  const stop = () => {
    clearInterval(timer);
    context.close();
  };
  return { track: out.stream.getAudioTracks()[0], stop };
}
