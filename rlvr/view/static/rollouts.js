"use strict";
// Rollouts: step -> group -> sample on the left, or a list by search and filters; the chosen one in full on the right.

const FILTERS = ["search", "term", "outcome", "reward_min", "reward_max", "tokens_min", "tokens_max", "finish", "step_min", "step_max", "problem", "content", "disagree"];
const SHOWN_TOKENS = 3000; // more are shown on demand: a page holds what it shows
const COLOURS = [
  ["none", "nothing"], ["advantage", "advantage"], ["probability", "probability"], ["mismatch", "engine–learner mismatch"],
  ["version", "weight version"], ["mask", "loss mask"],
];

const has = (value) => value !== undefined && value !== "";
const spot = ({ run, colour }, one) => ({ run, colour, step: one.step, group: one.group, sample: one.sample });

pages.rollouts = {
  title: "Rollouts",
  perRun: true,
  async show(parameters, holder) {
    const { run } = parameters;
    const overview = await api("overview", { run });
    if (!overview.rollouts) {
      const state = shared.state.find((one) => one.label === run);
      const words = state.size ? "The rollouts are being indexed; the first step appears here in a moment." : "This run has no rollouts yet (or run.log_rollouts is false).";
      holder.append(h("p", { class: "message" }, words));
      return { watches: "place", refresh: show };
    }
    const view = { parameters, overview, side: h("section", { class: "side", "aria-label": "which rollout" }), detail: h("section", { class: "detail", "aria-label": "the rollout", tabindex: -1 }), list: null, rows: [], stepData: null, record: null };
    const filters = h("div");
    holder.append(filters, h("div", { class: "columns" }, view.side, view.detail));
    const update = async (next) => {
      if (next.run !== run) return false; // another run is another page
      view.parameters = next;
      filters.replaceChildren(filterBar(view));
      await (isList(next) ? fillList(view) : fillStep(view));
      await fillDetail(view);
      const exact = link("rollouts", view.parameters); // the address names the completion, also where it was not asked for
      if (view.parameters === next && location.hash !== exact) history.replaceState(null, "", exact);
    };
    await update(parameters);
    return { update, watches: "place", refresh: () => refreshRollouts(view), keys: rolloutKeys(view) };
  },
};

const isList = (parameters) => FILTERS.some((name) => has(parameters[name]));
const filterOf = (parameters) => Object.fromEntries(FILTERS.filter((name) => has(parameters[name])).map((name) => [name, parameters[name]]));

async function refreshRollouts(view) {
  view.overview = await api("overview", { run: view.parameters.run });
  if (isList(view.parameters)) {
    if (view.rows.length < 50) await fillList(view, { force: true }); // a longer list would jump under the reader's eyes
  } else {
    view.stepData = null;
    await fillStep(view);
  }
}

// ------------------------------------------------------------------------------------------------------------ filters

