// The chooser of the front page: machine, workload, latency and quality; the least cost there with its runner-up.
"use strict";

(() => {
  const { word, el, sig } = jouleboard;
  const form = document.getElementById("chooser");
  const answer = document.getElementById("answer");
  if (!form || !answer || !jouleboard.boards.length) return;
  const fields = form.elements;
  const boards = jouleboard.boards.filter((one) => one.kind === "variants");
  const defaults = { machine: boards[0].hardware + boards[0].method, cell: boards[0].key, first: "" };

  function machines() {
    const found = new Map(boards.map((one) => [one.hardware + one.method, one.machine]));
    jouleboard.options(fields.machine, Array.from(found));
  }

  function cells() {
    const mine = boards.filter((one) => one.hardware + one.method === fields.machine.value);
    jouleboard.options(fields.cell, mine.map((one) => [one.key, mine.filter((other) => other.cell === one.cell).length > 1 ? `${one.cell} (${one.models.join(", ")})` : one.cell]));
  }

  const floor = (board) => (board && board.floor !== null ? String(board.floor) : "-1");

  function tiers() {
    const board = boards.find((one) => one.key === fields.cell.value);
    jouleboard.options(fields.tier, [["-1", word("any")], ...(board ? board.tiers : []).map((one) => [String(one), `≥ ${jouleboard.fixed(one / 10, 1)}`])]);
    fields.tier.value = floor(board);
  }

  function line(row, board, best) {
    const cost = el("span", { class: "answer-cost" }, el("span", { class: "num" }, jouleboard.figure(row.cost)), " ", el("span", { class: "unit" }, word(`unit-${board.simulated ? "sim" : board.cpu ? "cpu" : "j"}`)));
    const flag = row.base ? word("standing-base") : word(`standing-${row.standing}`, { drift: row.drift || "" });
    return el("li", { class: best ? "answer-best" : "answer-next" },
      el("span", { class: "answer-place" }, word(best ? "best" : "runner-up")),
      el("a", { href: jouleboard.entry(row.entry) }, board.models.length > 1 ? `${row.model}: ${row.name}` : row.name), cost,
      el("span", { class: "ci" }, jouleboard.range(row.cost) || word("no-interval")),
      el("span", { class: "answer-quality" }, `${word("quality")} ${row.quality[1]}`),
      el("span", { class: `flag flag-${row.standing}` }, flag));
  }

  function show(board) {
    const least = Number(fields.tier.value) < 0 ? -Infinity : Number(fields.tier.value) / 10;
    const first = jouleboard.number(fields.first.value);
    const kept = board.rows.filter((row) => row.rank !== undefined && row.quality && row.cost && row.quality[0] >= least && (first === null || row.first <= first))
      .sort((one, other) => one.cost[0] - other.cost[0]);
    const title = el("p", { class: "answer-title" }, word(board.simulated ? "answer-simulated" : kept.length ? (board.cpu ? "answer-cpu" : "answer-j") : "answer-none"));
    const list = el("ol", {}, ...kept.slice(0, 2).map((row, index) => line(row, board, index === 0)));
    const more = el("p", {}, el("a", { href: `${document.documentElement.dataset.home}boards/${board.key}/index.html` }, word("whole-board", { count: board.entries })));
    answer.replaceChildren(title, ...(kept.length ? [list] : []), more);
    const [mine, theirs] = kept.slice(0, 2).map((row) => jouleboard.bounds(row.cost));
    if (mine && theirs && mine[1] >= theirs[0]) more.before(el("p", { class: "muted" }, word("overlap")));
    answer.dataset.best = kept.length ? kept[0].entry : "";
    answer.dataset.cost = kept.length ? sig(kept[0].cost[0]) : "";
  }

  function draw() {
    jouleboard.remember(jouleboard.values(form), { ...defaults, tier: floor(boards.find((one) => one.key === fields.cell.value)) });
    jouleboard.load(fields.cell.value, show);
  }

  machines();
  const saved = jouleboard.state();
  jouleboard.fill(form, saved);
  cells();
  jouleboard.fill(form, saved);
  tiers();
  jouleboard.fill(form, saved);
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => {
    if (event.target.name === "machine") cells();
    if (event.target.name !== "tier" && event.target.name !== "first") tiers();
    draw();
  });
  jouleboard.load(fields.cell.value, show);
})();
