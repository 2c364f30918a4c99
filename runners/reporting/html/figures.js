// Figures by Vega-Lite: how they are drawn, their hover boxes, legends, numbers and downloads.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const charts = new Map(data.charts.map((chart) => [chart.name, chart]));

// Okabe and Ito's colours, which colour-blind readers can tell apart, without their yellow, that
// white paper swallows; lighter on dark paper. Shapes and dashes repeat what they say, and go on
// where they end. The style sheet has their values.
const COLOURS = ["--c0", "--c1", "--c2", "--c3", "--c4", "--c5"];
const colourOf = (index) => getComputedStyle(document.documentElement).getPropertyValue(at(COLOURS, index)).trim();
const SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"];
const DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]];
const at = (list, index) => list[index % list.length];
const dash = (index) => at(DASHES, Math.floor(index / COLOURS.length));
const escaped = (value) => String(value).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

// --- figures ------------------------------------------------------------------------------

function records(chart) {
  return chart.rows.map(([series, seed, x, ...values]) => ({ series: chart.series[series], seed, x,
    ...(chart.kind === "map" ? { y: values[0] } : {}), value: values.at(-1) }));
}

// Of few whole numbers each has its tick, and none stands between two.
function fewTicks(chart) {
  const places = [...new Set(chart.rows.map((row) => row[2]))];
  const [low, high] = [Math.min(...places), Math.max(...places)];
  return high - low > 12 ? {} : { values: Array.from({ length: high - low + 1 }, (_, i) => low + i) };
}

function specification(chart, width) {
  const used = [...new Set(chart.rows.map((row) => row[0]))].sort((a, b) => a - b);
  const names = used.map((index) => chart.series[index]);
  const colour = { field: "series", type: "nominal", legend: null,
    scale: { domain: names, range: used.map(colourOf) } };
  const shape = { field: "series", type: "nominal", legend: null,
    scale: { domain: names, range: used.map((index) => at(SHAPES, index)) } };
  const strokeDash = { field: "series", type: "nominal", legend: null,
    scale: { domain: names, range: used.map(dash) } };
  const title = chart.metric.replaceAll("_", " ");
  // A logarithm has no place for values that are not positive.
  const isLog = chart.is_log && chart.rows.every((row) => row[3] > 0);
  const values = { field: "value", type: "quantitative", title,
    scale: isLog ? { type: "log" } : chart.is_log ? { zero: false } : chart.is_free ? { zero: true } : { domain: [0, 1] } };
  const tooltip = [{ field: "series", title: chart.kind === "strip" && chart.x === "model" ? "model" : "series" },
    { field: "seed" }, { field: "x", title: chart.x }, { field: "value", title }];
  const isLine = chart.kind === "line";
  const isLarge = isLine && chart.rows.some((row) => row[2] >= 1e5);
  const wholes = chart.is_whole_x ? { tickMinStep: 1, format: isLarge ? "~s" : ",d", ...fewTicks(chart) } : {};
  const isLogX = chart.is_log_x && chart.rows.every((row) => row[2] > 0);
  const x = isLine
    ? { field: "x", type: "quantitative", title: chart.x, axis: wholes,
        scale: isLogX ? { type: "log", base: 2 } : { zero: false, nice: false, padding: 6 } }
    : values;
  const y = isLine ? values
    : { field: "x", type: "nominal", title: null, sort: null, axis: { labelLimit: 140 } };
  const points = { mark: { type: "point", filled: true, size: isLine ? 28 : 60, opacity: 0.75 },
    encoding: { x, y, color: colour, shape, tooltip,
      ...(isLine || chart.x === "model" ? {} : { yOffset: { field: "series", type: "nominal" } }) } };
  const line = { mark: { type: "line", strokeWidth: 2, interpolate: "linear" },
    encoding: { x, y: { ...values, aggregate: "mean" }, color: colour, strokeDash } };
  // Every seed has a line of its own where points would hide one another.
  const seeds = { mark: { type: "line", strokeWidth: 1, opacity: 0.7, tooltip: false },
    encoding: { x, y, color: colour, strokeDash, detail: { field: "seed" } } };
  const many = chart.rows.length > 1500;
  const kinds = new Set(chart.rows.map((row) => row[2])).size;
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    description: `${chart.title}. ${title} by ${chart.x}. The numbers are in the table below the figure.`,
    width, height: isLine ? 230 : { step: Math.max(16, Math.min(44, 600 / kinds)), for: "position" },
    data: { name: "rows", values: records(chart) },
    params: [{ name: "hidden", value: [] }],
    transform: [{ filter: "indexof(hidden, datum.series) < 0" }],
    layer: !isLine ? [points] : chart.section === "learning" ? [seeds, many ? { ...points, mark: { ...points.mark, size: 10, opacity: 0.3 } } : points] : [line, points],
    config: look(),
  };
}

