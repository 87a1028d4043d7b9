// Every failure and state in words that say what to do.

import { Refusal } from "./api.js";
import { sentence } from "./dom.js";

export const STATES = {
  LOADING: "Loading", ONLINE: "Running", DEGRADED_INPUT: "No input",
  DEGRADED_INFERENCE: "Degraded", ERROR: "Error", OFFLINE: "Ended",
};

/** A failure that a person can do something about: a title, and what to do. With `retry` the page itself tries
    again; `ending` is none, but an end that somebody meant. */
export class Trouble extends Error {
  constructor(title, advice, { retry = false, ending = false } = {}) {
    super(title);
    this.title = title;
    this.advice = advice;
    this.retry = retry;
    this.ending = ending;
    this.since = performance.now();
  }
}

/** Why there is no camera, microphone or screen; `what` is one of these words. */
export function captureTrouble(what, error) {
  if (!globalThis.isSecureContext || !navigator.mediaDevices) {
    return new Trouble(`The browser gives no ${what} to this address`,
      "Browsers need https, or localhost. Start the worker with --self-signed and open this page by https, "
      + "or open it on the worker's own machine. The test pattern and a file work here too.");
  }
  switch (error?.name) {
    case "NotAllowedError":
    case "SecurityError":
      return new Trouble(what === "screen" ? "No screen was shared" : `The ${what} is not allowed`,
        what === "screen" ? "Choose a screen, a window or a tab when the browser asks."
          : `Allow the ${what} for this page in the browser's address bar, then start again. `
            + "If the browser does not ask, the system's privacy settings may forbid it.");
    case "NotFoundError":
    case "OverconstrainedError":
      return new Trouble(`There is no ${what}`, `Connect a ${what}, or choose another source.`);
    case "NotReadableError":
    case "AbortError":
      return new Trouble(`The ${what} cannot be read`, "Another program may be using it. Close that one and start again.");
    case "NotSupportedError":
    case "TypeError":
      return new Trouble(`This browser cannot give a ${what}`, "Choose another source, or another browser.");
    default:
      return new Trouble(`The ${what} cannot be read`, sentence(error?.message ?? "The browser did not say why"));
  }
}

/** Why the worker did not take the stream. */
export function offerTrouble(error) {
  if (!(error instanceof Refusal)) {
    return new Trouble("The worker does not answer", "It is tried again.", { retry: true });
  }
  const words = sentence(error.message);
  if (error.code === "at_capacity" || error.status === 429) {
    return new Trouble("Every place is taken", `${words} Stop another session, or try again later.`, { retry: true });
  }
  if (error.code === "invalid_workflow") return new Trouble("The workflow cannot run", words);
  if (error.status === 404 || error.status === 405) {
    return new Trouble("This worker takes no WebRTC", words);
  }
  if (error.status === 403) return new Trouble("The worker refuses this page", words);
  if (error.status === 415 || error.status === 406) return new Trouble("No codec in common", words);
  return new Trouble("The worker refused the stream", words, { retry: error.status >= 500 });
}

/** Why no connection came about: what the worker says, else what was tried here. */
export function iceTrouble(failure, tried) {
  const advice = "A firewall may block UDP between here and the worker. A TURN server in the worker's settings, "
    + "or its fixed port range with the public address, gets through most of them.";
  const words = failure ? sentence(failure) : tried;
  return new Trouble("The connection did not come about", [words, advice].filter(Boolean).join(" "), { retry: true });
}

export const wordsOf = (error) =>
  error instanceof Refusal ? error.message
    : error instanceof Trouble ? `${error.title}. ${error.advice}`
    : "The worker does not answer.";

export function engineWords(engine) {
  const words = { ready: "Engine ready", starting: "Engine starts", restarting: "Engine restarts", stopped: "Engine stopped" };
  const device = engine.state === "ready" && engine.device ? ` · ${engine.device}` : "";
  const restarts = engine.restarts ? ` · restarted ${engine.restarts}×` : "";
  return (words[engine.state] ?? sentence(engine.message).replace(/\.$/, "")) + device + restarts;
}

/** A refused value in words: the worker's own without the name, which stands above, and what holds instead. */
export function refusedValue(name, words, value) {
  const own = words.startsWith(`${name}: `) ? words.slice(name.length + 2) : words;
  return value === undefined ? sentence(own) : `${sentence(own)} ${value} stays in force.`;
}
