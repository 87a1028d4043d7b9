// The latency of the last minute: the middle of the frames as a line, their range as a band behind it.

const SPAN = 60_000; // ms
const STEPS = [20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000]; // ms at the top of the graph

export class Graph {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = [];
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  clear() {
    this.points = [];
    this.draw();
  }

  /** `low`, `p50` and `high` in milliseconds. */
  add(point) {
    const at = performance.now();
    this.points.push({ ...point, at });
    this.points = this.points.filter((each) => at - each.at < SPAN);
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const highest = Math.max(0, ...this.points.map((point) => point.high));
    const top = STEPS.find((step) => step >= highest * 1.05) ?? STEPS.at(-1);
    const x = (at) => width - ((performance.now() - at) * width) / SPAN;
    const y = (value) => height - 1 - (Math.min(value, top) * (height - 4)) / top;
    this.grid(context, width, y, top, colour);
    this.curves(context, x, y, colour);
    canvas.setAttribute("aria-label", this.points.length
      ? `Latency of the last minute; ${Math.round(this.points.at(-1).p50)} milliseconds now`
      : "Latency of the last minute; no figure yet");
  }

  grid(context, width, y, top, colour) {
    context.strokeStyle = colour("--line");
    context.fillStyle = colour("--dim");
    context.font = "10px system-ui, sans-serif";
    context.textBaseline = "top";
    for (const value of [top, top / 2]) {
      context.beginPath();
      context.moveTo(0, Math.round(y(value)) + 0.5);
      context.lineTo(width, Math.round(y(value)) + 0.5);
      context.stroke();
      context.fillText(`${value} ms`, 2, y(value) + 2);
    }
  }

  curves(context, x, y, colour) {
    const { points } = this;
    if (points.length < 2) return;
    context.beginPath();
    points.forEach((point, index) => context[index ? "lineTo" : "moveTo"](x(point.at), y(point.high)));
    [...points].reverse().forEach((point) => context.lineTo(x(point.at), y(point.low)));
    context.closePath();
    context.fillStyle = colour("--band");
    context.fill();
    context.beginPath();
    points.forEach((point, index) => context[index ? "lineTo" : "moveTo"](x(point.at), y(point.p50)));
    context.strokeStyle = colour("--water");
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke();
  }
}
