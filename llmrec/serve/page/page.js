// The page of `llmrec serve`. Titles and fields come from a catalogue and are never read as HTML: all text is set by
// textContent, and the service forbids scripts, styles and connections from anywhere else.
"use strict";

const byId = (id) => document.getElementById(id);
const SCORES = { sid: "Semantic IDs", items: "Item rows", mixture: "Mixture", ground: "Titles" };
const OPERATORS = {
  number: { "at least": ">=", "at most": "<=", is: "=" },
  text: { is: "=", contains: "replace" },
  list: { includes: "array_contains", "does not include": "NOT array_contains" },
  boolean: { "is true": "", "is false": "NOT" },
  sql: { "SQL": "" },
};
const SQL = "\u0000sql"; // no column has this name
const MOST_DETAILS = 100; // items that one request describes
const PAGE_SIZE = 10;
const SHOWN_EFFECTS = 8; // items of a history whose effect is seen at once

const state = { catalog: null, history: [], k: PAGE_SIZE, key: null, answered: null };
const known = new Map(); // item_id -> described item

// ---- small helpers

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && key !== "list") made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function bar(share, kind = "span") {
  const inner = element("span");
  inner.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return element(kind, { class: "bar", "aria-hidden": "true" }, inner);
}

const percent = (share) =>
  share < 1e-4 ? "<\u00a00.01\u00a0%" : `${(share * 100).toLocaleString("en", { minimumFractionDigits: share < 0.01 ? 2 : 1, maximumFractionDigits: share < 0.01 ? 2 : 1 })}\u00a0%`;
const titleOf = (item) => item.title || item.item_id;
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const factor = (times) => times.toLocaleString("en", { minimumFractionDigits: times < 2 ? 2 : 0, maximumFractionDigits: times < 2 ? 2 : times < 10 ? 1 : 0 });

function later(milliseconds, action) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}

/** One request at a time: a newer one cancels the one before. */
function latest() {
  let controller = null;
  return () => {
    controller?.abort();
    controller = new AbortController();
    return controller.signal;
  };
}

async function ask(path, body, signal) {
  const headers = state.key ? { Authorization: `Bearer ${state.key}` } : {};
  const options = body === undefined ? { headers, signal } : {
    method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
  };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached. Is it still running?");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  const problem = new Error(answer?.error?.message ?? `The service answered ${response.status}.`);
  problem.status = response.status;
  throw problem;
}

/** Describe items that are not known yet; whatever the service does not know stays unknown. */
async function describe(itemIds, signal) {
  const missing = [...new Set(itemIds)].filter((itemId) => !known.has(itemId));
  for (let start = 0; start < missing.length; start += MOST_DETAILS) {
    const query = new URLSearchParams(missing.slice(start, start + MOST_DETAILS).map((itemId) => ["item_id", itemId]));
    remember((await ask(`v1/items?${query}`, undefined, signal)).items);
  }
}

function remember(items) {
  for (const item of items) known.set(item.item_id, item);
  return items;
}

function facts(item) {
  const parts = Object.values(item?.fields ?? {}).slice(0, 4).map((value) => (Array.isArray(value) ? value.join(", ") : String(value)));
  return parts.join(" · ");
}

function picture(item) {
  return item?.picture ? element("img", { class: "picture", src: item.picture, alt: "", loading: "lazy", referrerPolicy: "no-referrer" }) : null;
}

// ---- problems

function showProblem(problem, retry) {
  const box = byId("problem");
  if (problem === null) return box.replaceChildren();
  byId("status").textContent = "";
  if (problem.status === 401) {
    const field = element("input", { type: "password", id: "key", autocomplete: "off" });
    const form = element("form", { onsubmit: (event) => { event.preventDefault(); useKey(field.value); } },
      element("div", {}, element("label", { htmlFor: "key" }, "API key"), field), element("button", { type: "submit" }, "Use this key"));
    box.replaceChildren(element("div", {}, element("strong", {}, "This service needs an API key."), form));
    return field.focus();
  }
  const again = element("button", { type: "button", onclick: retry }, "Try again");
  box.replaceChildren(element("div", {}, element("strong", {}, "That did not work."), element("p", {}, problem.message), again));
}

function useKey(key) {
  state.key = key;
  sessionStorage.setItem("llmrec-key", key);
  start();
}

// ---- history

