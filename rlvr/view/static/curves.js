"use strict";
// Curves of every metric, runs laid over each other; a chart is drawn, and its numbers fetched, once it is in sight.

const typing = { timer: 0, goesOn: false }; // what is typed into the search makes the page anew; the cursor stays in it
const X_WORDS = [["step", "step"], ["samples", "samples"], ["tokens", "tokens"], ["hours", "hours"]];

pages.curves = {
  title: "Curves",
  async show(parameters, holder) {
    const glossary = await api("glossary");
    const hidden = new Set((parameters.hide ?? "").split("|").filter(Boolean));
    const runs = shared.state.map((one) => one.label);
    const colours = Object.fromEntries(runs.map((label, place) => [label, PALETTE[place % PALETTE.length]]));
    const x = parameters.x ?? "step";
    const weight = Number(parameters.smooth ?? 0);
    const find = (parameters.find ?? "").toLowerCase();
    const charts = new Set();
    const typed = (text) => {
      clearTimeout(typing.timer);
      typing.timer = setTimeout(() => {
        typing.goesOn = true;
        change({ find: text }, { replace: true });
      }, 150);
    };
    const context = { x, weight, colours, visible: runs.filter((label) => !hidden.has(label)) };

    const bar = h("form", { class: "bar", role: "search", onsubmit: (event) => event.preventDefault() },
      h("input", { type: "search", placeholder: "find a metric", "aria-label": "find a metric", value: parameters.find ?? "",
        oninput: (event) => typed(event.target.value) }),
      select("x", X_WORDS, x, (value) => change({ x: value }, { replace: true }), "over"),
      h("label", {}, "smoothing ", h("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: weight, "aria-label": "smoothing",
        onchange: (event) => change({ smooth: event.target.value === "0" ? "" : event.target.value }, { replace: true }) }), h("output", {}, ` ${weight || "off"}`)),
      runs.length < 2 ? null : runs.map((label) => {
        const mark = h("span", { class: "swatch" });
        mark.style.background = colours[label];
        return h("label", { class: "run-choice" }, h("input", { type: "checkbox", checked: !hidden.has(label), onchange: () => {
          hidden.has(label) ? hidden.delete(label) : hidden.add(label);
          change({ hide: [...hidden].join("|") }, { replace: true });
        } }), mark, label);
      }),
    );
    holder.append(bar, h("p", { class: "hint" }, "Point at a name for its meaning; the green band is its healthy range. Drag to zoom, double-click to zoom out, click a point to read its step's rollouts."));

    const keys = Object.keys(glossary).filter((key) => key.toLowerCase().includes(find));
    if (!keys.length) {
      const none = Object.keys(glossary).length ? `No metric's name holds “${parameters.find}”.` : "No step has been logged yet; this page fills as the run writes metrics.jsonl.";
      holder.append(h("p", { class: "message" }, none));
    }
    const sections = find ? [] : [{ title: "At a glance", cards: [...headlineCards(keys, glossary, context), ...stackedCards(keys, glossary, context)] }].filter((one) => one.cards.length);
    const isBound = (key) => /_(low|high)$/.test(key) && `${key.replace(/_(low|high)$/, "_low")}` in glossary && key.replace(/_(low|high)$/, "") in glossary;
    for (const key of keys.filter((one) => !isBound(one) || one.toLowerCase() === find)) {
      let section = sections.find((one) => one.title === glossary[key].section);
      if (!section) sections.push((section = { title: glossary[key].section, cards: [] }));
      section.cards.push(lineCard(key, glossary[key], context, { glossary }));
    }
    for (const { title, cards } of sections) {
      holder.append(h("section", {}, h("h2", {}, title), h("div", { class: "grid" }, cards.map((one) => one.element))));
      for (const card of cards) charts.add(card);
    }
    const sight = new IntersectionObserver((seen) => {
      for (const one of seen) {
        const card = one.target.card;
        card.inSight = one.isIntersecting;
        if (card.inSight && !card.isFresh) draw(card);
      }
    }, { rootMargin: "100px" });
    for (const card of charts) {
      card.element.card = card;
      sight.observe(card.element);
    }
    let known = Object.keys(glossary).length;
    return {
      placed() {
        if (!typing.goesOn) return;
        typing.goesOn = false;
        const input = bar.querySelector("input[type=search]");
        input.focus();
        input.setSelectionRange(input.value.length, input.value.length);
      },
      watches: "metrics",
      keys: { s: ["smoothing on and off", () => change({ smooth: weight ? "" : "0.6" }, { replace: true })],
              x: ["next x axis", () => change({ x: X_WORDS[(X_WORDS.findIndex(([key]) => key === x) + 1) % 4][0] }, { replace: true })] },
      close: () => { sight.disconnect(); for (const card of charts) card.chart?.close(); },
      async refresh() {
        if (Object.keys(await api("glossary")).length !== known) return show(); // new metrics: a new page
        for (const card of charts) {
          if (card.chart?.isZoomed()) continue; // what is being looked at stays
          card.isFresh = false;
          if (card.inSight) draw(card);
        }
      },
    };
  },
};

async function draw(card) {
  card.isFresh = true;
  try {
    const data = await api("series", { keys: card.keys.join(","), x: card.context.x });
    if (!card.place.isConnected) return;
    card.chart?.close();
    card.place.replaceChildren();
    card.chart = card.draw(data);
  } catch (error) {
    card.place.replaceChildren(h("p", { class: "message" }, error.message));
  }
}

