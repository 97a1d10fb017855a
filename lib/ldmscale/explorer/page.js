"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);
const points = data.points, models = Object.fromEntries(data.models.map((m) => [m.name, m]));
const unique = (key) => [...new Set(points.map((p) => p[key]))].sort();
const choices = { axis: data.axes.map((a) => a.name), metric: data.metrics.map((m) => m.name),
  sampler: ["", ...unique("sampler")], weights: ["", ...unique("weights")] };
const state = { budget: NaN, axis: "", metric: "", sampler: "", weights: "" };
let pinned = null, replicates = new Map(), staircase = { key: "", x: [], y: [] };

// ---- the choice: as ldmscale.analysis.advice makes it ----------------------------------------------------------------

const axis = () => choices.axis.indexOf(state.axis), metric = () => choices.metric.indexOf(state.metric);

function competing() {
  const a = axis(), m = metric();
  return points.filter((p) => p.axes[a] !== null && p.tuning[m] !== null && p.held[m] !== null &&
    (!state.sampler || p.sampler === state.sampler) && (!state.weights || p.weights === state.weights));
}

// Negative, zero or positive as keys p and q compare.
function compare(p, q) {
  for (let i = 0; i < p.length; i++) if (p[i] !== q[i]) return p[i] - q[i];
  return 0;
}

// Settings within the budget, best on tuning prompts first. Sorting is stable: ties keep the points' own order.
function advise(rows, budget) {
  const a = axis(), m = metric(), sign = data.metrics[m].sign, series = new Map();
  for (const p of rows) {
    if (p.axes[a] > budget * (1 + 1e-6)) continue;
    const name = JSON.stringify([p.task, p.model, p.weights, p.sampler]);
    const key = [-sign * p.tuning[m], p.cost, p.cfg], best = series.get(name);
    if (!best || compare(key, best.key) < 0) series.set(name, { key, p });
  }
  const found = points.filter((p) => [...series.values()].some((s) => s.p === p));
  const loss = (p) => [-sign * p.tuning[m], p.params];
  return found.sort((p, q) => compare(loss(p), loss(q)));
}

// A point's bootstrap replicates of the metric, or null.
function repsOf(p) {
  const m = metric(), text = p.reps[m];
  if (text === null) return null;
  if (!replicates.has(text)) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    replicates.set(text, new Float32Array(bytes.buffer));
  }
  return replicates.get(text);
}

// The centred 95% interval of the difference p - q, or null (ldmscale.metrics.bootstrap.interval).
function difference(p, q) {
  const m = metric(), a = repsOf(p), b = repsOf(q);
  if (!a || !b || a.length !== b.length) return null;
  const reps = Array.from(a, (x, r) => x - b[r]).sort((x, y) => x - y);
  const mean = reps.reduce((x, y) => x + y, 0) / reps.length, value = p.held[m] - q.held[m];
  const quantile = (share) => {
    const at = share * (reps.length - 1), below = Math.floor(at);
    return reps[below] + (at - below) * (reps[Math.min(below + 1, reps.length - 1)] - reps[below]);
  };
  const low = value + quantile(0.025) - mean, high = value + quantile(0.975) - mean;
  const better = data.metrics[m].sign * low > 0;
  return { low, high, verdict: low <= 0 && high >= 0 ? "unsure" : better ? "better" : "worse" };
}

function short(value, digits = 4) {
  const size = Math.abs(value);
  if (size === 0 || (size >= 1e-4 && size < 1e6)) return String(Number(value.toPrecision(digits)));
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return `${Number(mantissa)}e${Number(exponent)}`;
}

const setting = (p) => `${p.model} with weights ${p.weights}, sampler ${p.sampler}, ${p.steps} steps, CFG ${short(p.cfg)}`;

function words(p) {
  const a = axis(), m = metric();
  const sure = p.low[m] === null ? "" : ` (95% interval ${short(p.low[m])} to ${short(p.high[m])})`;
  return `${setting(p)}. On held-out prompts: ${data.metrics[m].label} ${short(p.held[m])}${sure}. ` +
    `${data.axes[a].label}: ${short(p.axes[a])}.`;
}

function nothing(rows) {
  if (!rows.length) return "No setting has this sampler with these weights.";
  const a = axis();
  const least = rows.reduce((p, q) => (compare([q.axes[a], q.params], [p.axes[a], p.params]) < 0 ? q : p));
  return `nothing in the table is within a budget of ${short(state.budget)} on the axis ${state.axis}: ` +
    `the cheapest is ${short(least.axes[a])}, ${setting(least)}`;
}

// ---- the budget ------------------------------------------------------------------------------------------------------

function range() {
  const costs = points.map((p) => p.axes[axis()]).filter((x) => x !== null && x > 0);
  const low = Math.min(...costs), high = Math.max(...costs);
  return [low, Math.max(high, low * 1.01)];
}

// The slider's place as a budget of three digits, rounded up, so that its end holds everything.
function budgetAt(place) {
  const [low, high] = range(), exact = low * (high / low) ** (place / 1000);
  const unit = 10 ** (Math.floor(Math.log10(exact)) - 2);
  return Number((Math.ceil(exact / unit - 1e-9) * unit).toPrecision(3));
}