function drawHistory() {
  const list = byId("history");
  list.replaceChildren(...state.history.map((itemId, place) => {
    const item = known.get(itemId) ?? { item_id: itemId, title: null };
    const remove = element("button", { type: "button", "aria-label": `Remove ${titleOf(item)}`, onclick: () => removeAt(place) }, "×");
    const details = known.has(itemId) ? facts(item) : "unknown to the model, so left out";
    return element("li", {}, picture(item), element("div", {}, element("span", { class: "title" }, titleOf(item)), element("span", { class: "facts" }, details)), remove);
  }));
  byId("clear").hidden = state.history.length === 0;
  byId("suggested").hidden = state.history.length > 0 || !byId("suggested").querySelector("li");
  const hash = new URLSearchParams(state.history.map((itemId) => ["item", itemId])).toString();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function changeHistory(itemIds, said) {
  state.history = itemIds;
  state.k = PAGE_SIZE;
  byId("search-note").textContent = said;
  drawHistory();
  recommend();
}

function add(item) {
  known.set(item.item_id, item);
  if (state.history.at(-1) === item.item_id) {
    byId("search-note").textContent = `${titleOf(item)} is the latest item already.`;
    return;
  }
  if (state.history.length >= state.catalog.max_history) {
    byId("search-note").textContent = `A history has at most ${plural(state.catalog.max_history, "item")}.`;
    return;
  }
  changeHistory([...state.history, item.item_id], `${titleOf(item)} added.`);
}

function removeAt(place) {
  const item = known.get(state.history[place]) ?? { item_id: state.history[place] };
  changeHistory(state.history.toSpliced(place, 1), `${titleOf(item)} removed.`);
  (byId("history").querySelectorAll("button")[Math.min(place, state.history.length - 1)] ?? byId("search")).focus();
}

// ---- search: the combobox pattern of the ARIA Authoring Practices

const search = { input: byId("search"), list: byId("found"), items: [], query: "", active: -1, signal: latest() };

function closeSearch() {
  search.list.hidden = true;
  search.active = -1;
  search.input.setAttribute("aria-expanded", "false");
  search.input.removeAttribute("aria-activedescendant");
}

function activate(place) {
  search.active = place;
  [...search.list.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === place)));
  search.list.children[place].scrollIntoView({ block: "nearest" });
  search.input.setAttribute("aria-activedescendant", `found-${place}`);
}

function choose(place) {
  const item = search.items[place];
  search.input.value = "";
  closeSearch();
  add(item);
}

const find = later(120, async () => {
  const query = search.input.value.trim();
  const signal = search.signal();
  if (!query) {
    byId("search-note").textContent = "";
    return closeSearch();
  }
  try {
    const { items } = await ask(`v1/items?${new URLSearchParams({ query, limit: 10 })}`, undefined, signal);
    search.items = remember(items);
    search.query = query;
    search.list.replaceChildren(...items.map((item, place) => element("li",
      { id: `found-${place}`, role: "option", "aria-selected": "false", onmousedown: (event) => event.preventDefault(), onclick: () => choose(place) },
      element("span", { class: "title" }, titleOf(item)), element("span", { class: "facts" }, facts(item)))));
    byId("search-note").textContent = items.length ? `${plural(items.length, "title")} found; choose with the arrow keys and Enter.` : `No title has “${query}”.`;
    closeSearch();
    search.list.hidden = items.length === 0;
    search.input.setAttribute("aria-expanded", String(items.length > 0));
  } catch (error) {
    if (error.name !== "AbortError") showProblem(error, find);
  }
});

search.input.addEventListener("input", find);
search.input.addEventListener("focus", () => search.input.value && find());
search.input.addEventListener("blur", closeSearch);
search.input.addEventListener("keydown", (event) => {
  const open = !search.list.hidden, last = search.items.length - 1;
  if (event.key === "Escape" && open) closeSearch();
  else if (event.key === "ArrowDown" && open) activate(search.active >= last ? 0 : search.active + 1);
  else if (event.key === "ArrowUp" && open) activate(search.active <= 0 ? last : search.active - 1);
  else if (event.key === "Enter" && open) search.query === search.input.value.trim() && choose(Math.max(0, search.active));
  else return;
  event.preventDefault();
});

// ---- filters

