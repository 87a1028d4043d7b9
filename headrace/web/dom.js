// The few helpers that every module of the page stands on.

export const $ = (id) => document.getElementById(id);
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** This machine's clock in milliseconds, the same in the page and in its workers. */
export const now = () => performance.timeOrigin + performance.now();

export function say(id, words) {
  const node = $(id);
  if (node.textContent !== words) node.textContent = words;
}

export function show(id, visible) {
  $(id).hidden = !visible;
}

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** Words as a sentence. */
export function sentence(words) {
  const text = String(words ?? "").trim();
  if (!text) return "";
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");
}

/** A number that a person reads at a glance: three digits, no more. */
export function short(value) {
  if (value == null || !Number.isFinite(value)) return "–";
  if (Math.abs(value) < 10) return value.toFixed(2);
  return value.toFixed(Math.abs(value) < 100 ? 1 : 0);
}

/** Offer what a person made as a file of that name. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  // The browser reads it after the click; it is let go when that is surely done.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Keep at most `limit` entries of a map, the newest. */
export function bound(map, limit) {
  for (const key of map.keys()) {
    if (map.size <= limit) return;
    map.delete(key);
  }
}
