"use strict";

const MEASURES = {
  accuracy: { name: "accuracy", unit: "percentage points", scale: 100 },
  format: { name: "format", unit: "percentage points", scale: 100 },
  completion_tokens: { name: "completion tokens", unit: "tokens", scale: 1 },
};
const SCORES = {
  selectivity: { name: "selectivity", of: (probe) => 100 * probe.selectivity, digits: 0, unit: "percentage points" },
  accuracy: { name: "accuracy", of: (probe) => 100 * probe.accuracy.value, digits: 0, unit: "%" },
  auc: { name: "AUC", of: (probe) => probe.auc.value, digits: 2, unit: "0.5 is chance" },
};

function interval(estimate, factor, digits, show = plain) {
  if (!estimate) return "–";
  const ends = estimate.low === null ? null : `[${show(estimate.low * factor, digits)}, ${show(estimate.high * factor, digits)}]`;
  const value = "value" in estimate ? estimate.value : estimate.difference;
  return element("span", {}, show(value * factor, digits), ends && element("span", { class: "range" }, ` ${ends}`));
}

const pValue = (p) => element("span", { class: p <= 0.05 ? "strong" : "" }, p < 0.001 ? "<0.001" : p.toFixed(3));

function headline(statistics) {
  const rows = statistics.variants.map((entry) => [
    entry.variant,
    String(entry.n),
    interval(entry.accuracy, 100, 1),
    interval(entry.format, 100, 1),
    interval(entry.completion_tokens, 1, 1),
    String(entry.truncated),
  ]);
  byId("headline").append(table(["Variant", "Answers", "Accuracy, %", "Format kept, %", "Completion tokens", "Truncated"], rows));
}

function effects(statistics) {
  const baselines = [...new Set(statistics.comparisons.map((entry) => entry.baseline))];
  const uncut = byId("uncut");
  const shown = () => {
    const source = uncut.checked ? statistics.without_truncated : statistics.comparisons;
    return source.filter((entry) => entry.baseline === baseline.value);
  };
  let paint = () => {};
  const update = () => {
    paint();
    comparison(shown(), measure.value, baseline.value);
    flips(shown());
  };
  const baseline = choices("baseline", baselines.map((name) => [name, name]), update);
  const measure = choices("measure", Object.entries(MEASURES).map(([key, { name }]) => [key, name]), update);
  uncut.addEventListener("change", update);
  uncut.parentElement.hidden = !statistics.without_truncated;
  paint = chart("forest", (width) => forest(width, shown(), measure.value, baseline.value));
  update();
  byId("tests").textContent =
    `Brackets and bars: 95 % bootstrap intervals over questions (${statistics.resamples} resamples); where all questions ` +
    `differ alike, Clopper and Pearson's for shares, and none for tokens. p: exact McNemar test or sign-flip permutation, adjusted by Holm's method over the variants. Detectable: the ` +
    `smallest difference found with ${100 * statistics.power} % power.`;
}

function forest(width, entries, key, baseline) {
  const measure = MEASURES[key];
  const at = (value) => value * measure.scale;
  const narrow = width < 560;
  const frame = { left: narrow ? 100 : 130, right: width - (narrow ? 12 : 170), top: 14, bottom: 24 + 30 * entries.length };
  const ends = entries.flatMap(({ [key]: effect }) => [effect.difference, effect.low ?? 0, effect.high ?? 0]).map(at);
  const [low, high] = range([0, ...ends]);
  const x = scale([low, high], [frame.left, frame.right]);
  const shapes = axes(frame, x, () => 0, ticks(low, high, narrow ? 4 : 8), [], {
    x: narrow ? measure.unit : `difference to ${baseline}, ${measure.unit}`,
    y: "",
  });
  shapes.push(line(x(0), frame.top, x(0), frame.bottom, { class: "axis", "stroke-dasharray": "3 3" }));
  entries.forEach((entry, index) => {
    const effect = entry[key];
    const y = frame.top + 20 + 30 * index;
    const sure = effect.p_holm <= 0.05;
    const colour = sure ? "var(--accent)" : "var(--soft)";
    const said = `${signed(at(effect.difference), 1)}, p ${effect.p_holm < 0.001 ? "<0.001" : effect.p_holm.toFixed(3)}`;
    const row = [hint(`${entry.variant}: ${said} (Holm)`), text(frame.left - 10, y + 4, entry.variant, { "text-anchor": "end" })];
    if (effect.low !== null) row.push(line(x(at(effect.low)), y, x(at(effect.high)), y, { stroke: colour, "stroke-width": 2 }));
    row.push(shape("circle", { cx: x(at(effect.difference)), cy: y, r: 5, fill: colour }));
    if (!narrow) row.push(text(frame.right + 14, y + 4, said, { class: sure ? "strong" : "soft" }));
    shapes.push(shape("g", {}, row));
  });
  return [frame.bottom + 54, `Differences of ${measure.name} to ${baseline} with 95 % intervals`, shapes];
}