const cardOf = (title, tip, keys, context, more) => {
  const id = `tip-${title.replace(/\W/g, "_")}`;
  const place = h("div", { class: "chart" });
  const last = h("span", { class: "last" });
  const head = h("h3", { tabindex: 0, "aria-describedby": id }, title, h("span", { class: "tip", role: "tooltip", id }, tip));
  return { element: h("article", { class: "card", "data-key": title }, h("div", { class: "head" }, head, last), place), place, last, keys, context, ...more };
};

// The interval of an estimate, KEY_low to KEY_high, is a band behind its line.
function lineCard(key, row, context, { glossary, title = key }) {
  const hasBand = `${key}_low` in glossary && `${key}_high` in glossary;
  const [low, high] = row.healthy ?? [null, null];
  const range = row.healthy ? `healthy: ${[low !== null ? `at least ${low}` : "", high !== null ? `at most ${high}` : ""].filter(Boolean).join(" and ")}` : "no range that is healthy as such";
  const tip = [h("b", {}, key), row.unit ? ` in ${row.unit}` : "", h("br"), row.meaning, h("br"), row.formula ? [h("code", {}, row.formula), h("br")] : "", h("i", {}, range)];
  const card = cardOf(title, tip, hasBand ? [key, `${key}_low`, `${key}_high`] : [key], context, {});
  card.draw = (data) => {
    const tables = Object.fromEntries(context.visible.filter((label) => data[label]?.x.length).map((label) => [label, { x: data[label].x, y: data[label][key], step: data[label].step, low: data[label][`${key}_low`], high: data[label][`${key}_high`] }]));
    const ends = Object.values(tables).map((one) => one.y.findLast((value) => value !== null));
    card.last.replaceChildren(...ends.map((value) => {
      const isOut = row.healthy && value !== undefined && ((low !== null && value < low) || (high !== null && value > high));
      return h("span", { class: isOut ? "out" : "", title: isOut ? `outside: ${range}` : "last value" }, `${isOut ? "⚠ " : ""}${number(value)} `);
    }));
    if (!Object.keys(tables).length) return void card.place.append(h("p", { class: "message" }, "no values"));
    const onpoint = ([label, place]) => tables[label].step[place] > 0 && go("rollouts", { run: label, step: Math.round(tables[label].step[place]) });
    return lines(card.place, tables, { weight: context.weight, xLabel: context.x, healthy: row.healthy, colours: context.colours, onpoint });
  };
  return card;
}

// The time of a step and the outcomes of each term, one chart a run.
function stackedCards(keys, glossary, context) {
  const logged = (label) => keys.filter((key) => glossary[key].runs.includes(label));
  const phases = keys.filter((key) => /^time\/[a-z_]+$/.test(key) && !["time/step", "time/grade_max"].includes(key));
  const terms = [...new Set(keys.filter((key) => key.startsWith("outcome/")).map((key) => key.split("/").slice(1, -1).join("/")))];
  const phaseColours = Object.fromEntries(phases.map((key, place) => [key.split("/")[1], PALETTE[place % PALETTE.length]]));
  const cards = [];
  for (const label of context.visible) {
    const name = context.visible.length > 1 ? ` · ${label}` : "";
    for (const term of terms) {
      const mine = logged(label).filter((key) => key.startsWith(`outcome/${term}/`));
      if (!mine.length) continue;
      cards.push(stackCard(`Outcomes of ${term}${name}`, "Share of each outcome among the term's verdicts; the glossary below says what each means.", mine, label, context, OUTCOME_COLOURS, () => [0, 1]));
    }
    const mine = logged(label).filter((key) => phases.includes(key));
    if (mine.length) cards.push(stackCard(`Time of a step${name}`, "Seconds of the wall clock by phase; they add up to time/step.", mine, label, context, phaseColours));
  }
  return cards;
}

// What one looks for first: the reward, and what each eval set says, one chart each for all runs.
function headlineCards(keys, glossary, context) {
  const ofEval = (name) => keys.filter((key) => key.startsWith(`eval/${name}/`)).map((key) => key.slice(`eval/${name}/`.length));
  const names = [...new Set(keys.filter((key) => /^eval\/[^/]+\/pass@/.test(key)).map((key) => key.split("/")[1]))];
  const chosen = keys.includes("reward/mean") ? [["reward/mean", "Reward"]] : [];
  for (const name of names) {
    const measures = ofEval(name);
    const least = measures.filter((one) => /^pass@\d+$/.test(one)).sort((a, b) => a.slice(5) - b.slice(5))[0];
    for (const measure of [least, "greedy", "reward"].filter((one) => measures.includes(one))) chosen.push([`eval/${name}/${measure}`, `${name}: ${measure}`]);
  }
  return chosen.map(([key, title]) => lineCard(key, glossary[key], context, { glossary, title }));
}

function stackCard(title, tip, keys, label, context, colours, yRange) {
  const card = cardOf(title, [tip], keys, context, {});
  card.draw = (data) => {
    const all = data[label];
    const there = [...all.x.keys()].filter((at) => keys.some((key) => all[key][at] !== null)); // a file holds all lines
    const mine = Object.fromEntries(["x", "step", ...keys].map((key) => [key, there.map((at) => all[key][at])]));
    // what never happened has no band
    const shown = keys.filter((key) => mine[key].some((value) => value));
    if (!shown.length) return void card.place.append(h("p", { class: "message" }, "no values"));
    const layers = Object.fromEntries(shown.map((key) => [key.split("/").at(-1), mine[key]]));
    const onstep = (place) => mine.step[place] > 0 && go("rollouts", { run: label, step: Math.round(mine.step[place]) });
    return stacked(card.place, mine.x, layers, { xLabel: context.x, colours, yRange, onstep });
  };
  return card;
}
