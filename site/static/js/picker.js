// The budget picker: what a load costs on each entry, by the models that were fitted to its probes. `jouleboard.picking` (Python) is the same
// arithmetic, and a test holds the two together to the last digits.
"use strict";

(() => {
  const { word, el, sig } = jouleboard;
  const DAY_S = 86400;
  const JOULES_A_WH = 3600;

  /** Cost of a request at a batch: a0, a1, a2 of the prefill, d0, d1, d2 of a decode step. */
  function request([a0, a1, a2, d0, d1, d2], load) {
    const steps = Math.max(load.output - 1, 0);
    const fixed = a0 + steps * d0;
    const each = a1 * load.prompt + a2 * load.prompt ** 2 + steps * (d1 + d2 * (load.prompt + load.output / 2));
    return fixed / load.batch + each;
  }

  function times(terms, load) {
    if (!terms) return { first: null, next: null, busy: null };
    const [a0, a1, a2, d0, d1, d2] = terms;
    return {
      first: a0 + a1 * load.batch * load.prompt + a2 * load.batch * load.prompt ** 2,
      next: d0 + d1 * load.batch + d2 * load.batch * (load.prompt + load.output / 2),
      busy: request(terms, load) * load.requests,
    };
  }

  function outside([prompts, batches, contexts], load) {
    const holds = ([low, high], value) => low <= value && value <= high;
    if (!holds(prompts, load.prompt) || !holds(batches, load.batch)) return true;
    return load.output > 1 && !(holds(contexts, load.prompt + 1) && holds(contexts, load.prompt + load.output - 1));
  }

  function choice(row, board, load) {
    const fit = row.fit;
    const cost = request(fit.cost, load);
    const { first, next, busy } = times(fit.time, load);
    const known = fit.idle_w !== null && fit.per_unit !== null && busy !== null && busy <= DAY_S;
    const day = known ? (fit.idle_w * (board.cpu ? DAY_S : DAY_S - busy) + cost * fit.per_unit * load.requests) / JOULES_A_WH : null;
    return { row, cost, first, next, busy, day, outside: outside(fit.spans, load) };
  }

  function keeps(one, limits) {
    const within = (limit, value) => limit === null || (value !== null && value !== undefined && value <= limit);
    if (one.busy !== null && one.busy > DAY_S) return false;
    return within(limits.memory, one.row.memory) && within(limits.first, one.first) && within(limits.next, one.next) && within(limits.day, one.day)
      && (limits.quality === null || (one.row.quality && one.row.quality[0] >= limits.quality));
  }

  /** Those that keep every limit, least cost first. */
  function pick(board, load, limits) {
    return board.rows.filter((row) => row.rank !== undefined && row.fit).map((row) => choice(row, board, load)).filter((one) => keeps(one, limits))
      .sort((one, other) => one.cost - other.cost || (one.row.entry < other.row.entry ? -1 : 1));
  }

  jouleboard.pick = pick;

  const form = document.getElementById("picker");
  const result = document.getElementById("picked");
  if (!form || !result) return;
  const defaults = jouleboard.values(form);

  function asked() {
    const found = jouleboard.values(form);
    const whole = (name) => Math.max(1, Math.round(jouleboard.number(found[name]) ?? Number(defaults[name])));
    const limit = (name, scale) => { const value = jouleboard.number(found[name]); return value === null ? null : value * scale; };
    return {
      load: { prompt: whole("prompt"), output: whole("output"), batch: whole("batch"), requests: jouleboard.number(found.requests) ?? Number(defaults.requests) },
      limits: { memory: limit("memory", 1e9), first: limit("first", 1e-3), next: limit("next", 1e-3), quality: limit("quality", 1), day: limit("wh", 1) },
    };
  }

  function cell(text, missing) { return el("td", {}, text === null ? el("span", { class: "none" }, missing || word("unknown")) : text); }

  /** Cost as predicted, and as it was measured where the load is the board's own request. */
  function costCell(one, board, load) {
    const shown = cell(`${sig(one.cost)} ${board.cpu ? "CPU-s" : "J"}`);
    const same = load.prompt === board.prompt && load.output === board.output && load.batch === board.batch;
    if (same && one.row.cost) shown.append(el("span", { class: "sub" }, word("as-measured", { cost: one.row.cost[1] })));
    return shown;
  }

  function table(found, board, load) {
    const unit = word(board.cpu ? "unit-cpu" : "unit-j");
    const heads = ["entry", "request", "day", "first", "next", "memory", "quality"].map((name) => el("th", { scope: "col", class: name === "entry" ? "c-name" : "" }, word(`pick-${name}`, { unit })));
    const body = found.slice(0, 10).map((one, index) => el("tr", { class: index ? "" : "is-best" },
      el("th", { scope: "row", class: "c-name" }, el("a", { href: jouleboard.entry(one.row.entry) }, board.models.length > 1 ? `${one.row.model}: ${one.row.name}` : one.row.name),
        el("span", { class: "sub" }, [index === 0 ? word("best") : index === 1 ? word("runner-up") : "", one.outside ? word("outside") : ""].filter(Boolean).join("; "))),
      costCell(one, board, load), cell(one.day === null ? null : `${sig(one.day)} Wh`), cell(one.first === null ? null : `${sig(one.first * 1000, 2)} ms`),
      cell(one.next === null ? null : `${sig(one.next * 1000, 2)} ms`), cell(one.row.memory === undefined ? null : `${jouleboard.megabytes(one.row.memory)} MB`),
      cell(one.row.quality ? one.row.quality[1] : null)));
    return el("div", { class: "scroll", role: "group", tabindex: "0", "aria-labelledby": "h-picked" },
      el("table", {}, el("caption", { class: "visually-hidden" }, word("picked-caption")), el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...body)));
  }

  function show(board) {
    const { load, limits } = asked();
    const found = pick(board, load, limits);
    const fitted = board.rows.filter((row) => row.rank !== undefined && row.fit).length;
    const lead = el("p", { class: "answer-title" });
    if (!found.length) lead.append(word(fitted ? "none-keeps" : "none-fitted", { count: fitted }));
    else {
      const [best, next] = found;
      lead.append(el("strong", {}, best.row.name), " ", word("best-costs", { cost: `${sig(best.cost)} ${board.cpu ? "CPU-s" : "J"}` }));
      if (best.day !== null) lead.append(" ", word(board.cpu ? "best-day-estimate" : "best-day", { wh: sig(best.day), share: board.uncertainty ? jouleboard.fixed(board.uncertainty * 100, 0) : "?" }));
      if (next) lead.append(" ", word("next-costs", { name: next.row.name, more: jouleboard.fixed((next.cost / best.cost - 1) * 100, 1) }));
    }
    result.replaceChildren(lead, ...(found.length ? [table(found, board, load)] : []), el("p", { class: "muted" }, word("kept", { kept: found.length, fitted })));
    result.dataset.ready = board.key;
  }

  function draw() {
    jouleboard.remember(jouleboard.values(form), { ...defaults, board: jouleboard.boards[0].key });
    jouleboard.fitted(form.elements.board.value, show);
  }

  const offered = jouleboard.boards.filter((one) => one.kind === "variants" && one.serving && !one.simulated);
  const machines = new Map(offered.map((one) => [`${one.hardware} ${one.method} ${one.models.join()}`, one]));
  if (!machines.size) { result.replaceChildren(el("p", {}, word("none-fitted", { count: 0 }))); return; }
  jouleboard.options(form.elements.board, Array.from(machines.values()).map((one) => [one.key, `${one.machine}: ${one.models.join(", ")}`]));
  defaults.board = form.elements.board.value;
  /** Without a word on quality, answers begin at the tier of the base: a cheap variant that answers nothing is no bargain. */
  const floor = () => { const { floor: tier } = jouleboard.boards.find((one) => one.key === form.elements.board.value) || {}; return tier > 0 ? jouleboard.fixed(tier / 10, 1) : ""; };
  const saved = jouleboard.state();
  if (saved.has("board")) form.elements.board.value = saved.get("board");
  if (!form.elements.board.value) form.elements.board.value = defaults.board;
  defaults.quality = form.elements.quality.value = floor();
  saved.delete("board");
  jouleboard.fill(form, saved);
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.name === "board") {
      const before = defaults.quality;
      defaults.quality = floor();
      if (form.elements.quality.value === before) form.elements.quality.value = defaults.quality;
    }
    draw();
  });
  jouleboard.fitted(form.elements.board.value, show);
})();