function comparison(entries, key, baseline) {
  const measure = MEASURES[key];
  const rows = entries.map((entry) => {
    const effect = entry[key];
    const detectable = effect.detectable === null ? "–" : (effect.detectable * measure.scale).toFixed(1);
    const flips = [entry.right_to_wrong.length, entry.wrong_to_right.length].map(String);
    return [entry.variant, String(entry.pairs), interval(effect, measure.scale, 1, signed), pValue(effect.p), pValue(effect.p_holm), detectable, ...flips];
  });
  const headings = [`Against ${baseline}`, "Pairs", `Difference, ${measure.unit}`, "p", "p (Holm)", "Detectable", "Right→wrong", "Wrong→right"];
  byId("comparison").replaceChildren(table(headings, rows));
}

/** Which answers changed, each with a way to it. */
function flips(entries) {
  const lists = entries.flatMap((entry) => [["right → wrong", entry.right_to_wrong], ["wrong → right", entry.wrong_to_right]].map(([change, ids]) => {
    if (!ids.length) return null;
    const links = ids.map((id) => element("button", { type: "button", onclick: () => visit(id.split("/")[0], entry.baseline, entry.variant) }, id));
    return element("details", {}, element("summary", {}, `${entry.variant}, ${change}: ${ids.length}`), element("p", { class: "ids" }, links));
  })).filter(Boolean);
  byId("flips").replaceChildren(...(lists.length ? [element("h3", {}, "Answers that changed"), ...lists] : []));
}

/** Show a question in the browser of answers, with two variants side by side. */
function visit(id, left, right) {
  document.dispatchEvent(new CustomEvent("visit", { detail: { id, left, right } }));
}

function scatter(statistics) {
  const baseline = statistics.comparisons[0]?.baseline;
  const points = statistics.variants.filter((entry) => entry.accuracy);
  chart("scatter", (width) => {
    const frame = { left: 48, right: width - 14, top: 34, bottom: 330 };
    const ends = (estimate) => [estimate.value, estimate.low ?? estimate.value, estimate.high ?? estimate.value];
    const xs = range(points.flatMap((entry) => ends(entry.completion_tokens)));
    const ys = range(points.flatMap((entry) => ends(entry.accuracy)).map((value) => 100 * value));
    const x = scale(xs, [frame.left, frame.right]);
    const y = scale(ys, [frame.bottom, frame.top]);
    const shapes = axes(
      frame, x, y,
      ticks(...xs, width < 560 ? 4 : 8),
      ticks(...ys, 6),
      { x: "mean completion tokens", y: "accuracy, %" },
    );
    const places = points.map((entry) => [x(entry.completion_tokens.value), y(100 * entry.accuracy.value)]);
    const taken = places.map(([across, down]) => ({ from: across - 7, to: across + 7, y: down + 4 }));
    for (const entry of points) {
      const [tokens, less, more] = ends(entry.completion_tokens);
      const [share, low, high] = ends(entry.accuracy).map((value) => 100 * value);
      const colour = entry.variant === baseline ? "var(--series-1)" : "var(--accent)";
      const faint = { stroke: colour, opacity: 0.35, "stroke-width": 1.5 };
      const end = x(tokens) > frame.right - 110;
      const long = 7.5 * entry.variant.length;
      const from = end ? x(tokens) - 9 - long : x(tokens) + 9;
      // The nearest height above or below at which a label lies on no other one and on no point.
      const free = (height) => taken.every((other) => Math.abs(other.y - height) >= 13 || other.from > from + long || other.to < from);
      const offsets = Array.from({ length: 40 }, (_, index) => 4 + (index % 2 ? -7 : 7) * Math.ceil(index / 2));
      const height = y(share) + (offsets.find((offset) => free(y(share) + offset)) ?? 4);
      taken.push({ from, to: from + long, y: height });
      shapes.push(shape("g", {},
        hint(`${entry.variant}: ${share.toFixed(1)} % right, ${tokens.toFixed(1)} tokens`),
        line(x(less), y(share), x(more), y(share), faint),
        line(x(tokens), y(low), x(tokens), y(high), faint),
        shape("circle", { cx: x(tokens), cy: y(share), r: 5, fill: colour }),
        text(x(tokens) + (end ? -9 : 9), height, entry.variant, { "text-anchor": end ? "end" : "start" }),
      ));
    }
    return [frame.bottom + 54, "Accuracy of each variant against its mean completion tokens, with 95 % intervals", shapes];
  });
}

