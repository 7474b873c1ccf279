"use strict";
// One video: playing, its tags in time, the moments that carried them, and what a person says.

const panel = {
  dialog: document.getElementById("panel"), row: null, detail: null, media: null, wanted: null, asked: null,
};

function openPanel(row, { time = null, at = null } = {}) {
  const same = panel.row === row && panel.dialog.open;
  if (same && panel.detail) { goTo(time, at); return; }
  panel.asked = row;
  detailOf(row).then((detail) => {
    if (panel.asked !== row) return; // somebody went back, or on, while it was loaded
    stopPlaying();
    panel.row = row;
    panel.detail = detail;
    drawPanel();
    if (!panel.dialog.open) panel.dialog.showModal();
    panel.dialog.scrollTop = 0;
    document.getElementById("panel-name").focus();
    document.title = `${fileName(row[ROW.path])} · vtag`;
    goTo(time, at);
  }, (error) => { document.getElementById("count").textContent = `This video can not be shown: ${error.message}. Make the report again.`; });
}

// Without this a player that is not seen any more plays and loads on.
function stopPlaying() {
  const media = panel.media;
  panel.media = null;
  panel.wanted = null;
  if (!media) return;
  media.pause();
  media.removeAttribute("src");
  media.load();
}

function closePanel() {
  panel.asked = null;
  if (panel.dialog.open) panel.dialog.close();
}

function goTo(time, at) {
  if (time !== null) seek(time);
  if (at === null) return;
  const place = tagsOf(panel.row).findIndex(([other]) => other === at);
  if (place < 0) return;
  let best = null;
  const segments = panel.detail.tags[place][1];
  for (let i = 0; i < segments.length; i += 3) if (!best || segments[i + 2] > best[1]) best = [segments[i], segments[i + 2]];
  if (best) seek(best[0]);
}

function drawPanel() {
  const { row, detail } = panel;
  const name = fileName(row[ROW.path]), folder = folderName(row[ROW.path]), facts = factsOf(row, detail);
  const step = (by, icon_, label, key) => {
    const other = neighbour(by);
    const button = make("button", { type: "button", class: "round", "data-step": by, "aria-label": label, title: `${label} (${key})`, onclick: () => stepTo(by) }, icon(icon_));
    button.disabled = !other;
    return button;
  };
  fill(panel.dialog,
    make("header", {},
      step(-1, "back", "Previous video", "p"), step(1, "on", "Next video", "n"),
      make("div", { class: "names" }, make("h2", { id: "panel-name", tabindex: -1, title: row[ROW.path] }, bdi(name)),
        make("p", { class: "muted" }, folder ? bdi(folder) : null, folder && facts ? " · " : null, facts)),
      row[ROW.link] ? make("a", { class: "button", href: row[ROW.link], target: "_blank", rel: "noopener noreferrer", id: "open-file" }, "Open the file") : null,
      make("button", { type: "button", class: "round", "aria-label": "Close", title: "Close (Esc)", onclick: closePanel }, icon("close"))),
    make("div", { class: "stage" }, make("div", { class: "player" }, ...player(row, detail)), make("div", { class: "aside" }, moments(row, detail),
      row[ROW.id] && row[ROW.error] === 0 ? addForm(row) : null, notes(detail), detail.model && row[ROW.error] === 0 ? make("p", { class: "muted fine" }, `Tagged by ${detail.model}.`) : null)),
    row[ROW.error] !== 0 ? failure(row, detail) : make("div", { class: "timeline", id: "timeline" }));
  if (row[ROW.error] === 0) drawTimeline();
}

function notes(detail) {
  if (!detail.notes.length) return null;
  return make("section", { class: "notes" }, make("h3", {}, "Notes"), make("ul", {}, ...detail.notes.map((note) => make("li", {}, note))));
}

