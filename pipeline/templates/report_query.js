"use strict";
// The language of the search box: that of `vtag search` (docs/search.md), as far as a page can answer it.
//
//   query  = either { OR either }
//   either = part { [AND] part }
//   part   = [NOT | -] ( word | "phrase" | field:value | "(" query ")" )
//
// It is read while it is typed: what is unfinished at its end counts as not yet there.

const QUERY_FIELDS = ["tag", "category", "path", "source", "status", "score", "duration"];
const SOURCES = { heard: HEARD, audio: HEARD, seen: SEEN, visual: SEEN, person: PERSON };
const STATUSES = { ok: "ok", failed: "failed", gone: "gone", notes: "notes", corrected: "corrected", none: "none" };
const TOKEN = /\s*(?:(?<open>\()|(?<close>\))|(?<minus>-)(?=[^\s)])|(?<field>\p{L}+):|"(?<quoted>[^"]*)(?<end>"\*?|$)|(?<bare>[^\s()"]+))/uy;
const VALUE = /"(?<quoted>[^"]*)(?<end>"\*?|$)|(?<bare>[^\s()"]+)/uy;

class QueryError extends Error {}

// Words with a space around each: no case, no accents, nothing but letters and digits.
function plain(text) {
  return ` ${text.toLowerCase().normalize("NFD").replace(/\p{M}+/gu, "").replace(/[^\p{L}\p{N}]+/gu, " ").trim()} `;
}

let lastQuery = { text: "", tree: null, hint: "" };

// {tree, hint}: what is asked, null for everything; and what to say where the text can not be understood.
function readQuery(text) {
  if (text === lastQuery.text) return lastQuery;
  lastQuery = { text, tree: null, hint: "" };
  try {
    const tree = parsed(tokensOf(text.replace(/[“”„]/g, '"')));
    if (tree) lastQuery.tree = described(tree, null);
  } catch (error) {
    if (!(error instanceof QueryError)) throw error;
    lastQuery.hint = error.message;
  }
  return lastQuery;
}

// -- from text to a tree ------------------------------------------------------------------------

function tokensOf(text) {
  const tokens = [];
  for (let at = 0; at < text.trimEnd().length;) {
    TOKEN.lastIndex = at;
    const { groups } = TOKEN.exec(text);
    at = TOKEN.lastIndex;
    if (groups.field === undefined) {
      const kind = ["open", "close", "minus"].find((one) => groups[one]);
      tokens.push(kind ? { kind } : ["AND", "OR", "NOT"].includes(groups.bare) ? { kind: groups.bare } : wordsToken("", groups, at === text.length));
      continue;
    }
    VALUE.lastIndex = at;
    const value = VALUE.exec(text)?.groups;
    const field = knownField(groups.field.toLowerCase());
    if (!value && at < text.trimEnd().length) throw new QueryError(`Write the value right behind ${field}: without a space or a parenthesis.`);
    if (value) { at = VALUE.lastIndex; tokens.push(wordsToken(field, value, at === text.length)); }
  }
  return tokens;
}

function wordsToken(field, { quoted, end, bare }, isLast) {
  return { kind: "words", field, text: quoted ?? bare, isPhrase: quoted !== undefined, isOpen: end === "" || end === '"*' || (bare ?? "").endsWith("*"), isLast };
}

function knownField(name) {
  if (QUERY_FIELDS.includes(name)) return name;
  if (name === "after" || name === "before") throw new QueryError(`${name}: works in “vtag search”, not on this page.`);
  throw new QueryError(`There is no “${name}:” (there are ${QUERY_FIELDS.join(", ")}). Write text with a colon in quotation marks.`);
}

function parsed(tokens) {
  let at = 0;
  const peek = () => tokens[at]?.kind ?? "end";
  const joined = (is, parts) => (parts.length > 1 ? { is, parts } : parts[0] ?? null);
  const anyOf = () => {
    const parts = [allOf()];
    while (peek() === "OR") { at += 1; parts.push(allOf()); }
    return joined("or", parts.filter(Boolean));
  };
  const allOf = () => {
    const parts = [];
    while (!["OR", "close", "end"].includes(peek())) parts.push(part());
    return joined("and", parts.filter(Boolean));
  };
  const part = () => {
    if (["OR", "close", "end"].includes(peek())) return null; // NOT at the end: not written yet
    const token = tokens[at];
    at += 1;
    if (token.kind === "AND") return null;
    if (token.kind === "NOT" || token.kind === "minus") {
      const inner = part();
      return inner && { is: "not", part: inner };
    }
    if (token.kind === "words") return leafOf(token);
    const inner = anyOf();
    if (peek() === "close") at += 1;
    return inner;
  };
  const tree = anyOf();
  if (at < tokens.length) throw new QueryError("There is a “)” without a “(” before it.");
  return tree;
}

function leafOf({ field, text, isPhrase, isOpen, isLast }) {
  if (field === "source") return { is: "source", bit: oneOf(SOURCES, text, "A source is seen, heard or person") };
  if (field === "status") {
    const status = oneOf(STATUSES, text, `A status is ${Object.keys(STATUSES).join(", ")}`);
    return { is: "video", test: (row) => hasStatus(row, status) };
  }
  if (field === "score" || field === "duration") return comparison(field, text, isLast);
  const words = plain(text);
  if (words.trim() === "") {
    if (isLast) return null;
    throw new QueryError(`“${text}” has no letter and no digit to search for.`);
  }
  // A phrase is whole words, "ret"* and ret* begin so, and a plain word may be anywhere in one.
  const needle = isPhrase && !isOpen ? words : isOpen ? words.trimEnd() : words.trim();
  return { is: "words", field, needle, whole: words };
}

