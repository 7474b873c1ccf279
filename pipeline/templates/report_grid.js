"use strict";
// The grid of videos: what is looked for, which match, and one page of them.

const PAGE = 60;
const NOTHING = { q: "", tags: [], category: "", source: "", score: 0, status: "", duration: "", sort: "match", page: 0 };
let state = { ...NOTHING };
let found = [];
const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
const byKey = new Map();

function prepare() {
  for (const number of [...vtag.parts.keys()].sort((a, b) => a - b)) vtag.rows.push(...vtag.parts.get(number));
  vtag.lower = vtag.tags.map(([, name]) => name.toLowerCase());
  vtag.above = vtag.tags.map(([, name, above]) => new Set([name, ...above]));
  vtag.ids = vtag.tags.map(([id]) => plain(id));
  vtag.names = vtag.tags.map(([, name]) => plain(name));
  vtag.groups = vtag.tags.map(([, , above]) => above.map(plain).join("\n"));
  vtag.tagged = vtag.rows.filter((row) => row[ROW.error] === 0).length;
  vtag.rows.forEach((row, at) => { row.at = at; row.words = plain(row[ROW.path]); byKey.set(row[ROW.key], row); describe(row); });
}

// What is known of a row beside its data: what the person said, and all its marks, theirs included.
function describe(row) {
  const said = row[ROW.id] ? corrections.of(row[ROW.id]) : null;
  row.wrong = new Set(said ? said.wrong.map(([id]) => id) : []);
  row.added = said ? said.added : [];
  row.shown = row.wrong.size ? tagsOf(row).filter(([at]) => !row.wrong.has(vtag.tags[at][0])) : tagsOf(row);
  // As `vtag run --corrections` writes them: score 1; -1 for what is no tag of this report.
  row.marks = [...row.shown, ...row.added.map((name) => [vtag.lower.indexOf(name.toLowerCase()), 1, PERSON, -1, name.toLowerCase()])];
}

// -- which match --------------------------------------------------------------------------------

function search() {
  const { tree } = readQuery(state.q);
  const names = state.tags.map((name) => name.toLowerCase());
  const source = Number(state.source);
  const fits = ([at, score, bits]) => score >= state.score && (!source || bits & source) && (!state.category || vtag.above[at]?.has(state.category));
  const anyTag = state.category || source || state.score > 0;
  const [from, to] = state.duration ? state.duration.split("-").map((text) => text === "" ? Infinity : Number(text)) : [0, Infinity];
  found = [];
  for (const row of vtag.rows) {
    if (tree && !holds(tree, row)) continue;
    if (state.duration && !(row[ROW.duration] >= from && row[ROW.duration] < to)) continue;
    if (state.status && !hasStatus(row, state.status)) continue;
    if (!names.every((name) => row.marks.some((tag) => (vtag.lower[tag[0]] ?? tag[4]) === name && fits(tag)))) continue;
    if (!names.length && anyTag && !row.marks.some(fits)) continue;
    found.push(row);
  }
  const isAsking = tree !== null && asksForTags(tree), isWanted = names.length > 0 || isAsking;
  for (const row of found) {
    const leaves = isAsking ? askedLeaves(tree, row) : [];
    const wanted = (tag) => fits(tag) && (!isWanted || names.includes(vtag.lower[tag[0]]) || leaves.some((leaf) => leaf.test(tag)));
    const tags = row.marks.filter(wanted);
    row.best = tags.reduce((best, tag) => Math.max(best, tag[1]), 0) || (isWanted ? 0 : -1);
    row.wanted = isWanted ? new Set(tags.map(([at]) => at)) : null;
    row.cell = isWanted && row[ROW.strip] ? tags.reduce((cell, tag) => (cell < 0 ? tag[3] : cell), -1) : -1;
  }
  sortFound();
}

