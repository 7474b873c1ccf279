"use strict";
// What the person said about tags: kept in the browser, by content, until it is exported.

const corrections = (() => {
  const PLACE = "vtag corrections 1";
  let said = new Map();
  let kept = true;
  const listeners = [];

  function read() {
    try {
      const found = JSON.parse(localStorage.getItem(PLACE) || "[]");
      return new Map(found.filter((one) => one && typeof one.id === "string").map((one) => [one.id, one]));
    } catch { kept = false; return said; }
  }

  function write() {
    try { localStorage.setItem(PLACE, JSON.stringify([...said.values()])); } catch { kept = false; }
    for (const tell of listeners) tell();
  }

  said = read();
  // Another tab with this or another report.
  addEventListener("storage", (event) => { if (event.key === PLACE) { said = read(); listeners.forEach((tell) => tell()); } });

  function of(id) { return said.get(id) || null; }
  const isSomething = (one) => one.wrong.length + one.added.length > 0;

  // Changes what is said of a video; `change` gets a fresh {wrong: [[id, name]], added: [name]}.
  function change(row, path, change) {
    said = read();
    const id = row[ROW.id], old = said.get(id);
    const one = { id, path, wrong: old ? [...old.wrong] : [], added: old ? [...old.added] : [], kept: [], time: "" };
    change(one);
    one.time = new Date().toISOString();
    const wrong = new Set(one.wrong.map(([tag]) => tag));
    one.kept = tagsOf(row).map(([at]) => vtag.tags[at]).filter(([tag]) => !wrong.has(tag)).map(([, name]) => name);
    // One that was taken back stays: exported, it takes back an earlier export.
    said.set(id, one);
    write();
  }

  function lines() {
    return [...said.values()].map((one) => JSON.stringify({
      vtag_corrections: 1, id: one.id, path: one.path,
      wrong: one.wrong.map(([tag]) => tag), wrong_names: one.wrong.map(([, name]) => name),
      added: one.added, kept: one.kept, time: one.time,
    }) + "\n").join("");
  }

  return {
    of, change, lines,
    all: () => [...said.values()].filter(isSomething),
    everything: () => said.size,
    count: () => [...said.values()].filter(isSomething).length,
    isKept: () => kept,
    forget() { said = new Map(); write(); },
    onChange(tell) { listeners.push(tell); },
  };
})();

function toggleWrong(row, path, id, name) {
  corrections.change(row, path, (one) => {
    const at = one.wrong.findIndex(([tag]) => tag === id);
    if (at < 0) one.wrong.push([id, name]); else one.wrong.splice(at, 1);
  });
}

function addTag(row, path, text) {
  const name = text.replace(/\s+/g, " ").trim();
  if (!name || name.length > 200 || /[\u0000-\u001f\u007f-\u009f]/.test(name)) return false;
  const same = (other) => other.toLowerCase() === name.toLowerCase();
  const known = vtag.labels.find(same) || name;
  const there = tagsOf(row).map(([at]) => vtag.tags[at]).find(([, other]) => same(other));
  corrections.change(row, path, (one) => {
    if (there) one.wrong = one.wrong.filter(([tag]) => tag !== there[0]);
    else if (!one.added.some(same)) one.added.push(known);
  });
  return true;
}

function removeAdded(row, path, name) {
  corrections.change(row, path, (one) => { one.added = one.added.filter((other) => other !== name); });
}

function exportCorrections() {
  const url = URL.createObjectURL(new Blob([corrections.lines()], { type: "application/jsonl" }));
  make("a", { href: url, download: "corrections.jsonl" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

function showCorrections(view) {
  const all = corrections.all();
  fill(view,
    make("h1", {}, "Corrections"),
    make("p", { class: "lead" }, all.length
      ? `You corrected ${count(all.length, "video", "videos")}. They are kept in this browser only: export them to use them.`
      : "Nothing is corrected yet. Open a video, mark a tag as wrong or add one that is missing."),
    corrections.isKept() ? null : make("p", { class: "warning" }, "This browser keeps nothing for pages from disk: export before you close the page."),
    corrections.everything() ? make("p", { class: "actions" },
      make("button", { type: "button", class: "button strong", id: "export", onclick: exportCorrections }, "Export corrections.jsonl"),
      forgetButton()) : null,
    ...(all.length ? [howTo()] : []),
    make("ul", { class: "list" }, ...all.map((one) => correctionItem(one))),
  );
}

function forgetButton() {
  let sure = false;
  const button = make("button", { type: "button", class: "button", id: "forget" }, "Forget all");
  button.addEventListener("click", () => {
    if (sure) { corrections.forget(); return; }
    sure = true;
    button.textContent = "Really forget all of them?";
  });
  return button;
}

function howTo() {
  return make("div", { class: "how" },
    make("p", {}, "Then, where vtag is:"),
    make("pre", {}, "vtag run VIDEOS --out tags.jsonl --corrections corrections.jsonl    # puts them into the results\nvtag train --corrections corrections.jsonl --out my_model           # learns from them"));
}

function correctionItem(one) {
  const path = printable(one.path), name = bdi(fileName(path));
  const copies = vtag.rows.filter((row) => row[ROW.id] === one.id);
  const row = copies.find((copy) => copy[ROW.path] === path) || copies[0];
  return make("li", {},
    make("div", { title: path }, row ? make("a", { href: `#video=${row[ROW.key]}` }, name) : name,
      folderName(path) ? make("span", { class: "folder" }, bdi(folderName(path))) : null),
    make("div", { class: "chips" },
      ...one.wrong.map(([, tag]) => make("span", { class: "chip wrong" }, make("s", {}, bdi(tag)))),
      ...one.added.map((tag) => make("span", { class: "chip person" }, icon("person"), bdi(tag)))),
    row ? null : make("p", { class: "muted" }, "of another report"));
}

// A path from the browser's store, with the escapes that the report's own have (`shown` in report_entries.py).
function printable(text) {
  return text.replace(/[\p{Cc}\p{Cs}\p{Zl}\p{Zp}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu, (c) => {
    const code = c.charCodeAt(0), short = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[c];
    if (short) return short;
    const byte = code >= 0xdc80 && code <= 0xdcff ? code - 0xdc00 : code;
    return byte < 0x100 ? `\\x${byte.toString(16).padStart(2, "0")}` : `\\u${byte.toString(16).padStart(4, "0")}`;
  });
}