function placeOf(budget) {
  const [low, high] = range();
  return Math.round(Math.min(1, Math.max(0, Math.log(budget / low) / Math.log(high / low))) * 1000);
}

// ---- the address: #budget=6&axis=cost&metric=fid&sampler=ddim&weights=pretrain-1600 ----------------------------------

function read() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [name, known] of Object.entries(choices)) {
    const wanted = asked.get(name) === "norm_cost" && name === "axis" ? "cost" : asked.get(name);
    state[name] = known.includes(wanted) ? wanted : known[0];
  }
  const budget = Number(asked.get("budget"));
  state.budget = budget > 0 && Number.isFinite(budget) ? budget : budgetAt(500);
}

const link = () => {
  const told = Object.entries(state).filter(([, value]) => value !== "");
  return "#" + new URLSearchParams(told.map(([name, value]) => [name, String(value)]));
};

const remember = () => { if (location.hash !== link()) history.replaceState(null, "", link()); };

// ---- what is shown ---------------------------------------------------------------------------------------------------

function element(tag, text, within) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (within) within.append(made);
  return made;
}

// plotly.js reads labels as markup.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function show() {
  const rows = competing(), found = advise(rows, state.budget), a = axis(), m = metric();
  const { label, sign, features } = data.metrics[m];
  for (const name of Object.keys(choices)) by(name).value = state[name];
  if (document.activeElement !== by("budget") || Number(by("budget").value) !== state.budget) by("budget").value = state.budget;
  by("slider").value = placeOf(state.budget);
  by("question").textContent = `Best within a budget of ${short(state.budget)} (${data.axes[a].label})`;
  by("answer").textContent = found.length ? words(found[0]) : nothing(rows);
  by("command").textContent = "ldmscale advise " + Object.entries(state).filter(([, value]) => value !== "")
    .map(([name, value]) => `--${name} ${/^[\w.+-]+$/.test(value) ? value : `'${String(value).replace(/'/g, "'\\''")}'`}`).join(" ");
  by("caveat").textContent = `${label}${features ? ` on ${features}` : ""}, ${sign < 0 ? "lower" : "higher"} is better. ` +
    `Minus the best: 95% interval of the difference in ${label}, unsure where it holds zero. ${data.caveat}`;
  const head = by("head"), body = by("next");
  head.replaceChildren();
  body.replaceChildren();
  const titles = element("tr", "", head);
  for (const text of ["setting", "cost", label, "minus the best", ""]) element("th", text, titles);
  for (const p of found.slice(1, 9)) {
    const row = element("tr", "", body), told = difference(p, found[0]);
    const button = element("button", `${p.model}, ${p.sampler}, ${p.steps} steps, CFG ${short(p.cfg)}, ${p.weights}`, element("td", "", row));
    button.type = "button";
    button.disabled = !p.picture;
    button.addEventListener("click", () => pin(p));
    element("td", short(p.axes[a], 3), row);
    element("td", short(p.held[m]), row);
    element("td", told ? `${short(told.low, 3)} to ${short(told.high, 3)}` : short(p.held[m] - found[0].held[m], 3), row);
    element("td", told ? told.verdict : "no interval", row);
  }
  pictures(by("best"), found[0], "The best");
  pictures(by("other"), pinned === found[0] ? null : pinned, "To compare");
  legend(rows);
  plot(rows, found[0]);
}

function pictures(place, p, title) {
  place.replaceChildren();
  if (!p) return;
  element("h2", `${title}: ${setting(p)}`, place);
  if (!p.picture) return void element("p", "This page holds pictures of settings that some budget chooses; this is none.", place);
  const grid = element("div", "", place), count = data.gallery.length;
  grid.className = "grid";
  data.gallery.forEach((prompt, k) => {
    const figure = element("figure", "", grid), picture = element("div", "", figure);
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", prompt);
    picture.style.backgroundImage = `url("${p.picture}")`;
    picture.style.backgroundSize = `100% ${count * 100}%`;
    picture.style.backgroundPosition = `0 ${count > 1 ? (k / (count - 1)) * 100 : 0}%`;
    picture.className = data.side < 100 ? "small" : "";
    element("figcaption", prompt, figure).title = prompt;  // of which it shows six lines
  });
}

function pin(p) {
  pinned = p;
  show();
}

const SYMBOLS = [["circle", "\u25cf"], ["square", "\u25a0"], ["diamond", "\u25c6"], ["triangle-up", "\u25b2"],
  ["cross", "\u271a"], ["star", "\u2605"], ["triangle-down", "\u25bc"], ["hexagon", "\u2b22"], ["x", "\u2716"]];
const kindOf = (p) => (p.task === "t2i" ? p.sampler : `${p.sampler}, distilled (${p.task})`);
const plenty = (kind) => points.filter((p) => kindOf(p) === kind).length;
const kinds = [...new Set(points.map(kindOf))].sort((a, b) => plenty(b) - plenty(a));
const symbolOf = Object.fromEntries(kinds.map((kind, i) => [kind, SYMBOLS[i % SYMBOLS.length]]));