function sqlOf(row) {
  const [column, operator, value] = ["column", "operator", "value"].map((name) => row.querySelector(`[name=${name}]`)?.value.trim() ?? "");
  if (row.dataset.kind === "sql") return value || null;
  const name = `"${column.replaceAll('"', '""')}"`, text = `'${value.replaceAll("'", "''")}'`;
  const sign = OPERATORS[row.dataset.kind][operator];
  if (row.dataset.kind === "boolean") return `${sign} ${name}`.trim();
  if (!value) return null;
  if (row.dataset.kind === "number") return Number.isFinite(Number(value)) ? `${name} ${sign} ${Number(value)}` : null;
  if (row.dataset.kind === "list") return `${sign}(${name}, ${text})`;
  // in ILIKE, % and _ of a value would stand for other characters
  return sign === "replace" ? `replace(lower(${name}), lower(${text}), '') != lower(${name})` : `${name} = ${text}`;
}

let numberOfConditions = 0;

function addCondition() {
  const columns = state.catalog.columns, number = ++numberOfConditions;
  const named = (what) => `Condition ${number}: ${what}`;
  const column = element("select", { name: "column", "aria-label": named("column") },
    ...columns.map(({ name }) => element("option", { value: name }, name)), element("option", { value: SQL }, "SQL condition"));
  const row = element("div", { class: "condition", role: "group", "aria-label": `Condition ${number}` });

  function draw() {
    const chosen = columns.find(({ name }) => name === column.value) ?? { kind: "sql" };
    row.dataset.kind = chosen.kind;
    row.classList.toggle("sql", chosen.kind === "sql");
    const operator = element("select", { name: "operator", "aria-label": named("comparison"), onchange: refilter },
      ...Object.keys(OPERATORS[chosen.kind]).map((label) => element("option", { value: label }, label)));
    const remove = element("button", { type: "button", "aria-label": `Remove condition ${number}`, onclick: () => { row.remove(); refilter(); byId("add-condition").focus(); } }, "×");
    const value = chosen.kind === "boolean" ? element("span", { class: "spread" }) : valueField(chosen, named("value"));
    row.replaceChildren(column, ...(chosen.kind === "sql" ? [] : [operator]), element("div", { class: "value" }, value, remove));
  }

  column.addEventListener("change", () => { draw(); column.focus(); refilter(); });
  const first = columns.find(({ kind }) => kind === "list") ?? columns[0];
  if (first) column.value = first.name;
  draw();
  byId("conditions").append(row);
  row.querySelector("[name=value]")?.focus();
}

function valueField(column, label) {
  const shared = { name: "value", "aria-label": label };
  if (column.kind === "sql") {
    return element("input", { ...shared, type: "text", maxLength: 500, spellcheck: false, placeholder: "year >= 2010 AND …", oninput: refilter });
  }
  if (column.kind === "number") {
    const range = column.least === null ? "" : `${column.least} to ${column.most}`;
    return element("input", { ...shared, type: "number", step: "any", placeholder: range, oninput: refilter });
  }
  const values = column.values ?? [];
  if (values.length && values.length < 50) {
    return element("select", { ...shared, onchange: refilter }, element("option", { value: "" }, "choose…"),
      ...values.map((value) => element("option", { value }, value)));
  }
  return element("input", { ...shared, type: "text", maxLength: 200, placeholder: values.slice(0, 2).join(", "), oninput: refilter });
}

function request() {
  const most = byId("popularity").value;
  const rank = document.querySelector("input[name=rank]:checked")?.value;
  return {
    history: state.history,
    exclude: byId("seen").checked ? "seen" : null,
    where: [...byId("conditions").children].map(sqlOf).filter((condition) => condition !== null),
    max_popularity: most === "" ? null : Number(most),
    ...(state.catalog.ranks.length > 1 && rank ? { rank } : {}),
  };
}

function drawFilters() {
  const { popularity, columns, ranks } = state.catalog;
  const labels = { 0.99: "without the most popular 1 %", 0.9: "without the most popular 10 %", 0.5: "only the less popular half" };
  byId("popularity").replaceChildren(element("option", { value: "" }, "all items"), ...popularity.toReversed().map(({ share, interactions }) =>
    element("option", { value: interactions }, `${labels[share] ?? share} (at most ${plural(interactions, "interaction")})`)));
  byId("popularity-field").hidden = popularity.length === 0;
  const shown = columns.slice(0, 3).map(({ name }) => name).join(columns.length > 3 ? ", " : " or ");
  byId("add-condition").hidden = columns.length === 0;
  byId("add-condition").textContent = `Add a condition on ${columns.length > 3 ? `${shown}, …` : shown}`;
  byId("ranks").hidden = ranks.length < 2;
  byId("ranks").querySelector(".segments").replaceChildren(...ranks.map((rank, place) =>
    element("label", {}, element("input", { type: "radio", name: "rank", value: rank, checked: place === 0, onchange: recommend }), element("span", {}, SCORES[rank] ?? rank))));
}