function factsOf(row, detail) {
  const { width, height, fps, video_codec, audio_codec, corrupt_frames } = detail.media;
  const codecs = [video_codec, audio_codec].filter(Boolean).join(" + ");
  return [row[ROW.duration] ? clock(row[ROW.duration]) : null, width ? `${width} × ${height}` : null, fps ? `${Math.round(fps * 100) / 100} fps` : null, codecs || null,
    corrupt_frames ? `${corrupt_frames} damaged pictures` : null].filter(Boolean).join(" · ");
}

// -- playing ------------------------------------------------------------------------------------

function player(row, detail) {
  const note = make("p", { class: "play-note", id: "play-note", role: "status", hidden: true });
  if (row[ROW.error] !== 0) return [make("div", { class: "nothing" }, icon("alert"))];
  if (!row[ROW.link]) return [make("div", { class: "nothing" }, icon("gone"), make("p", {}, "The file is not where it was. Its tags are still here."))];
  const isVideo = Boolean(row[ROW.flags] & PICTURES);
  const media = make(isVideo ? "video" : "audio", { controls: true, preload: "none", src: row[ROW.link], playsinline: true,
    "aria-label": fileName(row[ROW.path]), poster: isVideo && row[ROW.poster] ? `thumbnails/${row[ROW.poster]}` : null });
  const cannot = (what) => {
    fill(note, `This browser ${what}${detail.media.video_codec ? ` (${[detail.media.video_codec, detail.media.audio_codec].filter(Boolean).join(" + ")})` : ""}. `, make("a", { href: row[ROW.link], target: "_blank", rel: "noopener noreferrer" }, "Open the file"), " in your player.");
    note.hidden = false;
  };
  media.addEventListener("error", () => media === panel.media && cannot(media.error && media.error.code === MediaError.MEDIA_ERR_DECODE ? "stopped at damage in this file" : "can not play this file, or it is gone"));
  media.addEventListener("loadedmetadata", () => {
    if (media !== panel.media) return;
    if (isVideo && !media.videoWidth) cannot("plays only the sound of this file");
    if (panel.wanted !== null) { media.currentTime = panel.wanted; panel.wanted = null; }
  });
  media.addEventListener("timeupdate", () => { if (media === panel.media && panel.wanted === null) showTime(media.currentTime); });
  panel.media = media;
  return [media, note];
}

// Goes to a time, without playing if it does not play.
function seek(seconds) {
  showTime(seconds);
  history.replaceState(history.state, "", `#video=${panel.row[ROW.key]}&t=${Math.round(seconds * 100) / 100}`);
  const media = panel.media;
  if (!media || media.error) return;
  if (media.readyState >= 1) { media.currentTime = seconds; return; }
  if (panel.wanted === null) { media.preload = "auto"; media.load(); }
  panel.wanted = seconds;
}

function showTime(seconds) {
  const share = Math.max(0, Math.min(1, seconds / length()));
  for (const head of panel.dialog.querySelectorAll(".head")) head.style.left = `${share * 100}%`;
  const inside = (button) => Number(button.dataset.start) <= seconds + 0.01 && seconds < Number(button.dataset.end);
  for (const button of panel.dialog.querySelectorAll(".segment")) button.classList.toggle("now", inside(button));
  const now = panel.dialog.querySelector("#now");
  if (now) now.textContent = clock(seconds);
}

function length() {
  const ends = panel.detail.tags.flatMap(([, segments]) => segments.filter((_, i) => i % 3 === 1));
  return Math.max(panel.row[ROW.duration], ...ends, 0.01);
}

// -- moments ------------------------------------------------------------------------------------

function moments(row, detail) {
  if (!row[ROW.strip]) return null;
  const tags = tagsOf(row);
  const near = (time) => tags.filter((_, at) => detail.tags[at][2].some((value, i) => i % 2 === 0 && Math.abs(value - time) < 0.3)).map(([at]) => vtag.tags[at][1]);
  return make("div", { class: "moments", role: "group", "aria-label": "Moments that carried the tags" }, ...row[ROW.moments].map((time, at) => {
    const names = near(time);
    const picture = cellPicture(row, at);
    picture.style.aspectRatio = `${detail.cell} / 108`;
    return make("button", { type: "button", class: "moment", title: names.join(", "), "aria-label": `Go to ${fineClock(time, length())}${names.length ? `: ${names.slice(0, 4).join(", ")}` : ""}`, onclick: () => seek(time) },
      picture, make("span", { class: "time" }, fineClock(time, length())));
  }));
}