function probes(found) {
  const update = () => paints.forEach((paint) => paint());
  const name = (task) => `${task.name} (${task.feature.replaceAll("_", " ")})`;
  const task = choices("task", found.tasks.map((entry, index) => [String(index), name(entry)]), update);
  const score = choices("score", Object.entries(SCORES).map(([key, entry]) => [key, entry.name]), update);
  const chosen = () => found.tasks[Number(task.value)];
  const paints = [
    chart("curves", (width) => curves(width, chosen())),
    chart("heatmap", (width) => heatmap(width, chosen(), SCORES[score.value])),
    () => values(chosen()),
  ];
  values(chosen());
}

/** The numbers behind the curves and the map. */
function values(task) {
  const rows = task.probes.map((probe) => [
    String(probe.layer), probe.hook_point, interval(probe.accuracy, 100, 1), interval(probe.auc, 1, 2),
    interval(probe.shuffled, 100, 1), plain(100 * probe.selectivity, 1),
  ]);
  const headings = ["Layer", "Hook point", "Accuracy, %", "AUC", "Shuffled labels, %", "Selectivity, points"];
  byId("values").replaceChildren(table(headings, rows));
}

/** What became of the activations: which can't be read, and what could not be made of the others. */
function activations(report) {
  const { answers, unreadable } = report.activations;
  const broken = Object.entries(unreadable).map(([key, reason]) => `${key}: ${reason}`);
  const skipped = (report.probes?.skipped ?? []).map((task) => `${task.name} (${task.feature.replaceAll("_", " ")}): ${task.reason}`);
  byId("readable").textContent = `${answers - broken.length} of ${answers} answers have activations that can be read.`;
  for (const [title, entries] of [["Unreadable activations", broken], ["Not probed", skipped], ["No SAE", report.sae?.skipped ?? []]]) {
    if (!entries.length) continue;
    const summary = element("summary", {}, `${title}: ${entries.length}`);
    byId("unprobed").append(element("details", {}, summary, element("ul", {}, entries.map((entry) => element("li", {}, entry)))));
  }
}

const hooksOf = (task) => [...new Set(task.probes.map((probe) => probe.hook_point))];
const layersOf = (task) => [...new Set(task.probes.map((probe) => probe.layer))].sort((a, b) => a - b);

