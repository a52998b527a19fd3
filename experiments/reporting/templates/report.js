"use strict";
const plots = JSON.parse(document.getElementById("plots").textContent);
const divs = [...document.querySelectorAll("[data-chart]")];
const figure = (div) => plots[div.dataset.chart][div.dataset.panel];

// Colours of page and text come from the style sheet, so both themes are defined in one place.
function theme() {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: color("--grid"), linecolor: color("--soft"), zerolinecolor: color("--grid"), title: { standoff: 8 } };
  const clear = "rgba(0,0,0,0)";
  return { layout: {
    font: { color: color("--ink"), family: "system-ui, sans-serif" },
    modebar: { bgcolor: clear, color: color("--soft"), activecolor: color("--ink") },
    paper_bgcolor: clear, plot_bgcolor: clear, xaxis: axis, yaxis: axis,
  } };
}

// A finger on a plot scrolls the page.
const touch = matchMedia("(pointer: coarse)").matches ? { dragmode: false } : {};
const options = {
  responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  // The page must send nothing. Its policy does not cover windows that a script opens.
  showSendToCloud: false, plotlyServerURL: "",
  // Without hovering, Plotly would always show its buttons, over the data.
  ...(matchMedia("(hover: none)").matches ? { displayModeBar: false } : {}),
};

function draw(div, more = {}) {
  const { data, layout } = figure(div);
  return Plotly.react(div, data, { ...layout, ...touch, ...more, template: theme() }, options);
}
divs.forEach((div) => draw(div));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => divs.forEach((div) => draw(div)));

// Paper is light and narrower than a window.
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("print");
  for (const div of divs) {
    const columns = Math.min(div.closest(".panels").children.length, 2);
    draw(div, { width: 680 / columns - 8, height: columns > 1 ? 240 : 360 });
  }
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("print");
  divs.forEach((div) => draw(div));
});

// Exponential moving average as in TensorBoard: its start is corrected for missing values.
function smooth(values, weight) {
  let mean = 0, known = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    known = weight * known + (1 - weight);
    return mean / known;
  });
}

const controls = document.getElementById("controls");
if (controls) {
  const curves = divs.filter((div) => div.dataset.chart === "curves");
  const { range } = figure(curves[0]).layout.yaxis;
  const raw = new Map(curves.map((div) => [div, figure(div).data.map((trace) => trace.y)]));
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", ({ target }) => {
    const runs = (field) => [...field.querySelectorAll("[name=run]")];
    const field = target.closest("fieldset");
    if (target.name === "group") runs(field).forEach((box) => { box.checked = target.checked; });
    if (target.name === "run") field.querySelector("[name=group]").checked = runs(field).some((box) => box.checked);
    const chosen = new FormData(controls);
    const shown = { run: new Set(chosen.getAll("run")), line: new Set(chosen.getAll("line")) };
    for (const div of curves) {
      const { data, layout } = figure(div);
      data.forEach((trace, i) => {
        const weight = Number(chosen.get("smoothing")), isBand = trace.fill === "toself";
        trace.visible = shown.run.has(trace.meta.run) && shown.line.has(trace.meta.dash) && !(isBand && weight);
        trace.y = isBand ? raw.get(div)[i] : smooth(raw.get(div)[i], weight);
      });
      layout.yaxis = { ...layout.yaxis, ...(chosen.has("log") ? { type: "log", range: undefined } : { type: "linear", range }) };
      draw(div);
    }
  });
}

for (const table of document.querySelectorAll(".sortable")) {
  const headers = [...table.querySelectorAll("th")];
  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    headers.forEach((other) => other.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    // Rows without a value come last in both orders.
    const order = (a, b) => (value(a) === "") - (value(b) === "")
      || (ascending ? 1 : -1) * (value(a) - value(b) || value(a).localeCompare(value(b), "en", { numeric: true }));
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}

// A reload would undo the reader's choices, so the first choice stops reloading.
const reload = document.getElementById("reload");
if (reload) {
  setInterval(() => { if (reload.checked) location.reload(); }, 30000);
  document.querySelector("main").addEventListener("pointerdown", () => { reload.checked = false; });
  document.querySelector("main").addEventListener("keydown", () => { reload.checked = false; });
}