// -- tags in time -------------------------------------------------------------------------------

function drawTimeline() {
  const { row, detail } = panel;
  const box = document.getElementById("timeline");
  const lanes = tagsOf(row).map((tag, at) => lane(row, tag, detail.tags[at]));
  const said = row[ROW.id] ? corrections.of(row[ROW.id]) : null;
  fill(box, axis(),
    make("ol", { class: "lanes", "aria-label": "Tags in time" }, ...(said ? said.added : []).map((name) => personLane(row, name)), ...lanes),
    lanes.length || (said && said.added.length) ? null : make("p", { class: "muted" }, "No tag is above its threshold."));
  const first = box.querySelector(".segment");
  if (first) first.tabIndex = 0;
  if (panel.media) showTime(panel.wanted ?? panel.media.currentTime);
}

function axis() {
  const whole = length();
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400].find((one) => whole / one <= 8) || whole / 8;
  const track = make("div", { class: "track ruler", "aria-hidden": "true", onclick: clickTime });
  for (let time = 0; time <= whole - step * 0.35; time += step) {
    const tick = make("span", { class: "tick" }, clock(time));
    tick.style.left = `${(time / whole) * 100}%`;
    track.append(tick);
  }
  track.append(make("span", { class: "head" }));
  return make("div", { class: "lane axis" }, make("div", { class: "who muted" }, make("span", { id: "now" }, "0:00"), ` / ${clock(whole)}`), track, make("div", { class: "act muted", "aria-hidden": "true" }, panel.row[ROW.id] ? "wrong?" : null));
}

function lane(row, [at, score, bits], [threshold, segments, evidence]) {
  const [id, name, above] = vtag.tags[at];
  const whole = length(), isWrong = row.wrong.has(id);
  const track = make("div", { class: `track${bits === HEARD ? " ear" : ""}`, onclick: clickTime });
  for (let i = 0; i < segments.length; i += 3) {
    const [start, end, sure] = segments.slice(i, i + 3);
    const span = `${clock(start)} to ${clock(end)}`;
    const button = make("button", { type: "button", class: "segment", tabindex: -1, "data-start": start, "data-end": end, title: `${name}, ${span}, ${sure.toFixed(2)}`,
      "aria-label": `${name} from ${span}, score ${sure.toFixed(2)}: go there`, onclick: () => seek(start) });
    button.style.left = `${(start / whole) * 100}%`;
    button.style.width = `${Math.max(0, Math.min(1, (end - start) / whole)) * 100}%`;
    button.style.setProperty("--sure", sure.toFixed(2));
    track.append(button);
  }
  for (let i = 0; i < evidence.length; i += 2) {
    const dot = make("span", { class: "dot", title: `${clock(evidence[i])}: weight ${evidence[i + 1].toFixed(2)}` });
    dot.style.left = `${(evidence[i] / whole) * 100}%`;
    dot.style.setProperty("--weight", evidence[i + 1].toFixed(2));
    track.append(dot);
  }
  track.append(make("span", { class: "head" }));
  const title = `score ${score.toFixed(2)}, counts from ${threshold.toFixed(2)}${above.length ? ` · ${above.join(" › ")}` : ""}`;
  return make("li", { class: `lane${isWrong ? " wrong" : ""}` },
    make("div", { class: "who", title }, ...sourceIcons(bits), make("a", { class: "tag-name", href: `#${new URLSearchParams({ videos: "", tag: name })}` }, isWrong ? make("s", {}, bdi(name)) : bdi(name)), make("span", { class: "score" }, score.toFixed(2))),
    track,
    make("div", { class: "act" }, row[ROW.id] ? make("button", { type: "button", class: "plain small", title: isWrong ? "It is right after all" : "Mark as wrong", "data-wrong": id, "aria-pressed": isWrong ? "true" : "false", "aria-label": isWrong ? `${name} is right after all` : `Mark ${name} as wrong`, onclick: () => { toggleWrong(row, panel.detail.path, id, name); focusAgain("data-wrong", id); } }, isWrong ? "undo" : icon("close")) : null));
}