// The value that begins so; while it is typed it is not complete.
function oneOf(values, text, what) {
  const name = text && Object.keys(values).find((one) => one.startsWith(text.toLowerCase()));
  if (!name) throw new QueryError(`${what}, not “${text}”.`);
  return values[name];
}

function comparison(field, text, isLast) {
  const [, sign, number] = /^(>=|<=|>|<)?(.*)$/.exec(text);
  if (isLast && sign && !number) return null;
  const limit = field === "score" ? scoreOf(number) : secondsOf(number);
  if (!sign || !(limit >= 0)) throw new QueryError(`Write ${field} with >, >=, < or <=, as in ${field === "score" ? "score:>0.8" : "duration:>1:30"}.`);
  const compare = { ">": (x) => x > limit, ">=": (x) => x >= limit, "<": (x) => x < limit, "<=": (x) => x <= limit }[sign];
  return field === "score" ? { is: "score", compare } : { is: "video", test: (row) => row[ROW.duration] > 0 && compare(row[ROW.duration]) };
}

function scoreOf(text) { return /^(\d+\.?\d*|\.\d+)$/.test(text) && Number(text) <= 1 ? Number(text) : NaN; }

function secondsOf(text) {
  if (!/^(\d+:){0,2}(\d+\.?\d*|\.\d+)$/.test(text)) return NaN;
  return text.split(":").reduce((seconds, part) => seconds * 60 + Number(part), 0);
}

// -- what describes what, as in search_tree.py --------------------------------------------------

function isCondition(node) {
  if (node.part) return isCondition(node.part);
  return node.parts ? node.parts.every(isCondition) : node.is === "score" || node.is === "source";
}

function namesTags(node) {
  if (node.part) return namesTags(node.part);
  return node.parts ? node.parts.some(namesTags) : isCondition(node) || (node.is === "words" && node.field !== "path");
}

// The tree with score and source moved to the words beside them; its leaves are tag, path and video.
function described(node, given) {
  const both = (one, other) => (one ? { is: "and", parts: [one, other] } : other);
  if (isCondition(node)) return tagLeaf(null, both(given, node));
  if (node.is === "words") {
    const inPath = { is: "path", needle: node.needle };
    if (node.field === "path") return inPath;
    const tagged = tagLeaf(node, given);
    return node.field === "" && !given ? { is: "or", parts: [tagged, inPath], isAnywhere: true } : tagged;
  }
  if (node.is === "not") return { is: "not", part: described(node.part, given) };
  if (node.is === "or") return { is: "or", parts: node.parts.map((part) => described(part, given)) };
  if (node.is !== "and") return node;
  const rest = node.parts.filter((part) => !isCondition(part));
  const own = node.parts.filter(isCondition).reduce(both, given);
  const parts = rest.map((part) => described(part, rest.length < node.parts.length ? own : given));
  if (rest.length < node.parts.length && !rest.some(namesTags)) return { is: "and", parts: [...rest.map((part) => described(part, given)), tagLeaf(null, own)] };
  return { is: "and", parts };
}

// Looks every name up once, so that a video's tags are numbers in a table.
function tagLeaf(words, fits) {
  const table = words && Uint8Array.from(vtag.tags, (_, at) => isNamed(words, vtag.names[at], vtag.groups[at], vtag.ids[at]));
  const has = ([at, , , , name]) => !words || (at >= 0 ? table[at] === 1 : isNamed(words, plain(name), "", ""));
  return { is: "tag", test: (tag) => has(tag) && (!fits || tagFits(fits, tag)) };
}

function isNamed({ field, needle, whole }, name, groups, id) {
  if (field === "category") return groups.includes(needle) || name === whole;
  return name.includes(needle) || id === whole || (field === "" && groups.includes(needle));
}

function tagFits(node, tag) {
  if (node.is === "not") return !tagFits(node.part, tag);
  if (node.parts) return node.parts[node.is === "and" ? "every" : "some"]((part) => tagFits(part, tag));
  return node.is === "score" ? node.compare(tag[1]) : (tag[2] & node.bit) !== 0;
}

// -- answers ------------------------------------------------------------------------------------

// Whether a video is found.
function holds(node, row) {
  switch (node.is) {
    case "and": return node.parts.every((part) => holds(part, row));
    case "or": return node.parts.some((part) => holds(part, row));
    case "not": return !holds(node.part, row);
    case "tag": return row.marks.some(node.test);
    case "path": return row.words.includes(node.needle);
    default: return node.test(row);
  }
}

function asksForTags(node) { return node.parts ? node.parts.some(asksForTags) : node.is === "tag"; }

// The leaves whose tags a video shows that was found; a part of an OR that does not hold has none.
function askedLeaves(node, row) {
  if (node.parts) return node.parts.flatMap((part) => (node.is === "and" || holds(part, row) ? askedLeaves(part, row) : []));
  return node.is === "tag" ? [node] : [];
}

// The tree without what only a video has: paths, status, duration. Null if nothing is left.
function ofTagsAlone(node) {
  if (node.is === "video" || node.is === "path") return null;
  if (node.is === "not") { const part = ofTagsAlone(node.part); return part && { is: "not", part }; }
  if (!node.parts) return node;
  const parts = node.parts.map(ofTagsAlone).filter(Boolean);
  return parts.length ? { is: node.is, parts } : null;
}

// Whether the query names something that only a video has; a plain word is also looked for in paths.
function asksOfVideos(node) {
  if (node.part) return asksOfVideos(node.part);
  if (node.parts) return !node.isAnywhere && node.parts.some(asksOfVideos);
  return node.is === "video" || node.is === "path";
}

function showHint(text) {
  const hint = document.getElementById("hint");
  hint.textContent = text;
  hint.hidden = !text;
}
