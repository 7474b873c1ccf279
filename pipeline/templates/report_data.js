"use strict";
// What the data files of the report fill in. The first script of the page.

const vtag = { rows: [], tags: [], codes: {}, labels: [], details: new Map(), parts: new Map() };

// Positions in a row, in the order in which report_page.py writes them.
const ROW = { key: 0, id: 1, path: 2, link: 3, error: 4, flags: 5, duration: 6, poster: 7, strip: 8, moments: 9, tags: 10, part: 11 };
const GONE = 1, NOTES = 2, PICTURES = 4, SOUND = 8;
const SEEN = 1, HEARD = 2, PERSON = 4;

function vtagData(kind, number, value) {
  if (kind === "rows") vtag.parts.set(number, value);
  else if (kind === "detail") vtag.details.set(number, new Map(value.map((one) => [one.key, one])));
  else vtag[kind] = value;
}

// The only script addresses that the page's policy lets through.
const policy = globalThis.trustedTypes
  ? trustedTypes.createPolicy("vtag", { createScriptURL: ownScript })
  : { createScriptURL: ownScript };

function ownScript(name) {
  if (!/^data\/detail-[0-9]+\.js$/.test(name)) throw new TypeError(name);
  return name;
}

const loading = new Map();

// The details of one video; they come in files of some dozens.
function detailOf(row) {
  const part = row[ROW.part];
  if (!loading.has(part)) {
    loading.set(part, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = policy.createScriptURL(`data/detail-${String(part).padStart(3, "0")}.js`);
      script.onload = resolve;
      script.onerror = () => { loading.delete(part); reject(new Error("a file of the report is missing")); };
      document.head.append(script);
    }));
  }
  return loading.get(part).then(() => vtag.details.get(part).get(row[ROW.key]));
}

// -- small parts of pages ---------------------------------------------------------------------

// An element: make("a", {class: "x", href: "#"}, "text", child). Text stays text, always.
function make(name, given = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(given)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  return fill(element, ...children);
}

// The element with these children and no others; null and undefined are left out.
function fill(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function icon(name, label) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("class", `icon ${name}`);
  if (label) { svg.setAttribute("role", "img"); svg.setAttribute("aria-label", label); } else svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

function bdi(text) { return make("bdi", {}, text); }

function clock(seconds) {
  const whole = Math.floor(seconds), h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60;
  const s = String(whole % 60).padStart(2, "0");
  return h ? `${h}:${String(m).padStart(2, "0")}:${s}` : `${m}:${s}`;
}

// With tenths, where seconds are too coarse.
function fineClock(seconds, whole) {
  const tenth = Math.floor((seconds % 1) * 10 + 1e-6);
  return whole < 60 && tenth > 0 ? `${clock(seconds)}.${tenth}` : clock(seconds);
}

function grouped(number) { return number.toLocaleString("en").replaceAll(",", "\u202f"); }
function count(number, one, many) { return `${grouped(number)} ${number === 1 ? one : many}`; }

function fileName(path) { return path.slice(path.lastIndexOf("/") + 1) || path; }
function folderName(path) { const at = path.lastIndexOf("/"); return at > 0 ? path.slice(0, at) : ""; }

// A row's tags, in the record's order: [position in vtag.tags, score, sources, cell of the strip that shows it].
function tagsOf(row) {
  const flat = row[ROW.tags], tags = [];
  for (let i = 0; i < flat.length; i += 4) tags.push([flat[i], flat[i + 1] / 10000, flat[i + 2], flat[i + 3]]);
  return tags;
}

// A part of a row's strip of moments.
function cellPicture(row, cell) {
  const picture = make("span", { class: "picture" });
  picture.style.backgroundImage = `url("thumbnails/${row[ROW.strip]}")`;
  const cells = row[ROW.moments].length;
  picture.style.backgroundSize = `${cells * 100}% 100%`;
  picture.style.backgroundPosition = `${cells > 1 ? (cell / (cells - 1)) * 100 : 0}% 0`;
  return picture;
}

function sourceIcons(bits) {
  const icons = [];
  if (bits & SEEN) icons.push(icon("seen", "seen"));
  if (bits & HEARD) icons.push(icon("heard", "heard"));
  if (bits & PERSON) icons.push(icon("person", "by a person"));
  return icons;
}
