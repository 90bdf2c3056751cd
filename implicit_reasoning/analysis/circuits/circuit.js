"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("circuit-data").textContent);
  const lines = [...document.querySelectorAll(".circuit .edge")];
  const controls = ["step", "least", "group", "donor"].map(byId);
  const [step, least, group, donor] = controls;
  const most = 15; // rows of the table
  const format = (x) => x.toLocaleString("en-US");

  const cell = (row, text, left) => {
    const td = row.insertCell();
    td.textContent = text;
    if (left) td.className = "left mono";
  };

  // The first checkpoint at which the edge has half of its present effect, with the same sign.
  const halfAt = (series, now, index) =>
    data.steps[series.findIndex((values) => values[index] !== null && values[index] / now >= 0.5)];

  const draw = () => {
    const at = Number(step.value), g = group.value, d = donor.value;
    const series = data.effect[g][d], values = series[at];
    const shown = (x) => x !== null && Math.abs(x) >= Number(least.value);
    byId("step-text").textContent = `step ${format(data.steps[at])}`;
    step.setAttribute("aria-valuetext", `step ${data.steps[at]}`);
    byId("least-text").textContent = Number(least.value).toFixed(2);
    lines.forEach((line, index) => {
      const x = values[index];
      line.style.strokeWidth = shown(x) ? 0.7 + 8 * Math.min(Math.abs(x), 1) : 0;
      line.classList.toggle("away", x < 0);
    });
    const order = values.map((x, index) => index).filter((index) => shown(values[index]));
    order.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
    const rows = byId("rows");
    rows.replaceChildren();
    for (const index of order.slice(0, most)) {
      const row = rows.insertRow(), low = data.low[g][d][at][index], high = data.high[g][d][at][index];
      cell(row, data.names[index], true);
      cell(row, values[index].toFixed(2));
      cell(row, low === null ? "" : `${low.toFixed(2)} to ${high.toFixed(2)}`);
      cell(row, format(halfAt(series, values[index], index)));
    }
    byId("caption").textContent =
      `Step ${format(data.steps[at])}: ${order.length} edges have an effect of at least ` +
      `${Number(least.value).toFixed(2)}` + (order.length > most ? `; the first ${most} are listed.` : ".");
  };

  controls.forEach((control) => control.addEventListener("input", draw));
  draw();
})();
