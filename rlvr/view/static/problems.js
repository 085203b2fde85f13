"use strict";
// Problems by how often they are solved, and one problem through all steps, its completions side by side.

const ORDERS = [["variable", "most variable"], ["never", "never solved"], ["always", "always solved"], ["reward", "lowest reward"], ["name", "by name"]];
const SVG = "http://www.w3.org/2000/svg";

const QUARTER_COLOURS = [OUTCOME_COLOURS.wrong, "#d9822b", "#d9b13b", OUTCOME_COLOURS.correct];

// points: [[step, value], ...], every value between low and high
function sparkline(points, low = 0, high = 1, words = percent) {
  const [width, height] = [120, 24];
  const image = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ viewBox: `0 0 ${width} ${height}`, class: "spark", role: "img" })) image.setAttribute(name, value);
  const [first, last] = [points[0]?.[0] ?? 0, points.at(-1)?.[0] ?? 1];
  const place = ([step, rate]) => [3 + ((step - first) / Math.max(1, last - first)) * (width - 6), height - 3 - ((rate - low) / (high - low || 1)) * (height - 6)].map((one) => one.toFixed(1)).join(",");
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.map(place).join(" "));
  const title = document.createElementNS(SVG, "title");
  title.textContent = points.map(([step, rate]) => `step ${step}: ${words(rate)}`).slice(-8).join("\n");
  image.append(title, line, ...points.map((point) => {
    const dot = document.createElementNS(SVG, "circle");
    const [x, y] = place(point).split(",");
    for (const [name, value] of Object.entries({ cx: x, cy: y, r: 1.6 })) dot.setAttribute(name, value);
    return dot;
  }));
  return image;
}

pages.problems = {
  title: "Problems",
  perRun: true,
  async show(parameters, holder) {
    const { run } = parameters;
    const order = parameters.order ?? "variable";
    const offset = Number(parameters.offset ?? 0);
    const [solved, found] = await Promise.all([api("solved", { run }), api("problems", { run, order, search: parameters.search, offset })]);
    const chart = h("div", { class: "chart" });
    const rows = found.rows.map((row) => h("tr", {},
      h("td", {}, h("a", { href: link("problem", { run, problem: row.problem }) }, row.problem)),
      h("td", { class: "number" }, percent(row.rate)), h("td", {}, found.graded ? sparkline(row.through, found.low, found.high, (value) => `reward ${number(value, 3)}`) : sparkline(row.through)), h("td", { class: "number" }, number(row.reward, 3)),
      h("td", { class: "number" }, number(row.n)), h("td", { class: "number" }, number(row.visits)), h("td", {}, row.first === row.last ? row.first : `${row.first}–${row.last}`)));
    const turn = (by, words) => h("button", { disabled: by < 0 ? offset === 0 : offset + found.rows.length >= found.count, onclick: () => change({ offset: Math.max(0, offset + by) || "" }) }, words);
    const hint = { variable: found.graded ? "Problems whose mean reward differs most from visit to visit." : "Problems whose success rate differs most from visit to visit, then those nearest to half.", never: "No completion was ever right: too hard, or a broken reference.", always: "Every completion was right: nothing to learn here any more.", reward: "All problems, those with the lowest mean reward first.", name: "All problems." }[order];
    holder.append(
      h("section", {}, h("h2", {}, solved.quarters ? "Groups of each step, by their mean reward" : "Groups of each step, by how many completions were right"), chart),
      h("form", { class: "bar", role: "search", onsubmit: (event) => { event.preventDefault(); change({ search: event.target.search.value, offset: "" }); } },
        h("span", { class: "tabs" }, ORDERS.map(([key, words]) => h("a", { href: link("problems", { run, order: key, search: parameters.search }), "aria-current": key === order }, words))),
        h("input", { type: "search", name: "search", placeholder: "find a problem by name", "aria-label": "find a problem by name", value: parameters.search ?? "" }), h("button", {}, "search")),
      h("p", { class: "hint" }, hint),
      found.count ? h("div", { class: "wide" }, h("table", { class: "problems" },
        h("thead", {}, h("tr", {}, [["problem"], ["solved", "number"], ["through the steps"], ["reward", "number"], ["completions", "number"], ["visits", "number"], ["steps"]].map(([one, kind]) => h("th", { class: kind }, one)))), h("tbody", {}, rows)))
        : h("p", { class: "message" }, parameters.search ? `No such problem's name holds “${parameters.search}”.` : "There is none."),
      h("p", { class: "bar" }, turn(-50, "◀"), `${found.count ? offset + 1 : 0}–${offset + found.rows.length} of ${number(found.count)}`, turn(50, "▶")),
    );
    let drawn = null;
    return {
      placed() {
        let layers = { never: solved.none, sometimes: solved.some, always: solved.every };
        let colours = { never: OUTCOME_COLOURS.wrong, sometimes: "#d9b13b", always: OUTCOME_COLOURS.correct };
        if (solved.quarters) {
          const name = (at) => `${number(solved.bounds[at], 3)} to ${number(solved.bounds[at + 1], 3)}`;
          layers = Object.fromEntries(solved.quarters.map((counts, at) => [name(at), counts]));
          colours = Object.fromEntries(QUARTER_COLOURS.map((colour, at) => [name(at), colour]));
        }
        if (solved.steps.length) drawn = stacked(chart, solved.steps, layers, { xLabel: "step", colours, height: 170, onstep: (at) => go("rollouts", { run, step: solved.steps[at] }) });
      },
      watches: "place", refresh: show, close: () => drawn?.close(),
      keys: { o: ["next order", () => change({ order: ORDERS[(ORDERS.findIndex(([key]) => key === order) + 1) % ORDERS.length][0], offset: "" })] },
    };
  },
};

