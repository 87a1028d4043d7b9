// Events of a session over HTTP (server-sent events), for sessions that this page only watches.

import { request } from "./api.js";
import { sleep } from "./dom.js";

const AGAIN = 3000; // ms until events that broke off are asked for again
const LONGEST = 1 << 20; // characters of one event

/** Calls `onEvent(name, data)` until `signal` aborts. Read by hand: `EventSource` sends no token. */
export async function followEvents(session, signal, onEvent) {
  const path = `/stream/events?${new URLSearchParams({ stream_id: session })}`;
  while (!signal.aborted) {
    try {
      const answer = await request(path, { signal });
      // A worker without events, or a session that is gone: the look at /api/page tells enough.
      if (answer.status === 405 || !answer.headers.get("Content-Type")?.startsWith("text/event-stream")) return;
      await read(answer.body.pipeThrough(new TextDecoderStream()).getReader(), onEvent);
    } catch {
      // It is asked for again.
    }
    await sleep(AGAIN);
  }
}

async function read(reader, onEvent) {
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value.replaceAll("\r\n", "\n");
    if (held.length > LONGEST) throw new Error("an event without end");
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) deliver(event, onEvent);
  }
}

function deliver(event, onEvent) {
  let name = "message";
  const lines = [];
  for (const line of event.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) lines.push(line.slice(5).trimStart());
  }
  if (!lines.length) return;
  try {
    onEvent(name, JSON.parse(lines.join("\n")));
  } catch {
    onEvent(name, lines.join("\n"));
  }
}