function filterBar(view) {
  const { parameters, overview } = view;
  const set = (name) => (value) => go("rollouts", { ...withoutSpot(parameters), [name]: value });
  const box = (name, label, type = "number") => h("label", {}, `${label} `, h("input", { type, name, step: "any", value: parameters[name] ?? "", onchange: (event) => set(name)(event.target.value) }));
  const terms = Object.keys(overview.terms);
  const term = parameters.term ?? terms[0];
  const active = FILTERS.filter((name) => has(parameters[name]) && name !== "search" && name !== "term");
  return h("form", { class: "bar filters", role: "search", onsubmit: (event) => { event.preventDefault(); set("search")(event.target.search.value); } },
    h("input", { type: "search", name: "search", placeholder: 'search completions: words, "a phrase", begin*', "aria-label": "search completions", value: parameters.search ?? "" }),
    h("button", {}, "search"),
    h("details", { open: active.length > 0 }, h("summary", {}, active.length ? `filters (${active.length})` : "filters"),
      h("div", { class: "bar" },
        terms.length > 1 ? select("term", terms.map((name) => [name, name]), term, set("term")) : null,
        select("outcome", [["", "any"], ...(overview.terms[term] ?? []).map((name) => [name, name])], parameters.outcome, set("outcome"), "outcome"),
        select("finish", [["", "any"], ...["stop", "length", "abort", "repetition"].map((name) => [name, name])], parameters.finish, set("finish"), "ended by"),
        box("reward_min", "reward from"), box("reward_max", "to"), box("tokens_min", "tokens from"), box("tokens_max", "to"),
        box("step_min", "step from"), box("step_max", "to"), box("problem", "problem", "text"),
        terms.length > 1 ? select("disagree", [["", "–"], ...terms.slice(1).map((name) => [name, name])], parameters.disagree, set("disagree"), `${terms[0]} contradicted by`) : null,
      )),
    isList(parameters) ? h("a", { class: "button", href: link("rollouts", { run: parameters.run, colour: parameters.colour, step: parameters.step, group: parameters.group, sample: parameters.sample }) }, "back to the steps") : null,
  );
}

const withoutSpot = ({ step, group, sample, ...rest }) => rest;

async function fillList(view, { force = false } = {}) {
  const { parameters } = view;
  const wanted = filterOf(parameters);
  const key = JSON.stringify([wanted, parameters.order]);
  if (!force && view.list === key) return markRow(view);
  const began = performance.now();
  const found = await api("search", { run: parameters.run, ...wanted, order: parameters.order });
  view.list = key;
  view.stepData = null;
  view.rows = found.rows;
  const rows = h("ol", { class: "rows" });
  const count = `${number(found.count)}${found.counted ? "" : " or more"} of ${number(view.overview.rollouts)} rollouts, ${Math.round(performance.now() - began)} ms`;
  const order = select("order", [["", "oldest first"], ["newest", "newest first"]], parameters.order, (value) => change({ order: value }), "");
  const more = h("button", { hidden: !found.more, onclick: async () => {
    const next = await api("search", { run: parameters.run, ...wanted, order: parameters.order, after: view.rows.at(-1).id });
    view.rows.push(...next.rows);
    rows.append(...next.rows.map((row) => rowOf(view, row)));
    more.hidden = !next.more;
  } }, "more");
  rows.append(...found.rows.map((row) => rowOf(view, row)));
  view.side.replaceChildren(h("p", { class: "count", role: "status" }, found.note ?? count, " ", order), found.rows.length ? rows : h("p", { class: "message" }, "No rollout fits. Remove a filter, or search for fewer words."), more);
  markRow(view);
}

function rowOf(view, row) {
  const extra = view ? { ...filterOf(view.parameters), order: view.parameters.order } : {};
  const href = link("rollouts", { ...extra, ...spot(view?.parameters ?? {}, row), run: row.run ?? view?.parameters.run });
  const first = Object.keys(row.outcomes)[0];
  return h("li", {}, h("a", { href, "data-spot": `${row.step}/${row.group}/${row.sample}` },
    h("span", { class: "meta" }, `step ${row.step} · ${row.problem} `, first ? outcome(row.outcomes[first], first) : null, ` reward ${number(row.reward, 3)} · ${row.tokens} tokens · ${row.finish}`, row.why ? ` · ${row.why}` : ""),
    h("span", { class: "excerpt" }, row.excerpt || "(empty)")));
}

function markRow(view) {
  const { step, group, sample } = view.parameters;
  for (const one of view.side.querySelectorAll("[data-spot]")) {
    const isIt = one.dataset.spot === `${step}/${group}/${sample}`;
    one.toggleAttribute("aria-current", isIt);
    if (isIt) one.scrollIntoView({ block: "nearest" });
  }
}

// -------------------------------------------------------------------------------------------------------------- steps