function hasStatus(row, status) {
  const failed = row[ROW.error] !== 0;
  if (status === "ok") return !failed;
  if (status === "failed") return failed;
  if (status === "none") return !failed && row.shown.length + row.added.length === 0;
  if (status === "notes") return Boolean(row[ROW.flags] & NOTES);
  if (status === "gone") return Boolean(row[ROW.flags] & GONE);
  return row.wrong.size + row.added.length > 0;
}

function sortFound() {
  const byPath = (a, b) => collator.compare(a[ROW.path], b[ROW.path]) || a.at - b.at;
  const orders = {
    match: (a, b) => b.best - a.best || a.at - b.at,
    path: byPath,
    longest: (a, b) => b[ROW.duration] - a[ROW.duration] || a.at - b.at,
    shortest: (a, b) => a[ROW.duration] - b[ROW.duration] || a.at - b.at,
    tags: (a, b) => b.shown.length - a.shown.length || a.at - b.at,
    order: (a, b) => a.at - b.at,
  };
  found.sort(orders[state.sort]);
}

// -- one page -----------------------------------------------------------------------------------

function showGrid() {
  search();
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const cards = found.slice(state.page * PAGE, (state.page + 1) * PAGE).map(card);
  const grid = document.getElementById("grid");
  fill(grid, ...cards);
  if (!found.length) grid.append(make("li", { class: "empty" }, vtag.rows.length ? "No video matches. Clear a filter, or search for something else." : "There is no video in these results."));
  const first = grid.querySelector("a.open");
  if (first) first.tabIndex = 0;
  document.getElementById("count").textContent = countText();
  showHint(readQuery(state.q).hint);
  showPages(document.getElementById("pages"), state.page, pages, (page) => { state.page = page; showGrid(); keepAddress(); scrollTo(0, 0); focusCard(0); });
  showChosen();
}

// Videos are what was tagged; what could not be is counted for itself.
function countText() {
  const failed = found.filter((row) => row[ROW.error] !== 0).length, all = count(vtag.tagged, "video", "videos");
  const videos = isFiltered() ? `${grouped(found.length - failed)} of ${all}` : all;
  return failed ? `${videos} · ${grouped(failed)} could not be tagged` : videos;
}

function isFiltered() {
  return Boolean(readQuery(state.q).tree || state.tags.length || state.category || state.source || state.score > 0 || state.status || state.duration);
}

function card(row) {
  const failed = row[ROW.error] !== 0, name = fileName(row[ROW.path]), folder = folderName(row[ROW.path]);
  const picture = make("span", { class: "poster" });
  if (row.cell >= 0) {
    // What was looked for, where it is seen.
    picture.append(cellPicture(row, row.cell));
  } else if (row[ROW.poster]) {
    picture.append(make("img", { src: `thumbnails/${row[ROW.poster]}`, alt: "", loading: "lazy", decoding: "async" }));
    picture.firstChild.addEventListener("error", () => { picture.firstChild.replaceWith(icon("film")); });
  } else picture.append(icon(failed ? "alert" : row[ROW.flags] & PICTURES || !(row[ROW.flags] & SOUND) ? "film" : "heard"));
  if (row[ROW.duration]) picture.append(make("span", { class: "time" }, clock(row[ROW.duration])));
  const marks = [row[ROW.flags] & GONE ? "gone" : "", row.cell >= 0 ? `at ${clock(row[ROW.moments][row.cell])}` : ""].filter(Boolean);
  if (marks.length) picture.append(make("span", { class: "mark" }, row[ROW.flags] & GONE ? icon("gone") : null, marks.join(" · ")));
  return make("li", { class: `card${failed ? " failed" : ""}` },
    make("a", { class: "open", href: addressOf(row), "data-key": row[ROW.key], tabindex: -1, title: row[ROW.path], "aria-label": spoken(row, name) }, picture,
      make("span", { class: "name" }, bdi(name)), folder ? make("span", { class: "folder" }, bdi(folder)) : null),
    make("div", { class: "chips" }, ...chipsOf(row)));
}

