// Opens the annotation form without a browser, acts on it, and prints what it shows: node form_page.js FORM < ACTIONS
// ACTIONS is a JSON list such as [["choose", "1"], ["key", "1"], ["click", "back"], ["reload"], ["show"]].
"use strict";
const fs = require("fs");
const vm = require("vm");

class Element {
  constructor(tag, attributes = {}) {
    Object.assign(this, { tag, attributes, children: [], listeners: {}, hidden: "hidden" in attributes });
  }
  get textContent() {
    return this.children.map((child) => (typeof child === "string" ? child : child.textContent)).join("");
  }
  set textContent(text) {
    this.children = [String(text)];
  }
  append(...children) {
    this.children.push(...children);
  }
  replaceChildren(...children) {
    this.children = children;
  }
  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }
  addEventListener(kind, listener) {
    this.listeners[kind] = listener;
  }
  dispatch(kind, event = {}) {
    this.listeners[kind]?.(event);
  }
  click() {
    if (this.tag === "a") downloads.push({ name: this.download, url: this.href });
    else if (!this.disabled) this.dispatch("click");
  }
  blur() {}
  remove() {}
  describe() {
    return { tag: this.tag, children: this.children.map((c) => (typeof c === "string" ? c : c.describe())) };
  }
}

const downloads = [];
const stored = new Map();
let storageWorks = true;
const localStorage = {
  getItem(name) {
    if (!storageWorks) throw new Error("denied");
    return stored.has(name) ? stored.get(name) : null;
  },
  setItem(name, value) {
    if (!storageWorks) throw new Error("denied");
    stored.set(name, value);
  },
};

function open(page) {
  const elements = {};
  for (const [, tag, rest, id] of page.matchAll(/<(\w+)((?:\s[^<>]*?)?\sid="(\w+)"[^<>]*)>/g)) {
    elements[id] = new Element(tag, / hidden/.test(rest) ? { hidden: "" } : {});
  }
  const scripts = [...page.matchAll(/<script([^>]*)>([^]*?)<\/script>/g)];
  elements.data.textContent = scripts.find(([, attributes]) => attributes.includes("application/json"))[2];
  const document = new Element("document");
  document.body = new Element("body");
  document.getElementById = (id) => elements[id] || null;
  document.createElement = (tag) => new Element(tag);
  const urls = [];
  const URL = { createObjectURL: (blob) => String(urls.push(blob.content) - 1), revokeObjectURL() {} };
  class Blob {
    constructor(parts) {
      this.content = parts.join("");
    }
  }
  const code = scripts.filter(([, attributes]) => !attributes.includes("application/json"));
  for (const [, , source] of code) vm.runInNewContext(source, { document, localStorage, URL, Blob, setTimeout() {} });
  return { document, elements, urls };
}

const page = fs.readFileSync(process.argv[2], "utf-8");
let form = open(page);
const shown = [];
let prevented = 0;
for (const [action, value] of JSON.parse(fs.readFileSync(0, "utf-8"))) {
  const { document, elements, urls } = form;
  if (action === "choose") {
    elements.annotator.value = value;
    elements.annotator.dispatch("change");
  } else if (action === "key") {
    const event = typeof value === "string" ? { key: value } : value;
    document.dispatch("keydown", { target: { id: "story" }, preventDefault: () => prevented++, ...event });
  } else if (action === "click") elements[value].click();
  else if (action === "reload") form = open(page);
  else if (action === "storage") storageWorks = value;
  else if (action === "download") {
    elements.download.click();
    const { name, url } = downloads.at(-1);
    shown.push({ name, content: urls[url] });
  } else if (action === "show") {
    shown.push({
      work: !elements.work.hidden,
      notice: !elements.storage.hidden,
      choices: elements.annotator.children.map((option) => option.value),
      story: elements.story.describe(),
      text: elements.story.textContent,
      place: elements.place.textContent,
      progress: elements.progress.value,
      yes: elements.yes.attributes["aria-pressed"],
      no: elements.no.attributes["aria-pressed"],
      prevented,
      done: elements.done.textContent,
    });
  }
}
console.log(JSON.stringify(shown));