const SIDE_BY_SIDE = 4;

pages.problem = {
  title: "One problem",
  perRun: true,
  under: "problems",
  async show(parameters, holder) {
    const { run, problem } = parameters;
    const found = await api("problem", { run, problem });
    const visits = found.visits;
    const sample = Number(parameters.sample ?? 0);
    const width = Math.min(SIDE_BY_SIDE, visits.length);
    const from = Math.min(Math.max(0, Number(parameters.from ?? -1)), visits.length - width);
    // without a choice: the first visit, the last, and some between, evenly
    const chosen = parameters.from === undefined
      ? [...new Set(Array.from({ length: width }, (_, at) => Math.round((at * (visits.length - 1)) / Math.max(1, width - 1))))].map((at) => visits[at])
      : visits.slice(from, from + width);
    const completions = await api("completions", { run, problem, steps: chosen.map((one) => one.step).join(","), sample });
    const chart = h("div", { class: "chart" });
    const most = Math.max(...visits.map((one) => one.n));
    const move = (by) => change({ from: parameters.from === undefined ? (by > 0 ? 0 : visits.length - width) : Math.min(Math.max(0, from + by), visits.length - width) });
    const other = (by) => change({ sample: (sample + by + most) % most });
    holder.append(
      h("h2", {}, problem), h("p", { class: "facts" }, fact("from", found.source), fact("reference", typeof found.reference === "string" ? found.reference : JSON.stringify(found.reference)), fact("visits", visits.length)),
      h("details", { open: true }, h("summary", {}, "Prompt, as the model saw it"), h("pre", { class: "text prompt", tabindex: 0 }, found.prompt)),
      h("section", {}, h("h3", {}, "Share of right completions, and mean reward"), chart),
      h("div", { class: "bar" }, h("h3", {}, "Completions side by side"),
        select("sample", Array.from({ length: most }, (_, at) => [String(at), String(at)]), String(sample), (value) => change({ sample: value }), "sample"),
        h("button", { disabled: visits.length <= width, onclick: () => move(-1), title: "visits before (h)" }, "◀ earlier"),
        h("button", { disabled: visits.length <= width, onclick: () => move(1), title: "later visits (l)" }, "later ▶"),
        parameters.from === undefined ? "the first, the last, and between" : h("a", { href: link("problem", { run, problem, sample }) }, "the first, the last, and between")),
      h("div", { class: "side-by-side" }, completions.map((one) => h("article", { class: "card" },
        h("h4", {}, h("a", { href: link("rollouts", spot({ run }, one)) }, `step ${one.step}`)),
        h("p", { class: "facts" }, Object.entries(one.verdicts).map(([name, verdict]) => outcome(verdict.outcome, name)), fact("reward", number(one.reward, 3)), fact("tokens", one.tokens), fact("", one.finish_reason)),
        h("pre", { class: "text completion", tabindex: 0 }, one.text)))),
    );
    let drawn = null;
    return {
      placed() {
        const judged = visits.filter((one) => one.judged);
        const x = judged.map((one) => one.step);
        const tables = { right: { x, y: judged.map((one) => one.correct / one.judged) }, reward: { x, y: judged.map((one) => one.reward) } };
        if (judged.length) drawn = lines(chart, tables, { xLabel: "step", height: 150, onpoint: ([, at]) => go("rollouts", { run, step: judged[at].step, group: judged[at].group }) });
      },
      watches: "place", refresh: show, close: () => drawn?.close(),
      keys: { j: ["next sample", () => other(1)], k: ["sample before", () => other(-1)], l: ["later visits", () => move(1)], h: ["earlier visits", () => move(-1)], u: ["all problems", () => go("problems", { run })] },
    };
  },
};