// Where a video begins that was found for a tag: at the moment on its card, or where it is surest.
function beginningOf(row) {
  if (row.cell >= 0) return { time: row[ROW.moments][row.cell] };
  return row.wanted && row.wanted.size ? { at: [...row.wanted][0] } : {};
}

function addressOf(row) {
  const { time, at } = beginningOf(row);
  return `#video=${row[ROW.key]}${time !== undefined ? `&t=${time}` : at !== undefined ? `&at=${at}` : ""}`;
}

function spoken(row, name) {
  if (row[ROW.error] !== 0) return `${name}: failed`;
  const tags = [...row.added, ...row.shown.slice(0, 5).map(([at]) => vtag.tags[at][1])];
  return `${name}, ${clock(row[ROW.duration])}${row[ROW.flags] & GONE ? ", gone" : ""}: ${tags.join(", ") || "no tag"}`;
}

function chipsOf(row) {
  if (row[ROW.error] !== 0) return [make("span", { class: "why" }, (vtag.codes[row[ROW.error]] || [row[ROW.error]])[0])];
  const wanted = row.wanted && row.wanted.size ? [...row.shown].sort((a, b) => row.wanted.has(b[0]) - row.wanted.has(a[0])) : row.shown;
  const chips = row.added.map((name) => make("span", { class: "chip person" }, icon("person"), bdi(name)));
  chips.push(...wanted.slice(0, Math.max(0, 5 - chips.length)).map(([at, score, bits]) => tagChip(at, score, bits, row.wanted && row.wanted.has(at))));
  const more = row.shown.length + row.added.length - chips.length;
  if (more > 0) chips.push(make("span", { class: "more" }, `+${more}`));
  if (!chips.length) chips.push(make("span", { class: "muted" }, "no tag"));
  return chips;
}

function tagChip(at, score, bits, wanted) {
  const [, name, above] = vtag.tags[at];
  const title = `${name} ${score.toFixed(2)}${above.length ? ` · ${above.join(" › ")}` : ""}: show all`;
  const chip = make("button", { type: "button", class: `chip${wanted ? " wanted" : ""}${bits === HEARD ? " ear" : ""}`, tabindex: -1, title, onclick: () => pickTag(name) },
    bits & HEARD || bits & PERSON ? sourceIcons(bits).pop() : null, bdi(name));
  chip.style.setProperty("--score", score.toFixed(2));
  return chip;
}

function showPages(nav, page, pages, go) {
  if (pages < 2) { fill(nav); return; }
  const wanted = [...new Set([0, page - 1, page, page + 1, pages - 1])].filter((at) => at >= 0 && at < pages);
  const items = [];
  wanted.forEach((at, place) => {
    if (place && at > wanted[place - 1] + 1) items.push(make("span", { class: "muted", "aria-hidden": "true" }, "…"));
    items.push(make("button", { type: "button", class: "page", "aria-current": at === page ? "page" : null, "aria-label": `Page ${at + 1} of ${pages}`, onclick: () => go(at) }, String(at + 1)));
  });
  const step = (by, name, label) => {
    const button = make("button", { type: "button", class: "page", "aria-label": label, "data-step": by, onclick: () => go(page + by) }, icon(name));
    button.disabled = page + by < 0 || page + by >= pages;
    return button;
  };
  fill(nav, step(-1, "back", "Previous page"), ...items, step(1, "on", "Next page"));
}

// -- filters ------------------------------------------------------------------------------------

const FIELDS = { category: "f-category", source: "f-source", status: "f-status", duration: "f-duration", sort: "sort" };