function look() {
  const ink = getComputedStyle(document.body).color;
  const inked = { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12 };
  return { background: "transparent", view: { stroke: null }, font: "system-ui, sans-serif", legend: inked,
    axis: { ...inked, domainColor: ink, tickColor: ink, gridColor: ink, gridOpacity: 0.12 } };
}

// Rectangles over two columns: the lighter, the larger; a square of few cells stays small.
function mapSpecification(chart, width) {
  const count = (column) => new Set(chart.rows.map((row) => row[column])).size;
  const name = (text) => text.replaceAll("_", " ");
  const axis = { labelOverlap: true, labelAngle: 0, grid: false };
  return {
    $schema: "https://vega.github.io/schema/vega-lite/v6.json",
    description: `${chart.title}. ${name(chart.metric)} by ${chart.x} and ${chart.y}. The numbers are in the table below the figure.`,
    width: Math.min(width - 20, 60 * count(2)), height: Math.min(300, Math.max(60, 26 * count(3))),
    data: { name: "rows", values: records(chart) },
    params: [{ name: "hidden", value: [] }],
    mark: "rect",
    encoding: {
      x: { field: "x", type: "ordinal", sort: null, title: name(chart.x), axis },
      y: { field: "y", type: "ordinal", sort: null, title: name(chart.y), axis },
      color: { field: "value", type: "quantitative", scale: { scheme: "viridis", domainMin: 0 }, legend: { title: null, gradientLength: 120 } },
      tooltip: [{ field: "series", title: "model" }, { field: "seed" }, { field: "x", title: name(chart.x) },
        { field: "y", title: name(chart.y) }, { field: "value", title: name(chart.metric) }] },
    config: look(),
  };
}

// One box for all figures, which stays within the window however narrow that is.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true"); // the tables of numbers say the same
document.body.append(tip);

function hover(handler, event, item, value) {
  tip.hidden = value === null || value === undefined || value === "";
  if (tip.hidden) return;
  tip.innerHTML = `<table>${Object.entries(value).map(([name, cell]) => `<tr><th>${escaped(name)}</th><td>${escaped(cell)}</td></tr>`).join("")}</table>`;
  const { clientWidth: width, clientHeight: height } = document.documentElement;
  const point = event.touches?.[0] ?? event;
  const { offsetWidth, offsetHeight } = tip;
  const below = point.clientY + 16 + offsetHeight <= height;
  tip.style.left = `${Math.max(4, Math.min(point.clientX + 12, width - offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, below ? point.clientY + 16 : point.clientY - offsetHeight - 10)}px`;
}
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

async function draw(figure) {
  const chart = figure.chart;
  const place = figure.querySelector(".plot");
  const room = Math.max(180, figure.clientWidth - (chart.kind === "line" ? 90 : 190));
  const specify = chart.kind === "map" ? mapSpecification : specification;
  const result = await window.vegaEmbed(place, specify(chart, room), {
    actions: false, mode: "vega-lite", renderer: chart.rows.length > 1500 ? "canvas" : "svg", tooltip: hover });
  figure.view = result.view;
  const drawn = place.querySelector("svg, canvas");
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", `${chart.title}: ${chart.metric} by ${chart.x}; numbers in the table below`);
  for (const part of drawn.querySelectorAll("[aria-roledescription], [role]")) {
    for (const name of ["role", "aria-roledescription", "aria-label"]) part.removeAttribute(name);
  }
  for (const name of ["role", "aria-roledescription", "aria-label"]) place.removeAttribute(name);
  figure.dataset.drawn = "true";
  if (figure.hidden_.length) await figure.view.signal("hidden", figure.hidden_).runAsync();
}

