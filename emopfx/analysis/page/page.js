"use strict";

function provenance(report) {
  const { config, model, server, run } = report;
  const facts = {
    "Config hash": report.hash,
    Model: [config.model.name, config.model.revision, config.model.dtype].filter(Boolean).join(", "),
    Dataset: /\.(jsonl|parquet)$/.test(report.dataset.path)
      ? report.dataset.path
      : [report.dataset.path, report.dataset.config, report.dataset.split, report.dataset.revision].filter(Boolean).join(", "),
    Report: `${report.created}, emopfx ${report.emopfx}, format ${report.version}`,
    "Last run": `${run.started}: ${run.stages?.join(", ")}; emopfx ${run.emopfx}, Python ${run.python}`,
    Missing: report.missing.length ? report.missing.join(", ") : "nothing",
  };
  const terms = Object.entries(facts).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  const whole = Object.entries({ Config: config, Model: model, Server: server }).map(([name, value]) =>
    element("details", {}, element("summary", {}, name), element("pre", {}, JSON.stringify(value, null, 2))));
  byId("origin").append(element("dl", {}, terms), ...whole);
}

function start() {
  const report = JSON.parse(byId("report").textContent);
  const { statistics } = report;
  byId("name").textContent = report.experiment;
  byId("facts").textContent =
    `${report.config.model.name} on ${report.dataset.path}: ${report.found} of ${report.expected} answers, ` +
    `config ${report.hash.slice(0, 8)}, ${report.created.slice(0, 10)}`;
  byId("effects").hidden = !statistics.comparisons.length;
  byId("probes").hidden = !report.probes?.tasks.length;
  byId("features").hidden = !report.sae?.saes.length;
  byId("activations").hidden = !report.activations;
  for (const section of document.querySelectorAll("section")) {
    section.prepend(element("h2", {}, section.dataset.heading));
    if (!section.hidden) document.querySelector("nav").append(element("a", { href: `#${section.id}` }, section.dataset.heading));
  }
  headline(statistics);
  if (!byId("effects").hidden) effects(statistics);
  scatter(statistics);
  if (!byId("probes").hidden) probes(report.probes);
  if (report.activations) activations(report);
  if (!byId("features").hidden) features(report.sae);
  provenance(report);
  // The answers are large and come last: the charts are seen before they are there.
  document.addEventListener("DOMContentLoaded", () => browse(report).catch((error) => {
    byId("matches").textContent = `The answers can't be shown: ${error.message}`;
  }));
}

start();