function legend(rows) {
  by("legend").replaceChildren();
  const entry = (sign, text, colour) => {
    const made = element("span", "", by("legend")), mark = element("b", sign, made);
    mark.style.color = colour;
    made.append(` ${text}`);
  };
  for (const model of data.models) if (rows.some((p) => p.model === model.name)) entry("\u25a0", model.label, model.colour);
  for (const kind of kinds) if (rows.some((p) => kindOf(p) === kind)) entry(symbolOf[kind][1], kind, "#777");
}

function stairs(rows) {
  const key = JSON.stringify([state.axis, state.metric, state.sampler, state.weights]), a = axis(), m = metric();
  if (staircase.key === key) return staircase;
  staircase = { key, x: [], y: [] };
  for (const budget of [...new Set(rows.map((p) => p.axes[a]))].sort((x, y) => x - y)) {
    staircase.x.push(budget);
    staircase.y.push(advise(rows, budget)[0].held[m]);
  }
  return staircase;
}

function plot(rows, best) {
  const a = axis(), m = metric(), { label, sign } = data.metrics[m], steps = stairs(rows);
  const within = (p) => p.axes[a] <= state.budget * (1 + 1e-6);
  const traces = [{ x: steps.x, y: steps.y, mode: "lines", line: { shape: "hv", color: "#999", width: 1.5, dash: "dot" },
    hoverinfo: "skip" }];
  for (const model of data.models) {
    const mine = rows.filter((p) => p.model === model.name);
    if (!mine.length) continue;
    traces.push({ x: mine.map((p) => p.axes[a]), y: mine.map((p) => p.held[m]), customdata: mine.map((p) => points.indexOf(p)),
      mode: "markers", hoverinfo: "text",
      text: mine.map((p) => plain(words(p)).replace(/(, sampler|\. (?=\w))/g, (s) => (s === ". " ? "<br>" : "<br>sampler"))),
      marker: { color: model.colour, size: 9, symbol: mine.map((p) => symbolOf[kindOf(p)][0]),
        opacity: mine.map((p) => (within(p) ? 1 : 0.25)), line: { color: "#333", width: 0.6 } } });
  }
  if (best) {
    traces.push({ x: [best.axes[a]], y: [best.held[m]], mode: "markers", hoverinfo: "skip",
      marker: { color: "#222", size: 18, symbol: "circle-open", line: { width: 2.5 } } });
  }
  const values = rows.map((p) => p.held[m]), low = Math.min(...values), high = Math.max(...values);
  const log = low > 0 && high > 8 * low;
  const line = { color: "#222", gridcolor: "#e6e6e6", linecolor: "#888", showline: true, ticks: "outside", zeroline: false };
  const layout = {
    margin: { l: 58, r: 12, t: 8, b: 48 }, paper_bgcolor: "#fff", plot_bgcolor: "#fff", hovermode: "closest",
    showlegend: false, font: { family: 'system-ui, "DejaVu Sans", sans-serif', size: 12.5, color: "#222" }, uirevision: staircase.key,
    hoverlabel: { bgcolor: "#fff", bordercolor: "#444", align: "left", font: { color: "#222" } },
    xaxis: { ...line, type: "log", title: { text: plain(data.axes[a].label) } },
    yaxis: { ...line, type: log ? "log" : "linear",
      title: { text: plain(`${label} (${sign < 0 ? "lower" : "higher"} is better)`) } },
    shapes: [{ type: "line", xref: "x", yref: "paper", x0: state.budget, x1: state.budget, y0: 0, y1: 1,
      line: { color: "#222", width: 1.2 } }],
  };
  Plotly.react(by("plot"), traces, layout, { displaylogo: false, responsive: true, displayModeBar: false });
}

// ---- begin -----------------------------------------------------------------------------------------------------------

function fill(name, labels) {
  choices[name].forEach((value, i) => { element("option", labels[i], by(name)).value = value; });
  by(name).addEventListener("change", () => {
    const place = placeOf(state.budget);
    state[name] = by(name).value;
    if (name === "axis") state.budget = budgetAt(place);
    show();
    remember();
  });
}

by("study").textContent = data.study;
by("about").textContent = data.about;
fill("axis", data.axes.map((a) => a.label));
fill("metric", data.metrics.map((m) => m.label));
fill("sampler", ["all", ...choices.sampler.slice(1)]);
fill("weights", ["all", ...choices.weights.slice(1)]);
by("slider").addEventListener("input", () => { state.budget = budgetAt(Number(by("slider").value)); show(); });
by("slider").addEventListener("change", remember);
by("budget").addEventListener("change", () => {
  const budget = Number(by("budget").value);
  if (budget > 0 && Number.isFinite(budget)) state.budget = budget;
  show();
  remember();
});
by("controls").addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", () => { read(); show(); });
read();
show();
by("plot").on("plotly_click", (event) => {
  const p = points[event.points[0].customdata];
  if (p) pin(p);
});
})();
