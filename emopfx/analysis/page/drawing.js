"use strict";

/** Make an element; a child is a node or a text, and attributes that are null are left out. */
function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** Make an SVG element. */
function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.flat().filter((child) => child !== null));
  return node;
}

const byId = (id) => document.getElementById(id);

/** Fill a select with [value, text] pairs, and call back when another one is chosen. */
function choices(id, pairs, changed) {
  const select = byId(id);
  select.replaceChildren(...pairs.map(([value, text]) => element("option", { value }, text)));
  select.addEventListener("change", changed);
  return select;
}

function table(headings, rows) {
  const head = element("tr", {}, headings.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((row) => element("tr", {}, row.map((cell) => element("td", {}, cell))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, body));
}

const signed = (value, digits) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const plain = (value, digits) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);

/** Round values that cover a range, about `count` of them, each with a text that no other one has. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step).map((value) => [value, plain(value, digits)]);
}

/** A range that holds the values with some room around them. */
function range(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  const room = (high - low) * 0.06 || 1;
  return [low - room, high + room];
}

const scale = ([from, to], [start, end]) => (value) => start + ((value - from) / (to - from)) * (end - start);

const drawn = [];

/** Draw a chart into a box now and whenever its width has changed; `draw(width)` returns [height, label, shapes]. */
function chart(id, draw) {
  const box = byId(id);
  const paint = () => {
    const width = Math.max(280, box.clientWidth);
    const [height, label, shapes] = draw(width);
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }, shapes);
    box.replaceChildren(svg);
  };
  drawn.push(paint);
  paint();
  return paint;
}

const hint = (text) => shape("title", {}, text);
const text = (x, y, content, attributes = {}) => shape("text", { x, y, ...attributes }, content);
const line = (x1, y1, x2, y2, attributes = {}) => shape("line", { x1, y1, x2, y2, ...attributes });

/** Axes along the bottom and the left of a frame {left, right, top, bottom}, with grid lines, labels and units. */
function axes(frame, x, y, xTicks, yTicks, labels) {
  return [
    ...yTicks.flatMap(([value, name]) => [
      line(frame.left, y(value), frame.right, y(value), { class: "grid" }),
      text(frame.left - 8, y(value) + 4, name, { "text-anchor": "end", class: "soft" }),
    ]),
    ...xTicks.flatMap(([value, name]) => [
      line(x(value), frame.bottom, x(value), frame.bottom + 5, { class: "axis" }),
      text(x(value), frame.bottom + 20, name, { "text-anchor": "middle", class: "soft" }),
    ]),
    line(frame.left, frame.bottom, frame.right, frame.bottom, { class: "axis" }),
    text((frame.left + frame.right) / 2, frame.bottom + 42, labels.x, { "text-anchor": "middle" }),
    text(frame.left - 8, frame.top - 12, labels.y, {}),
  ];
}

let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth !== width) drawn.forEach((paint) => paint());
  width = window.innerWidth;
});