// Symbols of the legend, as Vega draws them on the figure: paths around (0, 0).
const PATHS = ["M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "M-4 -4h8v8h-8z", "M0 -4.5l5 8h-10z", "M0 -5l5 5l-5 5l-5 -5z",
  "M-1.5 -5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z", "M0 4.5l5 -8h-10z"];

function mark(index, isLine) {
  const colour = `var(${at(COLOURS, index)})`;
  const line = `<line x1="0" x2="26" y1="7" y2="7" style="stroke: ${colour}" stroke-width="2" stroke-dasharray="${dash(index).join(" ")}"/>`;
  const symbol = `<path transform="translate(13 7)" d="${at(PATHS, index)}" style="fill: ${colour}"/>`;
  return `<svg width="28" height="14" aria-hidden="true">${isLine ? line : ""}${symbol}</svg> `;
}

function legend(figure) {
  const chart = figure.chart;
  const place = figure.querySelector(".legend");
  place.replaceChildren();
  figure.hidden_ = [];
  if (chart.kind === "map") return;
  for (const index of [...new Set(chart.rows.map((row) => row[0]))].sort((a, b) => a - b)) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.innerHTML = mark(index, chart.kind === "line") + escaped(chart.series[index]);
    button.addEventListener("click", () => {
      const name = chart.series[index];
      const isShown = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!isShown));
      figure.hidden_ = isShown ? [...figure.hidden_, name] : figure.hidden_.filter((other) => other !== name);
      figure.view?.signal("hidden", figure.hidden_).run();
    });
    place.append(button);
  }
}

const quoted = (value) => (/[",\n\r]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));

const asCsv = (lines) => lines.map((line) => line.map((cell) => quoted(cell ?? "")).join(",") + "\n").join("");
const columns = (chart) => ["series", "seed", chart.x, ...(chart.kind === "map" ? [chart.y] : []), chart.metric];
const csv = (chart) => chart.csv?.() ?? asCsv([columns(chart), ...records(chart).map(Object.values)]);

function links(figure) {
  const { name, title, source } = figure.chart;
  const place = figure.querySelector(".links");
  const link = document.createElement("a");
  link.textContent = "Data (CSV)";
  link.setAttribute("aria-label", `Data of ${title} as CSV`);
  link.download = `${name}.csv`;
  link.href = "data:text/csv;charset=utf-8,";
  // The text is made when it is asked for: the file would otherwise hold every number twice.
  link.addEventListener("click", () => { link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(csv(figure.chart))}`; });
  const details = document.createElement("details");
  details.innerHTML = "<summary>Numbers</summary>";
  details.addEventListener("toggle", () => details.open && numbers(figure));
  place.append(link, ` · source: ${source} · `, details);
}

const MOST_NUMBERS = 2000;

// Fills the table of the numbers that a figure shows, where it is open.
function numbers(figure) {
  const details = figure.querySelector(".links details");
  details.querySelectorAll("div, p").forEach((old) => old.remove());
  if (!details.open) return;
  const chart = figure.chart;
  const rows = records(chart).slice(0, MOST_NUMBERS).map(Object.values)
    .map(([first, ...others]) => `<tr><th scope="row">${escaped(first)}</th>${others.map((cell) => `<td>${escaped(cell)}</td>`).join("")}</tr>`);
  const head = columns(chart).map((name) => `<th scope="col">${escaped(name)}</th>`).join("");
  const rest = chart.rows.length > MOST_NUMBERS ? `<p>The first ${MOST_NUMBERS} of ${chart.rows.length}; the CSV has all.</p>` : "";
  details.insertAdjacentHTML("beforeend",
    `<div class="scroll" tabindex="0" role="region" aria-label="Numbers of ${escaped(chart.title)}"><table><thead><tr>${head}</tr></thead><tbody>${rows.join("")}</tbody></table></div>${rest}`);
}
