// Figures of analyses: what each shows is chosen among its measures, models and groups.

const analyses = new Map(data.analyses.map((analysis) => [analysis.name, analysis]));
const NO_GROUP = "every model";
const unique = (list) => [...new Set(list)];

// Returns the choices of a figure, each a label and [value, words] pairs; the first is shown at first.
function choices(analysis) {
  const models = unique(analysis.rows.map((row) => row[0])).sort((a, b) => a - b);
  const groups = analysis.groups.map((words, group) => [group, words]);
  const named = models.map((model) => [model, analysis.models[model]]);
  const measures = analysis.measures.map((name, index) => [index, name.replaceAll("_", " ")]);
  if (analysis.kind === "maps") return [["Measure", measures], ["Model", named], ["Map", groups]];
  const across = models.length > 1 || groups.length < 2 ? groups.map(([group, words]) => [`group ${group}`, words || NO_GROUP]) : [];
  const within = groups.length > 1 ? named.map(([model, words]) => [`model ${model}`, `${words}: each ${analysis.group.replaceAll("_", " ")}`]) : [];
  return [["Measure", measures], ["Lines", [...across, ...within]]];
}

// Returns what a figure shows of an analysis, as one of the page's charts.
function viewOf(analysis, [first, second, third]) {
  const shared = { name: analysis.name, x: analysis.x, is_whole_x: analysis.is_whole_x, is_free: true,
    source: analysis.source, csv: () => analysisCsv(analysis) };
  if (analysis.kind === "maps") {
    const rows = analysis.rows.filter((row) => row[0] === Number(second) && row[1] === Number(third))
      .map(([model, , seed, x, y, ...values]) => [model, seed, x, y, values[first]]).filter((row) => row[4] !== null);
    return { ...shared, kind: "map", y: analysis.y, metric: analysis.measures[first], series: analysis.models, rows,
      title: [`${analysis.title}: ${analysis.models[second]}`, analysis.groups[third]].filter(Boolean).join(", ") };
  }
  const [column, wanted] = second.split(" ");
  const [kept, drawn] = column === "group" ? [1, 0] : [0, 1];
  const rows = analysis.rows.filter((row) => row[kept] === Number(wanted) && row[4 + Number(first)] !== null)
    .map((row) => [row[drawn], row[2], row[3], row[4 + Number(first)]]);
  const words = [analysis.models, analysis.groups];
  return { ...shared, kind: rows.some((row) => typeof row[2] === "string") ? "strip" : "line", rows,
    metric: analysis.measures[first], series: words[drawn], title: [analysis.title, words[kept][wanted]].filter(Boolean).join(": ") };
}

function analysisCsv(analysis) {
  const places = analysis.kind === "maps" ? [analysis.x, analysis.y] : [analysis.x];
  return asCsv([["model", "group", "seed", ...places, ...analysis.measures],
    ...analysis.rows.map(([model, group, ...others]) => [analysis.models[model], analysis.groups[group], ...others])]);
}

// Fills the choices of a figure, and returns what it shows at first.
function analysed(figure) {
  const analysis = analyses.get(figure.dataset.analysis);
  const place = figure.querySelector(".selects");
  const selects = choices(analysis).map(([label, options]) => {
    const select = document.createElement("select");
    for (const [value, words] of options) select.append(new Option(words, value));
    const box = document.createElement("label");
    box.append(`${label} `, select);
    box.hidden = options.length < 2 && (label === "Measure" || ["", NO_GROUP].includes(options[0][1]));
    place.append(box);
    return select;
  });
  // A model may lack what another has, such as a layer.
  const view = () => {
    const found = viewOf(analysis, selects.map((select) => select.value));
    figure.querySelector(".empty").hidden = found.rows.length > 0;
    return found;
  };
  for (const select of selects) {
    select.addEventListener("change", async () => {
      figure.chart = view();
      legend(figure);
      numbers(figure);
      await draw(figure);
    });
  }
  return view();
}
