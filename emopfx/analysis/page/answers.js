"use strict";

const SEPARATOR = "\u001f";
const PAGE = 100;

/** Unpack the questions with their answers. */
async function unpack() {
  const packed = Uint8Array.from(atob(byId("answers").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const lines = (await new Response(stream).text()).split("\n");
  return lines.filter(Boolean).map((row) => JSON.parse(row));
}

/** Whether a question's answers change between two variants: -1 right to wrong, 1 wrong to right, in any repeat. */
function changes(question, from, to, direction) {
  const before = question.answers.filter((answer) => answer.variant === from);
  return before.some((one) => {
    const other = question.answers.find((answer) => answer.variant === to && answer.repeat === one.repeat);
    return other && Number(other.correct) - Number(one.correct) === direction;
  });
}

async function browse(report) {
  const questions = await unpack();
  const names = report.config.variants.map((variant) => variant.name);
  const projections = report.probes?.projections ?? [];
  let matching = [];
  let shown = null;

  const kinds = {
    all: ["all questions", () => true],
    lost: ["right → wrong", (question) => changes(question, left.value, right.value, -1)],
    won: ["wrong → right", (question) => changes(question, left.value, right.value, 1)],
    wrong: ["wrong in either", (question) => question.answers.some((one) => [left.value, right.value].includes(one.variant) && !one.correct)],
    truncated: ["truncated in either", (question) => question.answers.some((one) => [left.value, right.value].includes(one.variant) && one.truncated)],
  };

  const matches = () => {
    const wanted = byId("search").value.trim().toLowerCase();
    const has = (value) => value.toLowerCase().includes(wanted);
    const [, kept] = kinds[filter.value];
    matching = questions.filter((question) => kept(question) &&
      (!wanted || has(question.id) || has(question.question) || question.answers.some((answer) => has(answer.text))));
    const { shown: there, all } = report.questions;
    const partial = there < all ? ` (this page has room for ${there} of ${all})` : "";
    byId("matches").textContent = `${matching.length} of ${questions.length} questions${partial}`;
    byId("list").replaceChildren();
    extend();
    if (!matching.includes(shown)) shown = matching[0] ?? null;
    open(shown);
  };

  const extend = () => {
    const list = byId("list");
    list.querySelector(".more")?.remove();
    const from = list.children.length;
    list.append(...matching.slice(from, from + PAGE).map(item));
    if (matching.length > from + PAGE) {
      const more = element("button", { type: "button", onclick: extend }, `${matching.length - from - PAGE} more …`);
      list.append(element("li", { class: "more" }, more));
    }
  };

  const item = (question) => {
    const marks = names.map((name) => {
      const own = question.answers.filter((answer) => answer.variant === name);
      const right = own.filter((answer) => answer.correct).length;
      const mark = own.length === 0 ? "·" : right === own.length ? "✓" : right === 0 ? "✗" : "~";
      return element("span", { class: right ? "right" : "wrong", title: `${name}: ${right} of ${own.length} right` }, mark);
    });
    const button = element("button", { type: "button", onclick: () => open(question), onkeydown: move },
      question.id, " ", element("span", { class: "marks" }, marks), element("span", { class: "preview" }, question.question));
    return element("li", { "data-id": question.id }, button);
  };

  const move = (event) => {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = step && event.currentTarget.parentElement[step];
    if (!next) return;
    event.preventDefault();
    next.firstChild.focus();
    if (!next.classList.contains("more")) next.firstChild.click();
  };

  const open = (question) => {
    shown = question;
    for (const entry of byId("list").children) {
      entry.firstChild.setAttribute("aria-current", String(question !== null && entry.dataset.id === question.id));
    }
    const box = byId("sample");
    if (!question) {
      box.replaceChildren();
      return;
    }
    const columns = [...new Set([left.value, right.value])].map((name) => element("div", {},
      question.answers.filter((answer) => answer.variant === name).map((answer) => card(answer))));
    box.replaceChildren(
      element("h3", {}, question.id),
      element("p", { class: "text" }, question.question),
      element("p", { class: "note" }, `The right answer is ${question.gold}.`),
      element("div", { class: "pair" }, columns),
    );
  };

  const card = (answer) => {
    const facts = [`answer ${answer.answer ?? "none"}`, `${answer.length} tokens`];
    if (answer.repeat > 1) facts.unshift(`repeat ${answer.repeat}`);
    if (answer.truncated) facts.push("truncated");
    if (!answer.format) facts.push("another form than asked for");
    const verdict = element("span", { class: answer.correct ? "right" : "wrong" }, answer.correct ? "right" : "wrong");
    const coloured = colour.value && answer.values?.[colour.value];
    const body = coloured
      ? [element("p", { class: "text" }, tokens(answer.tokens.split(SEPARATOR), coloured))]
      : [answer.prefix && element("p", { class: "text prefix" }, answer.prefix), element("p", { class: "text" }, answer.text)];
    return element("div", { class: "answer" }, element("h3", {}, answer.variant, ": ", verdict),
      element("p", { class: "note" }, facts.join(", ")), body.filter(Boolean));
  };

  const left = choices("left", names.map((name) => [name, name]), matches);
  const right = choices("right", names.map((name) => [name, name]), matches);
  right.value = names[1] ?? names[0];
  const filter = choices("filter", Object.entries(kinds).map(([key, [label]]) => [key, label]), matches);
  const colour = choices("colour", [["", "nothing"], ...projections.map((name) => [name, name])], () => open(shown));
  byId("colouring").hidden = !questions.some((question) => question.answers.some((answer) => answer.values));
  byId("colouring").append("−3", element("span", { class: "scale" }), "+3 standard deviations");
  let waiting = 0;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(matches, 150);
  });
  document.addEventListener("visit", ({ detail }) => {
    left.value = detail.left;
    right.value = detail.right;
    filter.value = "all";
    byId("search").value = detail.id;
    matches();
    byId("samples").scrollIntoView();
  });
  matches();
}

/** Tokens with the projection of each as its background; letters as in report_page.py. */
function tokens(texts, letters) {
  return texts.map((content, index) => {
    const z = (letters.charCodeAt(index) - 77) / 4;
    const tone = z < 0 ? "negative" : "positive";
    const strength = (Math.abs(z) / 3 * 0.75).toFixed(2);
    return element("span", { class: "token", style: `background: rgba(var(--${tone}), ${strength})`, title: signed(z, 2) }, content);
  });
}
