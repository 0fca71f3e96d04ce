// Entries of one board side by side, in the factors of the cost of a correct answer: cost a token x tokens an answer / share correct.
"use strict";

(() => {
  const { word, el, sig } = jouleboard;
  const form = document.getElementById("compare");
  const result = document.getElementById("compared");
  if (!form || !result || !jouleboard.boards.length) return;
  let board = null;

  function lines() {
    const unit = board.unit;
    const ratio = (pick) => (row, first) => (pick(row) === null || !pick(first) ? "" : `× ${sig(pick(row) / pick(first))}`);
    const factor = (index) => (row) => (row.correct ? row.correct[index] : null);
    const correct = board.rows.some((row) => row.correct);
    return [
      ["quality", (row) => (row.quality ? row.quality[1] : null), null],
      ["cost", (row) => (row.cost ? `${jouleboard.figure(row.cost)} ${unit} ${jouleboard.range(row.cost)}` : null), ratio((row) => (row.cost ? row.cost[0] : null))],
      ["token", (row) => (row.correct ? `${sig(row.correct[0])} ${unit}` : null), ratio(factor(0))],
      ["tokens", (row) => (row.correct ? sig(row.correct[1]) : null), ratio(factor(1))],
      ["share", (row) => (row.correct ? sig(row.correct[2]) : null), ratio(factor(2))],
      ["correct", (row) => (row.correct ? `${sig(row.correct[3])} ${unit}${row.correct[4] === null ? "" : ` [${sig(row.correct[4])}, ${sig(row.correct[5])}]`}` : null), ratio(factor(3))],
      ["verdict", (row) => word(row.base ? "standing-base" : `verdict-${row.verdict || "none"}`), null],
      ["ratio", (row) => (row.ratio ? `${jouleboard.figure(row.ratio)} × ${jouleboard.range(row.ratio)}` : null), null],
      ["first", (row) => (row.first === undefined ? null : `${sig(row.first, 2)} s`), ratio((row) => row.first ?? null)],
      ["weights", (row) => (row.weights === undefined ? null : `${jouleboard.megabytes(row.weights)} MB`), ratio((row) => row.weights ?? null)],
      ["memory", (row) => (row.memory === undefined ? null : `${jouleboard.megabytes(row.memory)} MB`), ratio((row) => row.memory ?? null)],
      ["trust", (row) => row.trust || null, null],
    ].filter(([name]) => correct || !["token", "tokens", "share", "correct"].includes(name));
  }

  function chosen() {
    return Array.from(form.querySelectorAll("input[name=entry]:checked")).map((one) => board.rows.find((row) => row.entry === one.value)).filter(Boolean);
  }

  function show() {
    const rows = chosen();
    jouleboard.remember({ board: board.key, entries: rows.map((row) => row.entry).join(",") }, {});
    if (rows.length < 2) { result.replaceChildren(el("p", { class: "answer-title" }, word("choose-two"))); return; }
    const head = el("tr", {}, el("th", { scope: "col", class: "c-name" }, word("compare-what")),
      ...rows.map((row) => el("th", { scope: "col" }, el("a", { href: jouleboard.entry(row.entry) }, board.models.length > 1 ? `${row.model}: ${row.name}` : row.name))));
    const body = lines().map(([name, value, against]) => el("tr", {}, el("th", { scope: "row", class: "c-name" }, word(`compare-${name}`)),
      ...rows.map((row, index) => {
        const text = value(row);
        const factor = index && against && text !== null ? against(row, rows[0]) : "";
        return el("td", {}, text === null ? el("span", { class: "none" }, word("unmeasured")) : el("span", { class: "num" }, text), factor ? el("span", { class: "sub" }, factor) : null);
      })));
    result.replaceChildren(...[el("div", { class: "scroll", role: "group", tabindex: "0", "aria-labelledby": "h-compared" },
      el("table", {}, el("caption", { class: "visually-hidden" }, word("compare-caption")), el("thead", {}, head), el("tbody", {}, ...body))),
    board.rows.some((row) => row.correct) ? null : el("p", { class: "key" }, word("compare-elsewhere")), el("p", { class: "key" }, word("compare-key"))].filter(Boolean));
  }

  function offer(found) {
    board = found;
    const wanted = new Set((jouleboard.state().get("entries") || "").split(",").filter(Boolean));
    const rows = found.rows.filter((row) => row.cost).slice(0, 200);
    const first = wanted.size ? rows.filter((row) => wanted.has(row.entry)) : [...rows.filter((row) => row.base), ...rows.filter((row) => !row.base)].slice(0, 2);
    document.getElementById("entries").replaceChildren(el("legend", {}, word("choose-entries")), ...rows.map((row) => {
      const box = el("input", { type: "checkbox", name: "entry", value: row.entry });
      box.checked = first.includes(row);
      return el("label", { class: "check" }, box, " ", found.models.length > 1 ? `${row.model}: ${row.name}` : row.name);
    }));
    show();
  }

  // First those that know what a correct answer costs.
  const offered = jouleboard.boards.filter((one) => !one.simulated).sort((one, other) => Number(one.serving) - Number(other.serving));
  if (!offered.length) { result.replaceChildren(el("p", {}, word("choose-two"))); return; }
  jouleboard.options(form.elements.board, offered.map((one) => [one.key, `${one.machine}, ${one.cell}: ${one.models.join(", ")}`]));
  jouleboard.fill(form, jouleboard.state());
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.name !== "board") { show(); return; }
    jouleboard.remember({}, {});
    jouleboard.fitted(form.elements.board.value, offer);
  });
  jouleboard.fitted(form.elements.board.value, offer);
})();
