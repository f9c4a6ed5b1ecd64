/** Charts of a cast's timeline, drawn by uPlot, with a summary in text and a table. */

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { fill, h, setText } from "./dom.js";
import { formatDuration, formatLoss, formatPercent, formatRate } from "./format.js";
import { inNextFrame } from "./render_queue.js";
import { theme } from "./theme.js";

const HEIGHT = 190;
const TABLE_ROWS = 30;
/** Steps of an axis in bits per second: every tick is exactly the number of its label. */
const BIT_STEPS = Array.from({ length: 36 }, (_, index) => [1, 2, 5][index % 3] * 10 ** Math.floor(index / 3));

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {string} colour name of a CSS variable
 * @property {(point: any) => number} value
 * @property {(value: number) => string} format
 * @property {number[]} [dash] lines differ by more than colour
 * @property {string} [scale]
 */

/**
 * @typedef {object} ChartOptions
 * @property {string} title
 * @property {Line[]} lines
 * @property {(value: number) => string} axis
 * @property {number[]} [steps] of the left axis
 * @property {(value: number) => string} [rightAxis] of lines with scale "right"
 * @property {number} [most] maximum of the left axis
 * @property {number} [least] lowest maximum of the left axis: noise around zero must not fill the chart
 * @property {(points: any[]) => string} summary
 */

/** A chart with its summary and table. */
class Chart {
  /** @param {ChartOptions} options @param {AbortSignal} signal */
  constructor(options, signal) {
    this.options = options;
    /** @type {any[]} */
    this.points = [];
    /** @type {any} */
    this.plot = null;
    this.width = 0;
    const id = `chart-${options.title.toLowerCase().replace(/[^a-z]+/g, "-")}`;
    this.canvas = h("div", { class: "chart-canvas", role: "img", "aria-labelledby": `${id} ${id}-summary` });
    this.summary = h("p", { class: "chart-summary muted", id: `${id}-summary` }, "No data yet.");
    this.table = h("div");
    this.details = h("details", { class: "chart-table" }, h("summary", {}, "Show as table"), this.table);
    this.details.addEventListener("toggle", () => this.#drawTable());
    this.legend = h("ul", { class: "chart-legend", role: "list", "aria-hidden": "true" }, options.lines.map((line) =>
      h("li", { "data-colour": line.colour, "data-dash": line.dash ? "true" : null }, line.label)));
    this.element = h("figure", { class: "chart" },
      h("figcaption", {}, h("h3", { id }, options.title), this.legend), this.canvas, this.summary, this.details);
    this.observer = new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      inNextFrame(this, () => this.#draw());
    });
    this.observer.observe(this.canvas);
    theme.subscribe(() => {
      this.plot?.destroy();
      this.plot = null;
      inNextFrame(this, () => this.#draw());
    }, signal);
    signal.addEventListener("abort", () => {
      this.observer.disconnect();
      this.plot?.destroy();
      this.plot = null;
    }, { once: true });
  }

  /** @param {any[]} points */
  update(points) {
    this.points = points;
    inNextFrame(this, () => this.#draw());
  }

  #draw() {
    if (!this.canvas.isConnected || !this.width || !this.points.length) return;
    const data = [this.points.map((point) => point.at_s), ...this.options.lines.map((line) => this.points.map(line.value))];
    if (!this.plot) this.plot = new uPlot(this.#plotOptions(), data, this.canvas);
    else {
      if (this.plot.width !== this.width) this.plot.setSize({ width: this.width, height: HEIGHT });
      this.plot.setData(data);
    }
    setText(this.summary, this.options.summary(this.points));
    if (this.details.open) this.#drawTable();
  }

  #plotOptions() {
    const style = getComputedStyle(document.documentElement);
    const colour = (/** @type {string} */ name) => style.getPropertyValue(`--${name}`).trim();
    const text = colour("text-muted");
    const grid = { stroke: colour("border"), width: 1 };
    const font = `12px ${style.fontFamily}`;
    const { lines, axis, steps, rightAxis, most, least = 1e-9 } = this.options;
    const top = (/** @type {number} */ high) => most ?? Math.max(high * 1.1, least);
    const axes = [
      { stroke: text, grid: { show: false }, ticks: { show: false }, font, size: 30, values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map(axisTime) },
      { stroke: text, grid, ticks: { show: false }, font, size: 74, ...(steps && { incrs: steps }), values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map(axis) },
    ];
    /** @type {Record<string, any>} */
    const scales = { x: { time: false }, y: { range: (/** @type {any} */ _, /** @type {number} */ _low, /** @type {number} */ high) => [0, top(high)] } };
    if (rightAxis) {
      axes.push(/** @type {any} */ ({ scale: "right", side: 1, stroke: text, grid: { show: false }, ticks: { show: false }, font, size: 40, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map(rightAxis) }));
      scales.right = { range: (/** @type {any} */ _, /** @type {number} */ _low, /** @type {number} */ high) => [0, Math.max(1, high)] };
    }
    return {
      width: this.width, height: HEIGHT, legend: { show: false }, axes, scales,
      cursor: { drag: { x: false, y: false }, points: { size: 7 } },
      padding: [10, 12, 0, 0],
      hooks: { setCursor: [(/** @type {any} */ plot) => this.#showPoint(plot.cursor.idx)] },
      series: [{}, ...lines.map((line) => ({
        label: line.label, scale: line.scale ?? "y", stroke: colour(line.colour), width: 2, dash: line.dash,
        fill: line.dash ? undefined : `${colour(line.colour)}22`, points: { show: false },
      }))],
    };
  }

  /** @param {number | null | undefined} index of the point under the pointer, whose values the legend shows */
  #showPoint(index) {
    this.options.lines.forEach((line, place) => {
      const point = index === null || index === undefined ? null : this.points[index];
      setText(this.legend.children[place], point ? `${line.label}: ${line.format(line.value(point))} at ${formatDuration(point.at_s)}` : line.label);
    });
  }

  #drawTable() {
    if (!this.details.open) return;
    const step = Math.max(1, Math.ceil(this.points.length / TABLE_ROWS));
    const rows = this.points.filter((_, index) => index % step === 0 || index === this.points.length - 1);
    fill(this.table, h("div", { class: "table-scroll", tabindex: 0, role: "region", "aria-label": `${this.options.title}, as table` }, h("table", {},
      h("caption", { class: "visually-hidden" }, this.options.title),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "After"), this.options.lines.map((line) => h("th", { scope: "col", class: "number" }, line.label)))),
      h("tbody", {}, rows.map((point) => h("tr", {}, h("th", { scope: "row" }, formatDuration(point.at_s)), this.options.lines.map((line) => h("td", { class: "number" }, line.format(line.value(point)))))))))); 
  }
}