const refilter = later(250, () => { state.k = PAGE_SIZE; recommend(); });

// ---- recommendations

const answering = latest();

async function recommend() {
  const signal = answering(), card = document.querySelector(".results");
  if (!state.history.length) {
    byId("status").textContent = "";
    showProblem(null);
    card.removeAttribute("aria-busy");
    byId("results").replaceChildren();
    byId("more").hidden = true;
    return drawEmpty();
  }
  card.setAttribute("aria-busy", "true");
  byId("status").textContent = "Asking the model…";
  const asked = request(), started = performance.now();
  try {
    const answer = await ask("v1/recommend", { ...asked, k: state.k }, signal);
    const elapsed = performance.now() - started;
    await describe(answer.items.map((item) => item.item_id), signal);
    showProblem(null);
    drawResults(answer, asked, elapsed);
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("results").replaceChildren();
    byId("empty").replaceChildren();
    byId("more").hidden = true;
    showProblem(error, recommend);
  }
  card.removeAttribute("aria-busy");
}

function drawEmpty() {
  byId("empty").replaceChildren(
    element("h3", {}, "Recommendations appear here"),
    element("ul", {},
      element("li", {}, "Find a title that somebody liked, and add a second one if you want."),
      element("li", {}, "Filter what may be recommended."),
      element("li", {}, "Press “Why?” at a recommendation to see its reasons.")));
}

function drawResults(answer, asked, elapsed) {
  const { items, fallback, unknown } = answer;
  const rank = asked.rank ?? state.catalog.ranks[0];
  byId("status").textContent = items.length ? `${plural(items.length, "recommendation")} in ${Math.max(1, Math.round(elapsed))} ms` : "";
  const notes = [];
  if (fallback) notes.push("The model knows no item of this history, so these are the most popular items.");
  else if (unknown.length) notes.push(`Left out as unknown: ${unknown.slice(0, 5).join(", ")}${unknown.length > 5 ? ` and ${unknown.length - 5} more` : ""}.`);
  if (!items.length) notes.push("No item is left. Loosen a filter.");
  byId("empty").replaceChildren(...notes.map((note) => element("p", { class: "banner" }, note)));
  const isLikelihood = rank !== "ground";
  const best = items.length ? items[0].score : 0;
  byId("results").replaceChildren(...items.map((item, place) => drawResult(item, place, asked, isLikelihood ? Math.exp(item.score - best) : null, !fallback)));
  byId("more").hidden = items.length < state.k || state.k >= state.catalog.max_k;
}

function drawResult(item, place, asked, share, isExplained) {
  const more = known.get(item.item_id);
  const panel = element("div", { class: "why", id: `why-${place}`, role: "region", "aria-label": `Why ${titleOf(item)}`, hidden: true });
  const button = element("button", { type: "button", "aria-expanded": "false", "aria-controls": panel.id, "aria-label": `Why ${titleOf(item)}?` }, "Why?");
  button.addEventListener("click", () => toggle(button, panel, item, asked));
  const likely = share === null
    ? element("div", { class: "likely" }, item.score.toLocaleString("en", { maximumSignificantDigits: 4 }))
    : element("div", { class: "likely", title: `log-probability ${item.score.toFixed(4)}` }, percent(Math.exp(item.score)), bar(share));
  return element("li", { class: "result" },
    element("div", { class: "row" },
      element("span", { class: "place" }, `${place + 1}`), picture(more) ?? element("span"),
      element("div", {},
        element("span", { class: "title" }, titleOf(item)),
        element("span", { class: "facts" }, facts(more)),
        element("span", { class: "sid token", title: "semantic ID" }, (more?.sid ?? []).join(" "))),
      likely, isExplained ? button : null),
    panel);
}

// ---- why

async function toggle(button, panel, item, asked) {
  const opens = panel.hidden;
  panel.hidden = !opens;
  button.setAttribute("aria-expanded", String(opens));
  button.textContent = opens ? "Hide" : "Why?";
  button.setAttribute("aria-label", `${opens ? "Hide why" : "Why"} ${titleOf(item)}${opens ? "" : "?"}`);
  if (!opens || panel.dataset.loaded) return;
  panel.replaceChildren(element("p", { class: "note", role: "status" }, "Asking the model without each item of the history…"));
  try {
    const started = performance.now();
    const why = await ask("v1/explain", { ...asked, item_id: item.item_id });
    await describe(why.history.map((one) => one.item_id));
    panel.replaceChildren(...drawWhy(why, asked.rank ?? why.rank, performance.now() - started));
    panel.dataset.loaded = "yes";
  } catch (error) {
    panel.replaceChildren(element("p", { role: "alert" }, error.message));
  }
}

