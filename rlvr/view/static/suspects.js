"use strict";
// Completions that may have fooled the verifier, by rule.

pages.suspects = {
  title: "Suspects",
  perRun: true,
  async show(parameters, holder) {
    const { run } = parameters;
    const found = await api("suspects", { run });
    const charts = [];
    holder.append(h("p", { class: "hint" }, "High rewards whose texts do not look like their neighbours'. A suspect is a text to read, not a verdict: the verifier may be right, and the policy may have found a short way."));
    if (!found.length) holder.append(h("p", { class: "message" }, "No scored rollouts yet."));
    for (const rule of found) {
      const chart = h("div", { class: "chart" });
      holder.append(h("section", { class: "rule", "data-rule": rule.rule },
        h("h2", {}, rule.title, " ", h("span", { class: `badge ${rule.count ? "some" : ""}` }, number(rule.count))),
        h("p", {}, rule.text), rule.chart ? chart : null,
        rule.rows.length ? h("ol", { class: "rows" }, rule.rows.map((row) => rowOf(null, { ...row, run }))) : null,
        rule.count > rule.rows.length ? h("p", {}, `The first ${rule.rows.length} of ${number(rule.count)}.`) : null));
      if (rule.chart) charts.push([chart, rule]);
    }
    const drawn = [];
    return {
      placed: () => charts.forEach(([place, rule]) => drawn.push(lines(place, { reward: { x: rule.chart.x, y: rule.chart.reward }, agreement: { x: rule.chart.x, y: rule.chart.agreement } }, { xLabel: "step", onpoint: ([, at]) => go("rollouts", { run, step: rule.chart.x[at] }) }))),
      watches: "place", refresh: () => shared.state.every((one) => one.level) && show(), // it looks at the whole run
      close: () => drawn.forEach((one) => one.close()),
      keys: {
        j: ["next suspect", () => step(1)], k: ["suspect before", () => step(-1)],
      },
    };
    function step(by) {
      const links = [...holder.querySelectorAll(".rows a")];
      const at = links.indexOf(document.activeElement);
      (links[at + by] ?? links[0])?.focus();
    }
  },
};
