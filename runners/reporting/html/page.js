// The page besides its figures: tables that sort and filter, examples, what is new of a sweep.

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

const figures = [...document.querySelectorAll("figure")];
for (const figure of figures) {
  figure.chart = charts.get(figure.dataset.chart) ?? analysed(figure);
  legend(figure);
  links(figure);
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
    if (!isChanged) continue;
    const figure = figures.find((each) => each.dataset.chart === chart.name);
    numbers(figure);
    await draw(figure);
  }
}
if (data.follow) setInterval(() => document.documentElement.dataset.ready && follow(), data.follow * 1000);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("beforeprint", () => document.querySelectorAll("main details:not(.links details)").forEach((d) => { d.open = true; }));
drawAll();