function personLane(row, name) {
  return make("li", { class: "lane" },
    make("div", { class: "who" }, icon("person", "by you"), make("span", { class: "tag-name" }, bdi(name)), make("span", { class: "score" }, "you")),
    make("div", { class: "track", onclick: clickTime }, make("span", { class: "head" })),
    make("div", { class: "act" }, make("button", { type: "button", class: "plain small", "aria-label": `Take back ${name}`, onclick: () => { removeAdded(row, panel.detail.path, name); document.getElementById("add-name").focus(); } }, "undo")));
}

function addForm(row) {
  const input = make("input", { id: "add-name", list: "label-names", maxlength: 200, placeholder: "Add a tag that is missing", "aria-label": "Add a tag that is missing", autocomplete: "off" });
  return make("form", { class: "add", id: "add", onsubmit: (event) => {
    event.preventDefault();
    if (addTag(row, panel.detail.path, input.value)) input.value = "";
    input.focus();
  } }, input, suggestions(), make("button", { class: "button" }, "Add"));
}

function suggestions() {
  return make("datalist", { id: "label-names" }, ...vtag.labels.slice(0, 5000).map((name) => make("option", { value: name })));
}

function focusAgain(attribute, value) {
  for (const button of panel.dialog.querySelectorAll(`[${attribute}]`)) if (button.getAttribute(attribute) === value) button.focus();
}

function clickTime(event) {
  if (event.target.closest(".segment")) return;
  const box = event.currentTarget.getBoundingClientRect();
  seek(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * length());
}

function failure(row, detail) {
  const [meaning, remedy] = vtag.codes[row[ROW.error]] || ["This file could not be tagged", "see the documentation"];
  return make("section", { class: "problem" }, make("h3", {}, `${meaning.charAt(0).toUpperCase()}${meaning.slice(1)}`),
    make("p", { class: "remedy" }, make("b", {}, "What to do: "), `${remedy}.`, make("code", {}, row[ROW.error])), make("p", { class: "muted" }, detail.error ? detail.error.message : ""));
}

// -- from one to the next -----------------------------------------------------------------------

function neighbour(by) {
  const at = found.indexOf(panel.row);
  return at < 0 ? null : found[at + by] || null;
}

function stepTo(by) {
  const other = neighbour(by);
  if (!other) return;
  history.replaceState(history.state, "", addressOf(other));
  openPanel(other, beginningOf(other));
}

function panelKey(event) {
  const typing = event.target.closest("input, textarea, select");
  if (typing) return false;
  if (event.target.classList.contains("segment") && segmentKey(event)) return true;
  if (event.key === "n") { stepTo(1); return true; }
  if (event.key === "p") { stepTo(-1); return true; }
  const media = panel.media;
  if (!media) return false;
  if (event.key === " " && !event.target.closest("button, a, video, audio, summary")) { if (media.paused) media.play().catch(() => {}); else media.pause(); return true; }
  if (event.key === "j" || event.key === "l") { seek(Math.max(0, Math.min(length(), (panel.wanted ?? media.currentTime) + (event.key === "l" ? 5 : -5)))); return true; }
  return false;
}

function segmentKey(event) {
  const lanes = [...panel.dialog.querySelectorAll(".lane")].map((one) => [...one.querySelectorAll(".segment")]).filter((one) => one.length);
  const y = lanes.findIndex((one) => one.includes(event.target)), x = lanes[y].indexOf(event.target);
  const to = { ArrowRight: lanes[y][x + 1], ArrowLeft: lanes[y][x - 1], ArrowDown: lanes[y + 1]?.[0], ArrowUp: lanes[y - 1]?.[0] }[event.key];
  if (!to) return event.key.startsWith("Arrow");
  event.target.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
  return true;
}
