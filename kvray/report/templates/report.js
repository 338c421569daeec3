// Draws the charts from the page's JSON, makes tables sortable and shows the ranking of one engine alone. Without it the page still carries every figure.
"use strict";

function drawCharts() {
  const source = document.getElementById("plots");
  if (!source || !window.Plotly) return;
  const plots = JSON.parse(source.textContent);
  for (const [name, plot] of Object.entries(plots)) {
    const place = document.getElementById("plot-" + name);
    if (matchMedia("(pointer: coarse)").matches) plot.layout.dragmode = false; // a finger scrolls the page
    Plotly.newPlot(place, plot.data, plot.layout, { responsive: true, displayModeBar: false, scrollZoom: false });
  }
  linkTimes([...document.querySelectorAll(".history .plot")]);
}

// Charts of a history show the same stretch of time.
function linkTimes(places) {
  let moving = false;
  for (const place of places) {
    place.on("plotly_relayout", (change) => {
      const changed = Object.entries(change).filter(([key]) => key.startsWith("xaxis."));
      if (moving || changed.length === 0) return;
      moving = true;
      const others = places.filter((other) => other !== place);
      Promise.all(others.map((other) => Plotly.relayout(other, Object.fromEntries(changed)))).finally(() => { moving = false; });
    });
  }
}

function sortValue(row, column) {
  const cell = row.cells[column];
  const number = Number(cell.dataset.v);
  return cell.dataset.v === "" ? null : Number.isNaN(number) ? cell.textContent.trim() : number;
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null); // missing values last, whichever way
  return sign * (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
}

function sortBy(table, header, column) {
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((a, b) => compare(sortValue(a, column), sortValue(b, column), sign));
  body.append(...rows);
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(table, header, column));
    header.append(button);
  });
}

function showEngine(name) {
  document.querySelectorAll("tr[data-engine]").forEach((row) => {
    row.hidden = name !== "" && row.dataset.engine !== name;
  });
}

document.documentElement.classList.add("js");
document.querySelectorAll(".filter input").forEach((input) => {
  input.addEventListener("change", () => showEngine(input.value));
});
document.querySelectorAll("table.sortable").forEach(makeSortable);
drawCharts();
window.addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
});
