"use strict";
// What all pages share: elements, questions to the server, the address of a view, keys. Text of runs is hostile: it
// only ever becomes a text node or an attribute's value, never markup.

// name -> {title, perRun, show(parameters, holder)}; show returns what the page can do:
// update(parameters) for another view of the same page, refresh() when what it `watches` of the runs' state has
// changed, placed() once it is in the document, close(), and its keys: {key: [words, function]}
const pages = {};
const shared = { state: [], current: null, shown: 0 };

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined));
  return element;
}

async function api(name, parameters = {}) {
  const query = Object.fromEntries(Object.entries(parameters).filter(([, value]) => value !== undefined && value !== ""));
  if (window.exported) return window.exported(name, query);
  const response = await fetch(`api/${name}?${new URLSearchParams(query)}`, { cache: "no-store" });
  const body = await response.json();
  if (body.error) throw new Error(body.error);
  return body.data;
}

// ------------------------------------------------------------------------------------------------ addresses of views

function address() {
  const [page, query] = location.hash.slice(1).split("?");
  return { page: page in pages ? page : "curves", parameters: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

function link(page, parameters = {}) {
  const kept = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const query = new URLSearchParams(kept.map(([key, value]) => [key, String(value)])).toString();
  return `#${page}${query ? "?" + query : ""}`;
}

function go(page, parameters, { replace = false } = {}) {
  const target = link(page, parameters);
  if (replace) {
    history.replaceState(null, "", target);
    show();
  } else location.hash = target;
}

function change(parameters, options) {
  const now = address();
  go(now.page, { ...now.parameters, ...parameters }, options);
}

async function show() {
  const { page, parameters } = address();
  const turn = ++shared.shown;
  const is = pages[page];
  const runs = shared.state.map((one) => one.label);
  if (is.perRun && !runs.includes(parameters.run)) parameters.run = runs[0];
  document.getElementById("run-label").hidden = !is.perRun || runs.length < 2;
  document.getElementById("run").value = parameters.run ?? runs[0];
  document.title = `${is.title} · ${is.perRun ? parameters.run : runs.join(", ")} · rlvr view`;
  document.getElementById("run-name").textContent = runs.length === 1 ? runs[0] : "";
  for (const one of document.querySelectorAll("#nav a")) {
    one.toggleAttribute("aria-current", one.dataset.page === (is.under ?? page));
    if (pages[one.dataset.page].perRun && parameters.run) one.href = link(one.dataset.page, { run: parameters.run });
  }
  const same = shared.current && shared.current.page === page && shared.current.update;
  try {
    if (same && (await shared.current.update(parameters)) !== false) return;
    const holder = h("div", { class: `page ${page}` });
    const made = await is.show(parameters, holder);
    if (turn !== shared.shown) return;
    shared.current?.close?.();
    shared.current = { page, ...made };
    document.getElementById("main").replaceChildren(holder);
    made?.placed?.();
  } catch (error) {
    if (turn === shared.shown) fail(error);
  }
}

function fail(error) {
  shared.current?.close?.();
  shared.current = null;
  const text = error instanceof TypeError && /fetch/i.test(error.message) ? "The viewer has ended: start rlvr view again." : error.message;
  document.getElementById("main").replaceChildren(h("p", { class: "message", role: "alert" }, text));
}

// ------------------------------------------------------------------------------------------------------ small pieces

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(digits)));
}

const signed = (value) => (value > 0 ? "+" : "") + number(value, 3);
const percent = (value) => (value === null ? "–" : `${Math.round(value * 100)} %`);

const OUTCOMES = ["CORRECT", "PARTIAL", "WRONG", "NO_ANSWER", "UNREADABLE", "BAD_FORMAT", "TIMEOUT", "CRASHED", "BAD_REFERENCE", "ERROR"];

function outcome(name, term) {
  return h("span", { class: `outcome ${OUTCOMES.includes(name) ? name : "ERROR"}`, title: term }, name);
}

function select(name, choices, value, onchange, label) {
  const options = choices.map(([key, text]) => h("option", { value: key, selected: key === (value ?? "") }, text));
  return h("label", {}, label ?? name, " ", h("select", { name, onchange: (event) => onchange(event.target.value) }, options));
}

function isTyping(target) {
  return Boolean(target?.closest?.("input:not([type=checkbox]):not([type=range]), select, textarea, [contenteditable]"));
}

// ------------------------------------------------------------------------------------------------------------- keys

const COMMON = {
  "?": ["this help", () => openHelp()],
  "/": ["search", () => document.querySelector("input[type=search]")?.focus()],
};

function keysNow() {
  const numbered = Object.entries(pages).filter(([, one]) => !one.under);
  const tabs = numbered.map(([name, one], place) => [String(place + 1), [one.title, () => document.querySelector(`#nav a[data-page=${name}]`).click()]]);
  return { ...Object.fromEntries(tabs), ...COMMON, ...(shared.current?.keys ?? {}) };
}

function openHelp() {
  const rows = Object.entries(keysNow()).map(([key, [words]]) => h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, words)));
  const dialog = document.getElementById("help");
  dialog.replaceChildren(
    h("h2", {}, "Keyboard"), h("table", {}, rows),
    h("p", {}, "Every view has an address of its own: copy it from the browser's address bar."),
    h("form", { method: "dialog" }, h("button", {}, "close (Esc)")),
  );
  dialog.showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("help").open) return;
  if (event.key === "Escape" && isTyping(event.target)) event.target.blur();
  if (isTyping(event.target)) return;
  const found = keysNow()[event.key];
  if (found) {
    event.preventDefault();
    found[1]();
  }
});