async function fillStep(view) {
  const { parameters, overview } = view;
  const wanted = has(parameters.step) ? Number(parameters.step) : undefined;
  if (!view.stepData || (wanted ?? overview.last) !== view.stepData.step || view.list) {
    view.stepData = await api("step", { run: parameters.run, step: wanted });
    view.list = null;
    view.side.replaceChildren(stepPicker(view), stepGroups(view));
  }
  const { step, groups } = view.stepData;
  if (groups.length) {
    const group = has(parameters.group) && groups.find((one) => one.group === Number(parameters.group)) || groups.find(hasDifferentRewards) || groups[0];
    const sample = group.samples.find((one) => one.sample === Number(parameters.sample)) ?? group.samples[0];
    Object.assign(parameters, { step, group: group.group, sample: sample.sample });
  }
  markRow(view);
}

// such a group is trained, so that its completions have colours
const hasDifferentRewards = (group) => new Set(group.samples.map((one) => one.reward).filter((reward) => reward !== null)).size > 1;

const toStep = (view, step) => step !== null && go("rollouts", { run: view.parameters.run, colour: view.parameters.colour, step });

function stepPicker(view) {
  const { step, before, behind } = view.stepData;
  const arrow = (to, words, text) => h("button", { type: "button", disabled: to === null, "aria-label": words, title: words, onclick: () => toStep(view, to) }, text);
  return h("form", { class: "bar picker", onsubmit: (event) => { event.preventDefault(); toStep(view, event.target.step.value); } },
    arrow(before, "step before ([)", "◀"),
    h("label", {}, "step ", h("input", { type: "number", name: "step", min: view.overview.first, max: view.overview.last, value: step })),
    arrow(behind, "next step (])", "▶"), ` of ${view.overview.first}–${view.overview.last}`);
}

function stepGroups(view) {
  const { step, groups } = view.stepData;
  if (!groups.length) return h("p", { class: "message" }, `No rollouts of step ${step} are here.`);
  return h("ol", { class: "groups" }, groups.map((group) => h("li", {},
    h("span", { class: "meta" }, `${group.group} · ${group.problem}`),
    h("span", { class: "samples" }, group.samples.map((one) => h("a", {
      href: link("rollouts", { run: view.parameters.run, colour: view.parameters.colour, step, group: group.group, sample: one.sample }),
      "data-spot": `${step}/${group.group}/${one.sample}`, class: `sample ${one.outcome}`,
      title: `sample ${one.sample}: ${one.outcome}, reward ${number(one.reward)}, advantage ${number(one.advantage)}, ${one.tokens} tokens, ${one.finish}`,
    }, one.reward === null ? "–" : number(one.reward, 2)))))));
}

// ------------------------------------------------------------------------------------------------------ one in full

async function fillDetail(view) {
  const { parameters } = view;
  if (isList(parameters) && !has(parameters.sample)) {
    if (view.rows.length) Object.assign(parameters, spot(parameters, view.rows[0]));
    markRow(view);
  }
  if (!has(parameters.sample)) return void view.detail.replaceChildren();
  const { run, step, group, sample } = parameters;
  const record = await api("rollout", { run, step, group, sample });
  if (view.parameters !== parameters) return; // the reader has moved on
  view.record = record;
  view.detail.replaceChildren(...detail(record, parameters));
  view.detail.scrollTop = 0;
}

