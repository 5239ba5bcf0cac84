"use strict";
// Draws the charts of a comparison as SVG, and again whenever the reader chooses another x axis.
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.querySelector(".choice");
const W = 480, H = 260, LEFT = 54, RIGHT = 10, TOP = 8, BOTTOM = 26;
const BEGINNING = 0.05; // values of the first steps don't set the y range: they would flatten the rest

function element(name, attributes, parent) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  for (const [factor, letter] of [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (size >= factor) return +(value / factor).toPrecision(3) + letter;
  return size < 1e-2 ? value.toExponential(1) : String(+value.toPrecision(4));
}

// Round numbers that cover [low, high] in about `count` steps.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-9); i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++)
    for (const f of high / low > 1000 ? [1] : [1, 2, 5]) if (f * 10 ** p >= low && f * 10 ** p <= high) found.push(f * 10 ** p);
  return found;
}

// The points of a chart: for each run pairs of finite numbers.
function pointsOf(chart, axis, log) {
  return data.runs.map(run => {
    const x = run[chart.kind].x[axis] || [], y = run[chart.kind].y[chart.key] || [];
    return x.map((v, i) => [v, y[i]]).filter(([a, b]) => a !== null && b !== null && b !== undefined && (!log || a > 0));
  });
}

function draw(figure, chart, axis, log) {
  figure.querySelector("svg")?.remove();
  const svg = element("svg", { viewBox: `0 0 ${W} ${H}`, class: "plot", role: "img", "aria-label": `${chart.title} over ${data.axes[axis]}` });
  figure.append(svg);
  const runs = pointsOf(chart, axis, log), all = runs.flat();
  if (!all.length) return;
  const xs = all.map(p => p[0]), lowX = log ? xs.reduce((a, b) => Math.min(a, b)) : 0, highX = xs.reduce((a, b) => Math.max(a, b));
  const later = all.filter(p => p[0] >= lowX + BEGINNING * (highX - lowX)).map(p => p[1]);
  let low = later.reduce((a, b) => Math.min(a, b)), high = later.reduce((a, b) => Math.max(a, b));
  const margin = 0.05 * (high - low) || Math.abs(high) / 2 || 1;
  low -= margin; high += margin;
  const place = log && highX > lowX ? v => Math.log(v / lowX) / Math.log(highX / lowX) : v => (v - lowX) / (highX - lowX || 1);
  const X = v => LEFT + place(v) * (W - LEFT - RIGHT), Y = v => H - BOTTOM - (v - low) / (high - low) * (H - TOP - BOTTOM);
  const clip = `clip-${chart.kind}-${chart.key.replace(/\W/g, "-")}`;
  element("rect", { x: LEFT - 3, y: TOP, width: W - LEFT - RIGHT + 6, height: H - TOP - BOTTOM }, element("clipPath", { id: clip }, svg));
  for (const v of ticks(low, high, 6)) {
    element("line", { x1: LEFT, x2: W - RIGHT, y1: Y(v), y2: Y(v) }, svg);
    element("text", { x: LEFT - 6, y: Y(v) + 4, "text-anchor": "end" }, svg).textContent = short(v);
  }
  for (const v of log ? logTicks(lowX, highX) : ticks(lowX, highX, 5))
    element("text", { x: X(v), y: H - 8, "text-anchor": "middle" }, svg).textContent = short(v);
  const inside = element("g", { "clip-path": `url(#${clip})` }, svg);
  runs.forEach((points, i) => {
    const group = element("g", { class: `curve-${data.runs[i].colour}` }, inside);
    if (points.length > 1) element("path", { d: "M" + points.map(([x, y]) => `${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("L") }, group);
    if (chart.kind === "eval" || points.length === 1) for (const [x, y] of points) element("circle", { cx: X(x), cy: Y(y), r: 2.6 }, group);
    if (chart.key === "loss" || chart.key === "grad_norm")
      for (const x of data.runs[i].skipped[axis] || []) if (!log || x > 0) element("line", { class: "tick", x1: X(x), x2: X(x), y1: H - BOTTOM - 9, y2: H - BOTTOM }, group);
  });
  follow(figure, svg, runs, X);
}

// Under the pointer: each run's value at the nearest point.
function follow(figure, svg, runs, X) {
  const cross = element("line", { class: "cross", y1: TOP, y2: H - BOTTOM, visibility: "hidden" }, svg);
  const values = figure.querySelector(".values");
  svg.onpointermove = event => {
    const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) / box.width * W;
    cross.setAttribute("x1", at); cross.setAttribute("x2", at); cross.setAttribute("visibility", "visible");
    values.replaceChildren(...runs.flatMap((points, i) => {
      if (!points.length) return [];
      const nearest = points.reduce((a, b) => Math.abs(X(b[0]) - at) < Math.abs(X(a[0]) - at) ? b : a);
      const cell = document.createElement("b"), swatch = document.createElement("i");
      swatch.className = `swatch curve-${data.runs[i].colour}`;
      cell.append(swatch, +nearest[1].toPrecision(5) + " at " + short(nearest[0]));
      return [cell];
    }));
  };
  svg.onpointerleave = () => { cross.setAttribute("visibility", "hidden"); values.replaceChildren(); };
}

const figures = data.charts.map(chart => {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption"), values = document.createElement("span");
  values.className = "values";
  caption.append(chart.title, values);
  figure.append(caption);
  document.getElementById("charts").append(figure);
  return figure;
});
function redraw() {
  data.charts.forEach((chart, i) => draw(figures[i], chart, form.elements.axis.value, form.elements.log.checked));
}
form.addEventListener("change", redraw);
redraw();