function drawWhy(why, rank, elapsed) {
  const score = why.scores[rank], effects = [...why.history];
  if (why.history.every((one) => one.changes !== null)) effects.sort((a, b) => b.changes[rank] - a.changes[rank]);
  const parts = [element("p", { class: "reason" }, ...reason(why, rank, effects, score))];
  parts.push(
    element("h3", {}, "What each item of the history does"),
    element("p", { class: "note" }, "The model is asked again without it. Right: it speaks for this recommendation; left: against it."),
    drawEffects(effects, rank, why));
  if (why.path.length) {
    parts.push(
      element("h3", {}, "The path to it"),
      element("p", { class: "note" }, "The model writes a semantic ID code by code. At each one it chooses among groups of items, which become smaller. Bars: probability of the code after those before it."),
      element("ol", { class: "path" }, ...why.path.map((fork, level) => drawFork(fork, level, why))));
  }
  const scores = Object.entries(why.scores);
  if (scores.length > 1) {
    parts.push(element("h3", {}, "How likely, by each score"),
      element("dl", { class: "scores" }, ...scores.map(([name, value]) =>
        element("div", {}, element("dt", {}, SCORES[name] ?? name), element("dd", { title: `log-probability ${value.toFixed(4)}` }, percent(Math.exp(value)))))));
  }
  parts.push(element("p", { class: "note" }, `Explained in ${Math.max(1, Math.round(elapsed))} ms.`));
  return parts;
}

function reason(why, rank, effects, score) {
  const strong = (text) => element("strong", {}, text);
  const shared = why.history.filter((one) => one.shared_levels > 0).sort((a, b) => b.shared_levels - a.shared_levels)[0];
  const codes = shared && why.path.length
    ? [" Its semantic ID begins like that of ", strong(titleOf(shared)), ` (${shared.shared_levels} of ${why.path.length} codes), so both are in one group of items.`] : [];
  if (effects[0].changes === null) return ["The history has this one item, so there is nothing to compare it with: ", strong(titleOf(effects[0])), ".", ...codes];
  const [first, second] = effects, times = Math.exp(first.changes[rank]);
  if (rank === "ground") return ["Most of it is due to ", strong(titleOf(first)), ".", ...codes];
  if (times < 1.05) return ["No single item of the history makes it much more likely; it fits the history as a whole.", ...codes];
  const sentence = ["Mostly because of ", strong(titleOf(first)), `: without it, this recommendation would be ${factor(times)} times less likely (${percent(Math.exp(score - first.changes[rank]))} instead of ${percent(Math.exp(score))}).`];
  const next = second ? Math.exp(second.changes[rank]) : 1;
  if (next >= 1.2) sentence.push(" Then because of ", strong(titleOf(second)), ` (${factor(next)} times).`);
  return [...sentence, ...codes];
}

function drawEffects(effects, rank, why) {
  const size = (one) => Math.abs(one.changes?.[rank] ?? 0);
  const most = Math.max(0.05, ...effects.map(size));
  const strong = new Set(effects.toSorted((one, other) => size(other) - size(one)).slice(0, SHOWN_EFFECTS));
  const list = (some) => element("ul", { class: "effects" }, ...some.map((one) => drawEffect(one, rank, most, why.path.length)));
  const shown = list(effects.filter((one) => strong.has(one)));
  if (effects.length <= SHOWN_EFFECTS) return shown;
  const rest = effects.filter((one) => !strong.has(one));
  return element("div", {}, shown, element("details", {}, element("summary", {}, `${plural(rest.length, "item")} that do less`), list(rest)));
}