function detail(record, parameters) {
  const colour = parameters.colour ?? "advantage";
  const completion = h("div");
  const fill = (name) => completion.replaceChildren(...colouredCompletion(record, name));
  fill(colour);
  return [
    h("h2", {}, `Step ${record.step} · group ${record.group} · sample ${record.sample}`),
    h("p", { class: "facts" },
      fact("reward", number(record.reward)), fact("advantage", record.advantage === null ? "not trained" : signed(record.advantage)),
      fact("ended by", record.finish_reason), fact("tokens", `${record.tokens}${record.prompt_tokens ? ` after ${record.prompt_tokens} of prompt` : ""}`),
      fact("weights of step", record.versions.map(([version, count]) => (record.versions.length > 1 ? `${version} (${count} tokens)` : version)).join(", ")),
      fact("visit", record.visit), fact("graded in", `${number(record.grade_seconds, 2)} s`)),
    h("p", { class: "facts" },
      fact("problem", h("a", { href: link("problem", { run: parameters.run, problem: record.problem_id, sample: record.sample }), title: "this problem through all steps (p)" }, record.problem_id)),
      fact("from", record.source), fact("reference", typeof record.reference === "string" ? record.reference : JSON.stringify(record.reference))),
    h("div", { class: "wide" }, h("table", { class: "verdicts" }, h("thead", {}, h("tr", {}, ["term", "outcome", "score", "detail"].map((one) => h("th", {}, one)))),
      h("tbody", {}, Object.entries(record.verdicts).map(([name, one]) => h("tr", {}, h("td", {}, name), h("td", {}, outcome(one.outcome, name)), h("td", {}, number(one.score)), h("td", {}, detailsOf(one.detail))))))),
    h("h3", {}, "Prompt, as the model saw it"),
    h("pre", { class: "text prompt", tabindex: 0 }, record.prompt),
    h("div", { class: "bar" }, h("h3", {}, "Completion"),
      select("colour", COLOURS, colour, (value) => change({ ...spot({ run: parameters.run }, record), colour: value }, { replace: true }), "coloured by")),
    completion,
  ];
}

const fact = (name, value) => h("span", { class: "fact" }, h("span", { class: "name" }, name), " ", value);

function detailsOf(values) {
  return Object.entries(values).map(([name, value]) => h("div", {}, h("span", { class: "name" }, name), " ", h("span", { class: "value" }, typeof value === "string" ? value : JSON.stringify(value))));
}

// For each token: a colour, and a legend; null where the rollout does not tell.
function tokenColours(record, by) {
  const count = record.tokens;
  const mask = spread(record.loss_mask, count);
  const version = spread(record.versions, count);
  const lp = record.behaviour_logprobs;
  const tint = (hue, strength) => `hsl(${hue} 75% 50% / ${Math.round(Math.min(1, strength) * 60)}%)`;
  switch (by) {
    case "advantage":
      if (record.advantage === null) return { legend: "This completion was not trained: it has no advantage.", of: () => "" };
      return { legend: `All trained tokens of a completion share its advantage, here ${signed(record.advantage)}: green is made likelier, red less likely.`, of: (at) => (mask[at] ? tint(record.advantage > 0 ? 140 : 0, 0.15 + Math.abs(record.advantage) / 2) : "") };
    case "probability":
      return lp && { legend: "The deeper the orange, the less likely the token was when it was sampled (white: certain, deepest: 1 % and less).", of: (at) => (mask[at] ? tint(30, -lp[at] / 4.6) : "") };
    case "mismatch": {
      if (!lp) return null;
      const trainer = record.trainer_logprobs;
      if (!trainer) return { legend: "The learner did not compute this completion before its update (not trained, or a later update of the batch): no mismatch is known.", of: () => "" };
      const largest = Math.max(...trainer.map((one, at) => (one === null ? 0 : Math.abs(one - lp[at]))));
      const scale = Math.max(largest, 1e-4);
      return { legend: `Learner minus engine, in nats: blue where the learner finds the token likelier, red where less; deepest at ${number(scale, 2)}, the largest of this completion.`, of: (at) => (trainer[at] === null ? "" : tint(trainer[at] > lp[at] ? 215 : 0, Math.abs(trainer[at] - lp[at]) / scale)) };
    }
    case "version": {
      const known = [...new Set(version)].sort((a, b) => a - b);
      return { legend: `Sampled by the weights of step ${known.join(", ")}.`, of: (at) => tint((known.indexOf(version[at]) * 137 + 200) % 360, 0.5) };
    }
    case "mask":
      return { legend: "Green tokens are trained; grey ones were put there by the workflow or masked out.", of: (at) => (mask[at] ? tint(140, 0.35) : tint(0, 0)), classes: (at) => (mask[at] ? "" : "masked") };
    default:
      return { legend: "", of: () => "" };
  }
}

