// Fills the page: figures by Vega-Lite, legends, sorting, filters, examples. Reads #data alone.
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
  return chart.rows.map(([series, seed, x, value]) => ({ series: chart.series[series], seed, x, value }));
}

// Of few whole numbers each has its tick, and none stands between two.
function fewTicks(chart) {
  const places = [...new Set(chart.rows.map((row) => row[2]))];
  const [low, high] = [Math.min(...places), Math.max(...places)];
  return high - low > 12 ? {} : { values: Array.from({ length: high - low + 1 }, (_, i) => low + i) };
}

function specification(chart, width) {
  const ink = getComputedStyle(document.body).color;
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
    scale: isLog ? { type: "log" } : chart.is_log ? { zero: false } : { domain: [0, 1] } };
  const tooltip = [{ field: "series", title: chart.kind === "strip" && chart.x === "model" ? "model" : "series" },
    { field: "seed" }, { field: "x", title: chart.x }, { field: "value", title }];
  const isLine = chart.kind === "line";
  const wholes = chart.is_whole_x ? { tickMinStep: 1, format: "~s", ...fewTicks(chart) } : {};
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
    config: { background: "transparent", view: { stroke: null }, font: "system-ui, sans-serif",
      axis: { labelColor: ink, titleColor: ink, domainColor: ink, tickColor: ink, gridOpacity: 0.25, labelFontSize: 12, titleFontSize: 12 } },
  };
}