function drawEffect(one, rank, most, numLevels) {
  const change = one.changes?.[rank], name = element("div", {}, element("span", {}, titleOf(one)));
  if (one.shared_levels) name.append(" ", element("span", { class: "shared" }, numLevels ? `shares ${one.shared_levels} of ${numLevels} codes` : `shares ${plural(one.shared_levels, "code")}`));
  if (change === undefined) return element("li", {}, name);
  const times = Math.exp(Math.abs(change)), kind = times < 1.02 ? "neutral" : change > 0 ? "for" : "against";
  const side = (which) => {
    const half = element("span");
    if (kind === which) {
      const fill = element("i", { class: which });
      fill.style.width = `${(Math.abs(change) / most) * 100}%`;
      half.append(fill);
    }
    return half;
  };
  const amount = { for: `${factor(times)}× more likely`, against: `${factor(times)}× less likely`, neutral: "no difference" }[kind];
  return element("li", {}, name, element("div", { class: "balance", "aria-hidden": "true" }, side("against"), side("for")),
    element("span", { class: `amount ${kind}`, title: `change of the log-probability: ${change.toFixed(4)}` }, amount));
}

function drawFork(fork, level, why) {
  const branches = [fork.chosen, ...fork.others].sort((a, b) => b.probability - a.probability);
  const rows = branches.map((branch) => drawBranch(branch, branch === fork.chosen));
  if (fork.num_more) rows.push(drawRest(plural(fork.num_more, "other code"), fork.more_probability, ""));
  const rest = 1 - branches.reduce((sum, branch) => sum + branch.probability, 0) - fork.more_probability;
  if (rest >= 0.005) rows.push(drawRest("elsewhere", rest, "no item that may be shown"));
  const last = level === why.path.length - 1;
  const score = Object.keys(why.scores).length > 1 ? " by its semantic ID" : "";
  const where = last ? `${percent(fork.mass)} for this item${score}` : `${percent(fork.mass)} so far, ${plural(fork.chosen.num_items, "item")} left`;
  return element("li", { "data-level": String(level + 1) },
    element("h4", {}, `Code ${level + 1}: `, element("span", { class: "token" }, fork.chosen.token), " ", element("small", {}, `— ${where}`)),
    element("ul", {}, ...rows));
}

function drawBranch(branch, isChosen) {
  const titles = branch.examples.map(titleOf), more = branch.num_items - titles.length;
  const below = branch.num_items === 1 ? titles.join("") : `${plural(branch.num_items, "item")}: ${titles.join(", ")}${more > 0 ? ", …" : ""}`;
  return element("li", { class: isChosen ? "branch chosen" : "branch" },
    element("span", { class: "token" }, branch.token, isChosen ? element("span", { class: "visually-hidden" }, " (taken)") : null),
    bar(branch.probability), element("span", { class: "percent" }, percent(branch.probability)), element("span", { class: "below" }, below));
}

function drawRest(name, probability, note) {
  return element("li", { class: "branch rest" }, element("span", {}, name), bar(probability), element("span", { class: "percent" }, percent(probability)), element("span", { class: "below" }, note));
}

// ---- start

async function start() {
  showProblem(null);
  byId("status").textContent = "Loading…";
  try {
    const [catalog, popular] = await Promise.all([ask("v1/catalog"), ask("v1/items?limit=8")]);
    state.catalog = catalog;
    byId("about").textContent = `${plural(catalog.items, "item")}${catalog.has_titles ? "" : ", without titles: the service was started without --catalog"}`;
    byId("suggested").querySelector("ul").replaceChildren(...remember(popular.items).map((item) =>
      element("li", {}, element("button", { type: "button", onclick: () => { add(item); search.input.focus(); } }, titleOf(item)))));
    drawFilters();
    await useIds(new URLSearchParams(location.hash.slice(1)).getAll("item"));
  } catch (error) {
    showProblem(error, start);
  }
}

async function useIds(itemIds) {
  await describe(itemIds);
  const unknown = itemIds.filter((itemId) => !known.has(itemId));
  changeHistory(itemIds, unknown.length ? `Unknown to the model: ${unknown.slice(0, 5).join(", ")}${unknown.length > 5 ? ", …" : ""}.` : "");
}

byId("paste").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const itemIds = byId("ids").value.split(/[\n,]/).map((itemId) => itemId.trim()).filter(Boolean);
  useIds(itemIds.slice(-state.catalog.max_history)).catch((error) => showProblem(error, start));
});
byId("clear").addEventListener("click", () => { changeHistory([], "History cleared."); search.input.focus(); });
byId("seen").addEventListener("change", recommend);
byId("popularity").addEventListener("change", refilter);
byId("add-condition").addEventListener("click", addCondition);
byId("more").addEventListener("click", () => { state.k = Math.min(state.k + PAGE_SIZE, state.catalog.max_k); recommend(); });
byId("filters").open = !matchMedia("(max-width: 58rem)").matches; // on a narrow screen they would hide the recommendations
state.key = sessionStorage.getItem("llmrec-key");
start();
