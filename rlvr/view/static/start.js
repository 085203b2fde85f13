"use strict";
// Fills the header, shows the page that the address names, and looks every other second whether the runs have grown.

const POLL = 2000;

function status() {
  const parts = shared.state.map((run) => {
    const name = shared.state.length > 1 ? `${run.label}: ` : "";
    const notes = [];
    if (!run.level) notes.push(`indexing ${Math.floor((100 * run.place) / Math.max(1, run.size))} % of ${number(run.size / 1e6, 3)} MB`);
    if (run.bad) notes.push(`${run.bad} lines of rollouts.jsonl cannot be read (${run.bad_first})`);
    if (run.bad_metrics) notes.push(`${run.bad_metrics} lines of metrics.jsonl cannot be read`);
    return notes.length ? name + notes.join("; ") : "";
  });
  if (window.exported) parts.push(window.exported.note);
  document.getElementById("status").textContent = parts.filter(Boolean).join(" · ");
}

async function poll() {
  const watched = (state) => JSON.stringify(state.map((run) => run[shared.current?.watches]));
  const before = shared.state;
  try {
    shared.state = await api("state");
    status();
  } catch {
    document.getElementById("status").textContent = "not live: the viewer has ended";
  }
  try {
    // nothing changes under the hands of somebody who types
    if (watched(shared.state) !== watched(before) && !isTyping(document.activeElement)) await shared.current.refresh();
  } finally {
    setTimeout(poll, POLL);
  }
}

async function start() {
  shared.state = await api("state");
  const runs = shared.state.map((one) => one.label);
  const nav = Object.entries(pages).filter(([, one]) => !one.under);
  document.getElementById("nav").append(...nav.map(([name, one]) => h("a", { href: link(name), "data-page": name }, one.title)));
  document.getElementById("run").append(...runs.map((label) => h("option", { value: label }, label)));
  document.getElementById("run").addEventListener("change", (event) => go(address().page === "problem" ? "problems" : address().page, { run: event.target.value }));
  document.getElementById("help-button").addEventListener("click", openHelp);
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  window.addEventListener("hashchange", show);
  status();
  await show();
  if (!window.exported) setTimeout(poll, POLL);
}

start().catch(fail);