/** @param {number} bitsPerSecond */
const bitRate = (bitsPerSecond) => formatRate(bitsPerSecond / 8);

/** @param {number} seconds */
function axisTime(seconds) {
  if (seconds < 60) return `${seconds} s`;
  return formatDuration(seconds);
}

/** @param {any[]} points @param {(point: any) => number} value */
function highest(points, value) {
  return points.reduce((most, point) => Math.max(most, value(point)), 0);
}

/**
 * The three charts of a cast.
 * @param {AbortSignal} signal
 */
export function castCharts(signal) {
  const charts = [
    new Chart({
      title: "Rate and goodput",
      least: 1e6,
      axis: bitRate,
      steps: BIT_STEPS,
      lines: [
        { label: "Rate", colour: "chart-1", value: (point) => point.rate_bytes_per_s * 8, format: bitRate },
        { label: "Goodput", colour: "chart-2", value: (point) => point.goodput_bytes_per_s * 8, format: bitRate, dash: [7, 4] },
      ],
      summary: (points) => {
        const last = points[points.length - 1];
        return `Rate ${formatRate(last.rate_bytes_per_s)} at the end, at most ${formatRate(highest(points, (point) => point.rate_bytes_per_s))}. Goodput (average written by its machines) at most ${formatRate(highest(points, (point) => point.goodput_bytes_per_s))}.`;
      },
    }, signal),
    new Chart({
      title: "Loss and parity",
      least: 0.01,
      axis: (value) => formatLoss(value),
      lines: [
        { label: "Loss", colour: "chart-3", value: (point) => point.loss, format: formatLoss },
        { label: "Parity", colour: "chart-4", value: (point) => point.parity, format: formatLoss, dash: [7, 4] },
      ],
      summary: (points) => {
        const last = points[points.length - 1];
        return `Loss ${formatLoss(last.loss)} at the end, at most ${formatLoss(highest(points, (point) => point.loss))}. Parity at most ${formatLoss(highest(points, (point) => point.parity))} of the data.`;
      },
    }, signal),
    new Chart({
      title: "Progress",
      axis: (value) => `${Math.round(value * 100)}%`,
      most: 1,
      rightAxis: (value) => (Number.isInteger(value) ? String(value) : ""),
      lines: [
        { label: "Progress", colour: "chart-1", value: (point) => point.progress, format: (value) => formatPercent(value) },
        { label: "Machines complete", colour: "chart-5", value: (point) => point.complete_count, format: String, dash: [7, 4], scale: "right" },
      ],
      summary: (points) => {
        const last = points[points.length - 1];
        return `${formatPercent(last.progress)} after ${formatDuration(last.at_s)}; ${last.complete_count} complete, ${last.active_count} active.`;
      },
    }, signal),
  ];
  return {
    elements: charts.map((chart) => chart.element),
    update: (/** @type {any[]} */ points) => {
      for (const chart of charts) chart.update(points);
    },
  };
}