function curves(width, task) {
  const hooks = hooksOf(task);
  const layers = layersOf(task);
  const frame = { left: 44, right: width - 14, top: 34, bottom: 300 };
  const percent = (value) => 100 * value;
  const shuffled = layers.map((layer) => task.probes.filter((probe) => probe.layer === layer).map((probe) => probe.shuffled));
  const bounds = shuffled.map((all) => [
    Math.min(...all.map((one) => percent(one.low ?? one.value))),
    Math.max(...all.map((one) => percent(one.high ?? one.value))),
  ]);
  const values = task.probes.flatMap(({ accuracy }) => [accuracy.value, accuracy.low ?? accuracy.value, accuracy.high ?? accuracy.value]);
  const ys = range([...values.map(percent), ...bounds.flat(), percent(task.majority)]);
  const xs = [layers[0] - 0.3, layers.at(-1) + 0.3];
  const x = scale(xs, [frame.left, frame.right]);
  const y = scale(ys, [frame.bottom, frame.top]);
  const step = Math.ceil(layers.length / (width < 560 ? 8 : 24));
  const shapes = axes(
    frame, x, y,
    layers.filter((_, index) => index % step === 0).map((layer) => [layer, String(layer)]),
    ticks(...ys, 6),
    { x: "layer", y: "held-out accuracy, %" },
  );
  const band = [...layers.map((layer, i) => [x(layer), y(bounds[i][1])]), ...layers.map((layer, i) => [x(layer), y(bounds[i][0])]).reverse()];
  shapes.push(shape("polygon", { points: band.map(String).join(" "), fill: "var(--band)" }, hint("shuffled labels")));
  shapes.push(line(frame.left, y(percent(task.majority)), frame.right, y(percent(task.majority)), { class: "axis", "stroke-dasharray": "4 4" }));
  hooks.forEach((hook, index) => {
    const colour = `var(--series-${index % 6})`;
    const points = task.probes.filter((probe) => probe.hook_point === hook).sort((a, b) => a.layer - b.layer);
    const path = points.map((probe) => [x(probe.layer), y(percent(probe.accuracy.value))].join(",")).join(" ");
    shapes.push(shape("polyline", { points: path, fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": index >= 6 ? "6 3" : null }));
    for (const probe of points) {
      const { value, low, high } = probe.accuracy;
      const place = x(probe.layer) + (index - (hooks.length - 1) / 2) * 2;
      if (low !== null) shapes.push(line(place, y(percent(low)), place, y(percent(high)), { stroke: colour, opacity: 0.4 }));
      shapes.push(shape("circle", { cx: x(probe.layer), cy: y(percent(value)), r: 4, fill: colour },
        hint(`layer ${probe.layer}, ${hook}: ${percent(value).toFixed(1)} %, shuffled ${percent(probe.shuffled.value).toFixed(1)} %`)));
    }
  });
  const names = [
    ...hooks.map((hook, index) => [hook, `var(--series-${index % 6})`]),
    ["grey band: probes of shuffled labels", "var(--line)"],
    ["dashed: always the most frequent class", "var(--soft)"],
  ];
  const legend = names.flatMap(([name, colour], index) => [
    shape("rect", { x: frame.left, y: frame.bottom + 58 + 20 * index, width: 12, height: 12, rx: 2, fill: colour }),
    text(frame.left + 20, frame.bottom + 69 + 20 * index, name, { class: "soft" }),
  ]);
  return [frame.bottom + 66 + 20 * names.length, `Probe accuracy by layer for ${task.name}`, [...shapes, ...legend]];
}

function heatmap(width, task, score) {
  const hooks = hooksOf(task);
  const layers = layersOf(task);
  const frame = { left: 44, right: width - 14, top: 64, bottom: 0 };
  const row = 46;
  const cell = (frame.right - frame.left) / layers.length;
  const known = task.probes.map(score.of);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  frame.bottom = frame.top + row * hooks.length;
  const ends = `faint ${plain(low, score.digits)}, strong ${plain(high, score.digits)}`;
  const shapes = [text(frame.left, 18, `${score.name}, ${score.unit}`), text(frame.left, 36, ends, { class: "soft" })];
  hooks.forEach((hook, line) => {
    const top = frame.top + row * line;
    shapes.push(text(frame.left, top - 4, hook, { class: "soft" }));
    for (const probe of task.probes.filter((one) => one.hook_point === hook)) {
      const value = score.of(probe);
      const strength = high > low ? (value - low) / (high - low) : 0;
      const left = frame.left + layers.indexOf(probe.layer) * cell;
      shapes.push(shape("g", {},
        hint(`layer ${probe.layer}, ${hook}: ${value.toFixed(score.digits)}`),
        shape("rect", { x: left, y: top, width: Math.max(1, cell - 2), height: row - 20, rx: 3, fill: `rgba(var(--map), ${(0.06 + 0.74 * strength).toFixed(2)})` }),
        cell > 30 ? text(left + cell / 2, top + 18, plain(value, score.digits), { "text-anchor": "middle", class: "cell" }) : "",
      ));
    }
  });
  const step = Math.ceil(layers.length / (width < 560 ? 8 : 32));
  layers.forEach((layer, index) => {
    if (index % step === 0) shapes.push(text(frame.left + (index + 0.5) * cell, frame.bottom - 4, String(layer), { "text-anchor": "middle", class: "soft" }));
  });
  shapes.push(text((frame.left + frame.right) / 2, frame.bottom + 18, "layer", { "text-anchor": "middle" }));
  return [frame.bottom + 28, `${score.name} of probes for ${task.name} by layer and hook point`, shapes];
}

function features(found) {
  for (const sae of found.saes) {
    const rows = sae.features.map((one) => [
      `#${one.feature}`, one.variant, interval(one.difference, 1, 3, signed), pValue(one.q), `${(100 * one.active).toFixed(1)} %`,
    ]);
    byId("saes").append(
      element("h3", {}, `Layer ${sae.layer}, ${sae.hook_point}`),
      element("p", { class: "note" },
        `${sae.width} features, ${sae.k} at once, trained on ${sae.tokens} tokens; explains ${(100 * sae.explained_variance).toFixed(1)} % of the variance, ${sae.dead} dead features.`),
      table(["Feature", "Variant", `Mean activation, difference to ${found.baseline}`, "q (FDR)", "Active on tokens"], rows),
    );
  }
}
