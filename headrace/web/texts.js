// What workflows say in words: the newest lines, to be read and copied.

import { $, download, el, show } from "./dom.js";

const LINES = 200;

export class Texts {
  constructor() {
    this.list = $("text-lines");
    $("text-clear").addEventListener("click", () => this.clear());
    $("text-save").addEventListener("click", () => {
      const lines = [...this.list.children].map((line) => line.textContent);
      download(new Blob([`${lines.join("\n")}\n`], { type: "text/plain" }), "headrace-text.txt");
    });
  }

  add(text) {
    const follows = this.list.scrollTop + this.list.clientHeight >= this.list.scrollHeight - 8;
    this.list.append(el("li", {}, typeof text === "string" ? text : JSON.stringify(text)));
    while (this.list.children.length > LINES) this.list.firstChild.remove();
    show("text", true);
    if (follows) this.list.scrollTop = this.list.scrollHeight;
  }

  clear() {
    this.list.replaceChildren();
    show("text", false);
  }
}
