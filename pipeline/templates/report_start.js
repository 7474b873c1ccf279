"use strict";
// Puts the page together: addresses, views, keys, theme. The last script of the page.

const VIEWS = ["videos", "tags", "problems", "corrections"];
let view = null;
const pageTitle = document.title;

function showView(name) {
  view = name;
  for (const one of VIEWS) {
    document.getElementById(`view-${one}`).hidden = one !== name;
    const link = document.querySelector(`nav [data-view="${one}"]`);
    if (one === name) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  showHint("");
  if (name === "videos") showGrid();
  if (name === "tags") showTags();
  if (name === "problems") showProblems(document.getElementById("view-problems"));
  if (name === "corrections") showCorrections(document.getElementById("view-corrections"));
}

// -- addresses: #videos&q=dog&tag=cat, #tags, #video=KEY&t=12.5 ----------------------------------

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const row = byKey.get(asked.get("video") || "");
  if (row) {
    if (!view) showView("videos");
    const time = Number.parseFloat(asked.get("t")), at = Number.parseInt(asked.get("at"), 10);
    openPanel(row, { time: time >= 0 && time < 1e7 ? time : null, at: Number.isNaN(at) ? null : at });
    return;
  }
  closePanel();
  const name = VIEWS.find((one) => asked.has(one)) || "videos";
  // The link to the videos leaves the filters as they are; who comes back finds those of that time.
  const isNew = view !== null && history.state === null && [...asked.keys()].length < 2;
  if (name === "videos" && !isNew) takeFilters(asked);
  showView(name);
  if (name === "videos" && isNew) keepAddress();
  scrollTo(0, history.state?.y ?? 0); // a page begins at its top, unless somebody comes back to it
  if (asked.has("video")) document.getElementById("count").textContent += " · the video of this link is not in this report";
}

function takeFilters(asked) {
  state = { ...NOTHING, q: (asked.get("q") || "").slice(0, 200), tags: asked.getAll("tag") };
  for (const [field, id] of Object.entries(FIELDS)) {
    const options = [...document.getElementById(id).options].map((option) => option.value);
    if (options.includes(asked.get(field))) state[field] = asked.get(field);
  }
  const score = Number.parseFloat(asked.get("score")), page = Number.parseInt(asked.get("page"), 10);
  if (score > 0 && score < 1) state.score = score;
  if (page > 1) state.page = page - 1;
  showFilters();
}

// The address says what is looked at, so that it can be kept; it makes no history of its own.
function keepAddress() {
  const asked = new URLSearchParams({ [view]: "" });
  if (view === "videos") {
    if (state.q) asked.set("q", state.q);
    for (const name of state.tags) asked.append("tag", name);
    for (const field of Object.keys(FIELDS)) if (state[field] !== NOTHING[field]) asked.set(field, state[field]);
    if (state.score > 0) asked.set("score", state.score);
    if (state.page) asked.set("page", state.page + 1);
  }
  history.replaceState(history.state, "", `#${asked}`);
}

// Remembers how far down one is, for who comes back to this address.
function keepPlace() { history.replaceState({ y: scrollY }, ""); }

// -- keys ---------------------------------------------------------------------------------------

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const help = document.getElementById("help");
  if (help.open) return;
  const search = document.getElementById("q");
  const typing = event.target.closest("input, textarea, select");
  let done = false;
  if (event.key === "?" && !typing) { help.showModal(); done = true; }
  else if (panel.dialog.open) done = panelKey(event);
  else if (event.key === "Escape" && event.target === search) { search.value = ""; search.dispatchEvent(new Event("input")); done = true; }
  else if (event.target === search && event.key === "ArrowDown") { focusCard(0); done = true; }
  else if (typing) return;
  else if (event.key === "/") { search.focus(); search.select(); done = true; }
  else if (view === "videos" && (event.key === "n" || event.key === "p")) { document.querySelector(`#pages [data-step="${event.key === "n" ? 1 : -1}"]`)?.click(); done = true; }
  else if (view === "videos") done = gridKey(event);
  if (done) event.preventDefault();
}

// -- theme --------------------------------------------------------------------------------------

const THEMES = { auto: "as the system", light: "light", dark: "dark" };

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").setAttribute("aria-label", `Theme: ${THEMES[theme]}`);
  document.getElementById("theme").title = `Theme: ${THEMES[theme]}`;
}

function storedTheme() {
  try { const found = localStorage.getItem("vtag theme"); return found in THEMES ? found : "auto"; } catch { return "auto"; }
}

// -- start --------------------------------------------------------------------------------------

function showCounts() {
  badge("n-problems", vtag.rows.filter((row) => row[ROW.error] !== 0).length);
  badge("n-corrections", corrections.count());
}

setTheme(storedTheme());
document.getElementById("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  setTheme(next);
  try { localStorage.setItem("vtag theme", next); } catch { /* it holds as long as the page is open */ }
});
document.getElementById("keys").addEventListener("click", () => document.getElementById("help").showModal());
document.getElementById("tags-sort").addEventListener("change", showTags);
document.querySelector(".brand").addEventListener("click", clearFilters);
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); document.getElementById("main").focus(); });
if (matchMedia("(min-width: 60rem)").matches) document.getElementById("filters").open = true;

prepare();
fillFilters();
showCounts();
history.scrollRestoration = "manual"; // by the time the browser would, the old page is still there
addEventListener("hashchange", readAddress);
addEventListener("pagehide", keepPlace);
addEventListener("click", (event) => { if (event.target.closest('a[href^="#"]')) keepPlace(); }, true);
addEventListener("keydown", onKey);
panel.dialog.addEventListener("close", () => {
  stopPlaying();
  const row = panel.row;
  Object.assign(panel, { row: null, detail: null, asked: null });
  panel.dialog.replaceChildren();
  document.title = pageTitle;
  if (new URLSearchParams(location.hash.slice(1)).has("video")) keepAddress();
  const link = row && document.querySelector(`#grid a[data-key="${row[ROW.key]}"]`);
  if (link) focusCard([...document.querySelectorAll("#grid a.open")].indexOf(link));
});
panel.dialog.addEventListener("click", (event) => { if (event.target === panel.dialog) closePanel(); });
corrections.onChange(() => {
  vtag.rows.forEach(describe);
  statistics = null;
  showCounts();
  if (panel.dialog.open && panel.row[ROW.error] === 0) drawTimeline();
  showView(view);
});
readAddress();
document.documentElement.dataset.ready = "true";