async function draw(figure) {
  const chart = charts.get(figure.dataset.chart);
  const place = figure.querySelector(".plot");
  const room = Math.max(180, figure.clientWidth - (chart.kind === "strip" ? 190 : 90));
  const result = await window.vegaEmbed(place, specification(chart, room), {
    actions: false, mode: "vega-lite", renderer: chart.rows.length > 1500 ? "canvas" : "svg",
    tooltip: { theme: "light" } });
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

function mark(index) {
  const line = `<line x1="0" x2="26" y1="6" y2="6" style="stroke: var(${at(COLOURS, index)})" stroke-width="3" stroke-dasharray="${dash(index).join(" ")}"/>`;
  return `<svg width="28" height="12" aria-hidden="true">${line}</svg> `;
}

function legend(figure, chart) {
  const place = figure.querySelector(".legend");
  figure.hidden_ = [];
  for (const index of [...new Set(chart.rows.map((row) => row[0]))].sort((a, b) => a - b)) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.innerHTML = mark(index) + escaped(chart.series[index]);
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

function csv(chart) {
  const lines = [["series", "seed", chart.x, chart.metric], ...records(chart).map((row) => [row.series, row.seed, row.x, row.value])];
  return lines.map((line) => line.map(quoted).join(",") + "\n").join("");
}

function links(figure, chart) {
  const place = figure.querySelector(".links");
  const link = document.createElement("a");
  link.textContent = "Data (CSV)";
  link.setAttribute("aria-label", `Data of ${chart.title} as CSV`);
  link.download = `${chart.name}.csv`;
  link.href = "data:text/csv;charset=utf-8,";
  // The text is made when it is asked for: the file would otherwise hold every number twice.
  link.addEventListener("click", () => { link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(csv(chart))}`; });
  const details = document.createElement("details");
  details.innerHTML = "<summary>Numbers</summary>";
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("table")) return;
    const rows = records(chart).slice(0, 2000);
    const cells = rows.map((row) => `<tr><th scope="row">${escaped(row.series)}</th><td>${row.seed}</td><td>${escaped(row.x)}</td><td>${row.value}</td></tr>`);
    details.insertAdjacentHTML("beforeend",
      `<div class="scroll" tabindex="0" role="region" aria-label="Numbers of ${escaped(chart.title)}"><table><thead><tr><th>series</th><th>seed</th><th>${escaped(chart.x)}</th><th>${escaped(chart.metric)}</th></tr></thead><tbody>${cells.join("")}</tbody></table></div>`);
  });
  place.append(link, " · source: " + chart.source + " ", details);
}

// --- tables -------------------------------------------------------------------------------

const UNITS = { s: 1, min: 60, h: 3600 };
function sortKey(text) {
  const parts = [...text.matchAll(/(\d+) (h|min|s)\b/g)];
  if (parts.length) return parts.reduce((sum, [, count, unit]) => sum + count * UNITS[unit], 0);
  const number = /^[^\d-]?(-?[\d,]*\.?\d+(e[-+]?\d+)?)/i.exec(text);
  return number ? Number(number[1].replaceAll(",", "")) : null;
}

function compare(a, b) {
  const [x, y] = [sortKey(a), sortKey(b)];
  if (x !== null && y !== null) return x - y;
  return a.localeCompare(b, undefined, { numeric: true });
}

function sortable(box) {
  const body = box.querySelector("tbody");
  const heads = [...box.querySelectorAll("thead th")];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const text = (row) => row.cells[column].textContent.trim();
    // What has no value stays last in both directions.
    body.append(...[...body.rows].sort((a, b) => {
      const empty = (text(a) === "–") - (text(b) === "–");
      return empty || (ascending ? 1 : -1) * compare(text(a), text(b));
    }));
  }));
  box.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

// --- examples -----------------------------------------------------------------------------

function showExamples() {
  const body = document.getElementById("examples-rows");
  if (!body) return;
  const selects = [...document.querySelectorAll("#examples select")];
  const more = document.getElementById("examples-more");
  const word = (row, field) => (field === "correct" ? (row.correct ? "right" : "wrong") : row[field]);
  let limit = 30;
  for (const select of selects) {
    const values = [...new Set(data.examples.map((row) => word(row, select.dataset.field)))];
    for (const value of values) if (value !== "") select.append(new Option(value, value));
    select.addEventListener("change", () => { limit = 30; render(); });
  }
  more.addEventListener("click", () => { limit += 100; render(); });
  function render() {
    const found = data.examples.filter((row) => selects.every((s) => !s.value || word(row, s.dataset.field) === s.value));
    body.innerHTML = found.slice(0, limit).map((row) =>
      `<tr>${["model", "split", "category", "source", "target", "prediction"].map((f) => `<td>${escaped(row[f])}</td>`).join("")}<td>${row.correct ? "right" : escaped(row.wrong)}</td></tr>`).join("");
    document.getElementById("examples-count").textContent = `${Math.min(limit, found.length)} of ${found.length} examples`;
    more.hidden = found.length <= limit;
  }
  render();
}

// --- the page -----------------------------------------------------------------------------

const figures = [...document.querySelectorAll("figure[data-chart]")];
for (const figure of figures) {
  const chart = charts.get(figure.dataset.chart);
  legend(figure, chart);
  links(figure, chart);
}
document.querySelectorAll(".table").forEach(sortable);
showExamples();
document.getElementById("contents").innerHTML = [...document.querySelectorAll("main > section")]
  .map((part) => `<a href="#${part.id}">${part.querySelector("h2").innerHTML}</a>`).join("");
document.documentElement.dataset.open = "true";

async function drawAll() {
  for (const figure of figures) {
    await draw(figure);
    await new Promise((done) => setTimeout(done)); // lets the reader scroll in between
  }
  document.documentElement.dataset.ready = "true";
}

// Of a sweep that is watched, the server tells what is on its disk now.
async function follow() {
  const answer = await fetch("live.json").catch(() => null);
  const state = document.getElementById("progress-state");
  if (!answer?.ok) {
    state.textContent = "The server does not answer; the page shows what was there before.";
    return;
  }
  const live = await answer.json();
  if (live.charts.map((chart) => chart.name).join() !== [...charts.keys()].join()) return location.reload();
  document.getElementById("progress-body").innerHTML = live.progress;
  state.textContent = "";
  for (const chart of live.charts) {
    const before = charts.get(chart.name);
    const isChanged = JSON.stringify(before.rows) !== JSON.stringify(chart.rows);
    Object.assign(before, chart);
    if (isChanged) await draw(figures.find((figure) => figure.dataset.chart === chart.name));
  }
}
if (data.follow) setInterval(() => document.documentElement.dataset.ready && follow(), data.follow * 1000);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("beforeprint", () => document.querySelectorAll("main details:not(.links details)").forEach((d) => { d.open = true; }));
drawAll();
