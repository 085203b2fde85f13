"use strict";
// uPlot in the colours of the page: lines with a healthy range behind them, and stacked bands.

const PALETTE = ["#3b7dd8", "#d9822b", "#2f9e6e", "#b05bc4", "#c94f4f", "#7a7f3a", "#3aa6b9", "#8a6d5a", "#e07ba0", "#5b5bd6", "#a8b545", "#6b7785"];
const shade = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function smooth(values, weight) {
  // exponential moving average with the correction for its start (Adam, arXiv 1412.6980, section 3)
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null || value === undefined) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function axes(xLabel) {
  const one = { stroke: shade("--text"), grid: { stroke: shade("--line"), width: 1 }, ticks: { stroke: shade("--line") } };
  const short = (_, ticks) => ticks.map((tick) => (tick === null ? "" : Math.abs(tick) >= 1e4 || (tick !== 0 && Math.abs(tick) < 1e-3) ? tick.toExponential(0).replace("e+", "e") : String(Number(tick.toPrecision(4)))));
  return [{ ...one, values: short, label: xLabel, labelSize: 16, size: 36 }, { ...one, values: short, size: 52 }];
}

// A band over the whole width where the glossary says that values need no look.
function healthyRange(range) {
  return (plot) => {
    const [low, high] = [range[0] ?? (range[1] >= 0 && plot.data.slice(1).every((values) => values.every((value) => !(value < 0))) ? 0 : null), range[1]];
    const place = (value, otherwise) => (value === null ? otherwise : Math.min(plot.bbox.top + plot.bbox.height, Math.max(plot.bbox.top, plot.valToPos(value, "y", true))));
    const top = place(high, plot.bbox.top);
    const bottom = place(low, plot.bbox.top + plot.bbox.height);
    plot.ctx.fillStyle = shade("--healthy");
    plot.ctx.fillRect(plot.bbox.left, top, plot.bbox.width, Math.max(2, bottom - top)); // "at most 0" of what is never negative is a line
  };
}

// One flat line would leave uPlot without a height.
function flatRange(plot, low, high) {
  if (low === null) return [0, 1];
  if (low === high) return [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  return [low - (high - low) * 0.05, high + (high - low) * 0.05];
}

function plot(holder, { series, data, xLabel, range, bands, yRange, healthy, onstep, height = 190 }) {
  const options = {
    width: Math.max(200, holder.clientWidth), height, series, bands, axes: axes(xLabel),
    scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) }, y: { range: yRange ?? flatRange } },
    cursor: { points: { size: 6 }, drag: { x: true, y: false } },
    legend: { live: true },
    hooks: healthy ? { drawClear: [healthyRange(healthy)] } : {},
  };
  const made = new uPlot(options, data, holder);
  if (onstep) {
    made.over.classList.add("clickable");
    let pressed = null;
    made.over.addEventListener("mousedown", (event) => (pressed = event.clientX));
    made.over.addEventListener("mouseup", (event) => {
      if (pressed !== null && Math.abs(event.clientX - pressed) < 3 && made.cursor.idx !== null) onstep(made.cursor.idx);
      pressed = null;
    });
  }
  const watcher = new ResizeObserver(() => made.setSize({ width: Math.max(200, holder.clientWidth), height }));
  watcher.observe(holder);
  const isZoomed = () => made.scales.x.min > data[0][0] || made.scales.x.max < data[0].at(-1);
  return { plot: made, isZoomed, close: () => (watcher.disconnect(), made.destroy()) };
}

// tables: {label: {x: [...], y: [...]}} as lines over one axis; raw values stay faint behind smoothed ones.
function lines(holder, tables, { weight = 0, xLabel, healthy, colours = {}, onpoint, height, yRange }) {
  const labels = Object.keys(tables);
  const series = [{ label: xLabel }];
  const each = [];
  const bands = [];
  for (const [place, label] of labels.entries()) {
    const stroke = colours[label] ?? PALETTE[place % PALETTE.length];
    const { x, y, low, high } = tables[label];
    const points = { show: x.length < 40, size: 4 };
    const value = (_, shown) => number(shown);
    series.push({ label, stroke, width: 1.5, points, value, spanGaps: true });
    each.push([x, weight ? smooth(y, weight) : y]);
    if (low && high && !weight) {
      for (const edge of [high, low]) {
        series.push({ label: `${label} (interval)`, stroke: stroke + "50", width: 1, points: { show: false }, value, spanGaps: true });
        each.push([x, edge]);
      }
      bands.push({ series: [series.length - 2, series.length - 1], fill: stroke + "25" });
    }
    if (weight) {
      series.push({ label: `${label} (raw)`, stroke: stroke + "40", width: 1, points: { show: false }, value, spanGaps: true });
      each.push([x, y]);
    }
  }
  const data = uPlot.join(each);
  const onstep = onpoint && ((place) => onpoint(labels.map((label) => [label, tables[label].x.indexOf(data[0][place])]).find(([, found]) => found >= 0)));
  holder.classList.toggle("single", labels.length === 1);
  return plot(holder, { series, data, xLabel, bands, healthy, onstep, height, yRange });
}

// layers: {label: [...]} stacked from below, over x.
function stacked(holder, x, layers, { xLabel, colours = {}, yRange, onstep, height }) {
  const labels = Object.keys(layers);
  const sums = [];
  let below = x.map(() => 0);
  for (const label of labels) sums.push((below = below.map((sum, place) => sum + (layers[label][place] ?? 0))));
  const series = [{ label: xLabel }];
  const data = [x];
  for (const place of [...labels.keys()].reverse()) {
    const stroke = colours[labels[place]] ?? PALETTE[place % PALETTE.length];
    series.push({ label: labels[place], stroke, fill: stroke + "b0", width: 1, points: { show: x.length < 2 }, value: (_, __, ___, at) => (at === null ? "–" : number(layers[labels[place]][at])) });
    data.push(sums[place]);
  }
  const bands = labels.slice(1).map((_, place) => ({ series: [place + 1, place + 2] }));
  const top = (_, low, high) => [0, high || 1];
  return plot(holder, { series, data, xLabel, bands, yRange: yRange ?? top, onstep, height });
}

const OUTCOME_COLOURS = {
  correct: "#2f9e6e", partial: "#9bbf4d", wrong: "#c94f4f", no_answer: "#8b8f99", unreadable: "#8a6d5a",
  bad_format: "#d9822b", timeout: "#7b5bc4", crashed: "#c44f9b", bad_reference: "#2f4f9e", error: "#222222",
};