function fillFilters() {
  const names = [...new Set(vtag.tags.map(([, name]) => name))].sort(collator.compare);
  document.getElementById("tag-names").append(...names.map((name) => make("option", { value: name })));
  const categories = [...new Set(vtag.tags.flatMap(([, , above]) => above))].sort(collator.compare);
  document.getElementById("f-category").append(...categories.map((name) => make("option", { value: name }, name)));
  const refresh = () => { state.page = 0; showGrid(); keepAddress(); };
  document.getElementById("q").addEventListener("input", (event) => { state.q = event.target.value; if (view === "tags") showTags(); else refresh(); });
  for (const [field, id] of Object.entries(FIELDS)) {
    document.getElementById(id).addEventListener("change", (event) => { state[field] = event.target.value; refresh(); });
  }
  document.getElementById("f-score").addEventListener("input", (event) => { state.score = Number(event.target.value); showScore(); refresh(); });
  const tag = document.getElementById("f-tag");
  const take = () => {
    const name = names.find((one) => one.toLowerCase() === tag.value.trim().toLowerCase());
    if (name) { tag.value = ""; pickTag(name); }
  };
  // A choice from the list comes as input, typed text is complete with Enter.
  tag.addEventListener("input", (event) => { if (!(event instanceof InputEvent) || event.inputType === "insertReplacementText") take(); });
  tag.addEventListener("change", take);
  document.getElementById("filter-form").addEventListener("submit", (event) => { event.preventDefault(); take(); });
  document.getElementById("clear").addEventListener("click", () => { clearFilters(); document.getElementById("q").focus(); });
}

function clearFilters() {
  state = { ...NOTHING, sort: state.sort };
  showFilters();
  showGrid();
  keepAddress();
}

function pickTag(name) {
  if (!state.tags.includes(name)) state.tags = [...state.tags, name];
  state.page = 0;
  showGrid();
  keepAddress();
  scrollTo(0, 0);
}

function showScore() { document.getElementById("f-score-shown").textContent = state.score.toFixed(2); }

// The form as the state has it.
function showFilters() {
  document.getElementById("q").value = state.q;
  document.getElementById("f-score").value = state.score;
  for (const [field, id] of Object.entries(FIELDS)) document.getElementById(id).value = state[field];
  showScore();
}

function showChosen() {
  const drop = (change) => () => { change(); state.page = 0; showFilters(); showGrid(); keepAddress(); };
  const text = (id) => document.getElementById(id).selectedOptions[0]?.textContent;
  const chosen = state.tags.map((name) => [name, drop(() => { state.tags = state.tags.filter((other) => other !== name); })]);
  if (state.category) chosen.push([`in ${state.category}`, drop(() => { state.category = ""; })]);
  if (state.source) chosen.push([text("f-source"), drop(() => { state.source = ""; })]);
  if (state.score > 0) chosen.push([`score from ${state.score.toFixed(2)}`, drop(() => { state.score = 0; })]);
  if (state.status) chosen.push([text("f-status"), drop(() => { state.status = ""; })]);
  if (state.duration) chosen.push([text("f-duration"), drop(() => { state.duration = ""; })]);
  fill(document.getElementById("chosen"), ...chosen.map(([label, remove]) => make("span", { role: "listitem" },
    make("button", { type: "button", class: "chip on", "aria-label": `Remove the filter ${label}`, onclick: remove }, bdi(label), icon("close")))));
  badge("n-filters", chosen.length);
  document.getElementById("clear").hidden = !isFiltered() && !state.q;
}

function badge(id, number) {
  const element = document.getElementById(id);
  element.hidden = !number;
  element.textContent = number.toLocaleString("en");
}

// -- keys ---------------------------------------------------------------------------------------

function focusCard(at) {
  const links = [...document.querySelectorAll("#grid a.open")];
  if (!links.length) return;
  for (const link of links) link.tabIndex = -1;
  const link = links[Math.max(0, Math.min(at, links.length - 1))];
  link.tabIndex = 0;
  link.focus();
}

function gridKey(event) {
  const links = [...document.querySelectorAll("#grid a.open")];
  const at = links.indexOf(document.activeElement);
  if (at < 0) return false;
  const columns = getComputedStyle(document.getElementById("grid")).gridTemplateColumns.split(" ").length;
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + columns, ArrowUp: at - columns, Home: 0, End: links.length - 1 }[event.key];
  if (to === undefined || to < 0 || to >= links.length) return false;
  focusCard(to);
  return true;
}
