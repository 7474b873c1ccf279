"use strict";
// The page of tags, and the page of what went wrong.

const TAGS_PAGE = 50;
let tagsPage = 0;
let statistics = null;

// Per tag: [position, videos, best score, sources, best rows].
function tagStatistics() {
  const every = vtag.tags.map((_, at) => ({ at, videos: 0, best: 0, bits: 0, rows: [] }));
  for (const row of vtag.rows) {
    for (const [at, score, bits, cell] of row.shown) {
      const one = every[at];
      one.videos += 1;
      one.best = Math.max(one.best, score);
      one.bits |= bits;
      one.rows.push([score, row, cell]);
    }
  }
  for (const one of every) {
    one.rows.sort((a, b) => b[0] - a[0] || a[1].at - b[1].at);
    one.rows = one.rows.filter(([, row]) => row[ROW.poster]).slice(0, 4);
  }
  return every.filter((one) => one.videos);
}

function showTags() {
  statistics ||= tagStatistics();
  const { tree, hint } = readQuery(state.q);
  const asked = tree && ofTagsAlone(tree);
  // The query asks a tag what it would ask a video that has this tag alone.
  const fit = statistics.filter((one) => !asked || holds(asked, { marks: [[one.at, one.best, one.bits]] }));
  showHint(hint || (tree && asksOfVideos(tree) ? "path:, status: and duration: are about videos and do nothing on this page." : ""));
  const name = (one) => vtag.tags[one.at][1];
  const orders = {
    count: (a, b) => b.videos - a.videos || collator.compare(name(a), name(b)),
    name: (a, b) => collator.compare(name(a), name(b)),
    score: (a, b) => b.best - a.best || b.videos - a.videos,
  };
  fit.sort(orders[document.getElementById("tags-sort").value]);
  const most = Math.max(1, ...statistics.map((one) => one.videos));
  const pages = Math.max(1, Math.ceil(fit.length / TAGS_PAGE));
  tagsPage = Math.min(tagsPage, pages - 1);
  document.getElementById("tags-count").textContent = asked ? `${fit.length} of ${count(statistics.length, "tag", "tags")}` : count(statistics.length, "tag", "tags");
  fill(document.getElementById("tag-list"), ...fit.slice(tagsPage * TAGS_PAGE, (tagsPage + 1) * TAGS_PAGE).map((one) => tagRow(one, most)),
    ...(fit.length ? [] : [make("li", { class: "empty" }, "No tag of this name.")]));
  showPages(document.getElementById("tags-pages"), tagsPage, pages, (page) => { tagsPage = page; showTags(); scrollTo(0, 0); });
}

function tagRow(one, most) {
  const [, name, above] = vtag.tags[one.at];
  const bar = make("span", { class: "share", "aria-hidden": "true" });
  bar.style.setProperty("--share", (one.videos / most).toFixed(4));
  return make("li", { class: "tag" },
    make("div", { class: "what" },
      make("a", { href: `#${new URLSearchParams({ videos: "", tag: name })}` }, bdi(name)), ...sourceIcons(one.bits),
      above.length ? make("span", { class: "above" }, bdi(above.join(" › "))) : null),
    make("div", { class: "much" }, make("span", { class: "number" }, count(one.videos, "video", "videos")), bar, make("span", { class: "muted" }, `best ${one.best.toFixed(2)}`)),
    make("div", { class: "examples" }, ...one.rows.map(([, row, cell]) => make("a", { href: `#video=${row[ROW.key]}&at=${one.at}`, title: fileName(row[ROW.path]), "aria-label": `${name} in ${fileName(row[ROW.path])}` },
      cell >= 0 && row[ROW.strip] ? cellPicture(row, cell) : make("img", { src: `thumbnails/${row[ROW.poster]}`, alt: "", loading: "lazy" })))));
}

// -- problems -----------------------------------------------------------------------------------

const SOME = 200;

function showProblems(view) {
  const failed = new Map(), gone = [], noted = [];
  for (const row of vtag.rows) {
    if (row[ROW.error] !== 0) {
      if (!failed.has(row[ROW.error])) failed.set(row[ROW.error], []);
      failed.get(row[ROW.error]).push(row);
    }
    if (row[ROW.error] === 0 && row[ROW.flags] & GONE) gone.push(row);
    if (row[ROW.error] === 0 && row[ROW.flags] & NOTES) noted.push(row);
  }
  const groups = [...failed].sort((a, b) => b[1].length - a[1].length).map(([code, rows]) => {
    const [meaning, remedy] = vtag.codes[code] || ["of a newer version of vtag", "see its documentation"];
    return problem(code, meaning, remedy, rows, true);
  });
  if (gone.length) groups.push(problem("gone", "tagged, but not where they were", "put the disk back, or tag the folder again if they were moved, and make the report again", gone));
  if (noted.length) groups.push(problem("notes", "tagged, with something to know", "open one to read what was damaged or substituted", noted));
  fill(view, make("h1", {}, "Problems"),
    make("p", { class: "lead" }, groups.length ? "What could not be tagged, and what to do. After that, run vtag again with --retry-failed." : "Every video was tagged without a remark."), ...groups);
}

function problem(code, meaning, remedy, rows, isFailure = false) {
  const list = make("ul", { class: "list files" });
  const more = make("button", { type: "button", class: "plain" });
  let shown = 0;
  const grow = () => {
    list.append(...rows.slice(shown, shown + SOME).map((row) => make("li", {}, make("a", { href: `#video=${row[ROW.key]}` }, bdi(row[ROW.path])))));
    shown = Math.min(rows.length, shown + SOME);
    more.textContent = `show ${Math.min(SOME, rows.length - shown)} more`;
    more.hidden = shown === rows.length;
  };
  more.addEventListener("click", grow);
  grow();
  return make("section", { class: "problem" },
    make("h2", {}, icon(isFailure ? "alert" : code === "gone" ? "gone" : "film"), `${meaning.charAt(0).toUpperCase()}${meaning.slice(1)}`, make("span", { class: "muted" }, count(rows.length, "file", "files"))),
    make("p", { class: "remedy" }, make("b", {}, "What to do: "), `${remedy}.`, isFailure ? make("code", {}, code) : null),
    make("details", { open: rows.length <= 20 }, make("summary", {}, "Files"), list, more));
}