const spread = (runs, count) => runs.flatMap(([value, length]) => Array(length).fill(value)).slice(0, count);

function colouredCompletion(record, by) {
  const colours = tokenColours(record, by);
  const missing = "The tokens of this completion were not written: run.log_token_groups says for how many groups of a step they are. ";
  const note = (text) => h("p", { class: "hint legend" }, text);
  if (!record.pieces) {
    const isOne = by === "none" || by === "advantage" || (by === "version" && record.versions.length < 2) || (by === "mask" && record.loss_mask.length < 2);
    const text = h("pre", { class: "text completion", tabindex: 0 }, record.text);
    if (isOne && colours) text.style.backgroundColor = colours.of(0);
    return [note(isOne ? colours.legend : missing + "Choose another colouring, or a completion with tokens."), text];
  }
  const text = h("pre", { class: "text completion", tabindex: 0 });
  const show = (from) => {
    const end = Math.min(record.pieces.length, from + SHOWN_TOKENS);
    for (let at = from; at < end; at++) text.append(tokenOf(record, colours, at));
    if (end < record.pieces.length) {
      const more = h("button", { onclick: () => { more.remove(); show(end); } }, `show ${number(record.pieces.length - end)} more tokens`);
      text.append(more);
    }
  };
  show(0);
  const without = record.has_tokenizer ? "" : " No tokenizer.json was found beside a checkpoint or at model.path: tokens are shown by their numbers.";
  return [note(colours.legend + without), text];
}

function tokenOf(record, colours, at) {
  const lp = record.behaviour_logprobs[at];
  const trainer = record.trainer_logprobs?.[at];
  const title = `token ${at + 1}: probability ${number(Math.exp(lp), 3)} (${number(lp, 3)} nats)` + (trainer === null || trainer === undefined ? "" : `, the learner's ${number(Math.exp(trainer), 3)}`);
  const piece = h("span", { class: `token ${colours.classes?.(at) ?? ""}`, title }, record.pieces[at]);
  const colour = colours.of(at);
  if (colour) piece.style.backgroundColor = colour;
  return piece;
}

// --------------------------------------------------------------------------------------------------------------- keys

function rolloutKeys(view) {
  const walk = (by) => () => {
    const spots = [...view.side.querySelectorAll("[data-spot]")];
    const { step, group, sample } = view.parameters;
    const at = spots.findIndex((one) => one.dataset.spot === `${step}/${group}/${sample}`);
    const next = spots[at + by];
    if (next) location.hash = next.getAttribute("href");
  };
  const groupBy = (by) => () => {
    const groups = view.stepData?.groups ?? [];
    const next = groups[groups.findIndex((one) => one.group === Number(view.parameters.group)) + by];
    if (next) change({ step: view.stepData.step, group: next.group, sample: next.samples[0].sample });
  };
  const paint = () => {
    const at = COLOURS.findIndex(([name]) => name === (view.parameters.colour ?? "advantage"));
    change({ ...spot({ run: view.parameters.run }, view.parameters), colour: COLOURS[(at + 1) % COLOURS.length][0] }, { replace: true });
  };
  return {
    j: ["next completion", walk(1)], k: ["completion before", walk(-1)], l: ["next group", groupBy(1)], h: ["group before", groupBy(-1)],
    "]": ["next step", () => view.stepData && toStep(view, view.stepData.behind)], "[": ["step before", () => view.stepData && toStep(view, view.stepData.before)],
    t: ["colour tokens by the next quantity", paint],
    p: ["this problem through all steps", () => view.record && go("problem", { run: view.parameters.run, problem: view.record.problem_id, sample: view.record.sample })],
  };
}
