// The table of a board: sorted and filtered in the page, its state in the address. Without scripts the table that the page came with stays.
"use strict";

(() => {
  const { word, el, sig, megabytes } = jouleboard;
  const TIER = 1;  // Its column.
  const SVG = "http://www.w3.org/2000/svg";
  const place = document.getElementById("explorer");
  if (!place || typeof DataTable === "undefined") return;
  const form = document.getElementById("filters");
  const DEFAULTS = { q: "", model: "", technique: "", engine: "", tier: "", memory: "", first: "", unranked: "1", sort: "", page: "1" };

  function svg(tag, attributes) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  function bar(row, axis) {
    const drawn = svg("svg", { class: row.base ? "bar of-base" : "bar", viewBox: "0 0 132 18", width: 132, height: 18, "aria-hidden": "true", focusable: "false" });
    const x = (value) => (4 + (value - axis[0]) / (axis[1] - axis[0]) * 124).toFixed(1);
    const value = row.quality[0];
    const [low, high] = jouleboard.bounds(row.quality) || [value, value];
    const upright = (at, name, top) => svg("line", { class: name, x1: x(at), x2: x(at), y1: top, y2: 18 - top });
    drawn.append(svg("line", { class: "bar-track", x1: 4, x2: 128, y1: 9, y2: 9 }), upright(0, "bar-zero", 3));
    if (row.mark !== undefined) drawn.append(upright(row.mark, "bar-base", 1));
    drawn.append(svg("line", { class: "bar-ci", x1: x(low), x2: x(high), y1: 9, y2: 9 }), svg("circle", { class: "bar-dot", cx: x(value), cy: 9, r: 4.5 }));
    return drawn;
  }

  const none = (text) => el("span", { class: "none" }, text);

  function interval(found, unit, missing) {
    if (!found) return none(missing || word("unmeasured"));
    const made = el("span", {}, el("span", { class: "num" }, jouleboard.figure(found)));
    if (unit) made.append(" ", el("span", { class: "unit" }, unit));
    made.append(" ", el("span", { class: "ci" }, jouleboard.range(found) || word("no-interval")));
    return made;
  }

  function nameCell(row, many) {
    const made = el("span", {}, el("a", { href: jouleboard.entry(row.entry) }, many ? `${row.model}: ${row.name}` : row.name));
    const badges = el("span", { class: "badges" });
    if (row.base) badges.append(el("span", { class: "badge badge-base" }, word("base")));
    for (const code of row.badges || []) badges.append(el("span", { class: `badge ${word(`class-${code}`)}` }, word(`badge-${code}`)));
    if (row.trust) badges.append(el("span", { class: "badge badge-trust" }, row.trust));
    if (badges.childNodes.length) made.append(badges);
    return made;
  }

  function ratioCell(row) {
    if (row.base) return el("span", {}, el("span", { class: "num" }, "1"), el("span", { class: "flag" }, word("standing-base")));
    if (!row.ratio) return none(word("not-compared"));
    const flag = el("span", { class: `flag flag-${row.standing}` }, word(`standing-${row.standing}`, { drift: row.drift || "" }));
    return el("span", {}, interval(row.ratio, "×"), flag);
  }

  function qualityCell(row, axis) {
    if (!row.quality) return none(word("withheld"));
    return el("span", {}, bar(row, axis), el("span", { class: "beside" }, interval(row.quality)));
  }

  function rankCell(row) {
    if (row.rank === undefined) return el("span", { class: "none" }, "–");
    return el("span", {}, el("span", { class: "rank" }, String(row.rank)), row.set ? el("span", { class: "sub" }, row.set) : null);
  }

  const seconds = (value) => (value === undefined ? none(word("unmeasured")) : el("span", {}, el("span", { class: "num" }, sig(value, 2)), " s"));
  const bytes = (value) => (value === undefined ? none(word("unmeasured")) : el("span", {}, el("span", { class: "num" }, megabytes(value)), " ", el("span", { class: "unit" }, "MB")));

  /** DataTables makes markup of strings, of those to be searched too, and these hold what strangers wrote: it gets nodes, and nothing to search. */
  const text = (shown) => (shown instanceof Node ? shown : el("span", {}, String(shown)));

  function columns(board) {
    const first = (found) => (found ? found[0] : Infinity);
    const verdict = (row) => (row.base ? word("standing-base") : word(`verdict-${row.verdict || "none"}`));
    const techniques = (row) => (row.techniques || []).map((one) => word(`technique-${one}`)).join(", ");
    const found = [
      ["rank", rankCell, (row) => (row.rank === undefined ? Infinity : row.rank), "c-rank"],
      ["tier", (row) => (row.tier === undefined ? none("–") : jouleboard.tier(row.tier)), (row) => (row.tier === undefined ? -1 : row.tier), ""],
      ["name", (row) => nameCell(row, board.models.length > 1), (row) => row.name, "c-name"],
      ["quality", (row) => qualityCell(row, board.axis), (row) => (row.quality ? row.quality[0] : -Infinity), "c-quality"],
      ["cost", (row) => interval(row.cost, board.unit), (row) => first(row.cost), "c-cost"],
      ["ratio", ratioCell, (row) => (row.base ? 1 : first(row.ratio)), ""],
      ["verdict", (row) => el("span", { class: "wrapped" }, verdict(row)), verdict, ""],
      ["perkj", (row) => interval(row.perkj, "/kJ"), (row) => (row.perkj ? row.perkj[0] : -Infinity), board.cpu ? "c-estimate" : ""],
      ["weights", (row) => bytes(row.weights), (row) => row.weights ?? Infinity, ""],
      ["memory", (row) => bytes(row.memory), (row) => row.memory ?? Infinity, ""],
      ["technique", (row) => el("span", { class: "wrapped" }, techniques(row)), techniques, ""],
      ["engine", (row) => row.engine, (row) => row.engine, ""],
    ];
    if (board.serving) found.splice(8, 0, ["first", (row) => seconds(row.first), (row) => row.first ?? Infinity, ""]);
    return found.filter(([name]) => !board.simulated || !["ratio", "verdict", "perkj"].includes(name)).map(([name, show, order, look], index) => ({
      // What a kilojoule buys is compared inside a tier: a cheap model that answers little would win otherwise.
      name, orderData: name === "perkj" ? [TIER, index] : [index], className: look, type: name === "name" || name === "verdict" || name === "technique" || name === "engine" ? "string" : "num", data: null,
      title: word(`column-${name}`), cellType: name === "name" ? "th" : "td",
      createdCell: name === "name" ? (cell) => cell.setAttribute("scope", "row") : undefined,
      render: (_data, type, row) => (type === "display" ? text(show(row)) : type === "filter" ? "" : order(row)),
    }));
  }

  function keeps(row, wanted) {
    if (wanted.unranked !== "1" && row.rank === undefined) return false;
    if (wanted.model && row.model !== wanted.model) return false;
    if (wanted.technique && !(row.techniques || []).includes(wanted.technique)) return false;
    if (wanted.engine && row.engine !== wanted.engine) return false;
    if (wanted.tier && !(row.quality && row.quality[0] >= Number(wanted.tier) / 10)) return false;
    const memory = jouleboard.number(wanted.memory);
    if (memory !== null && !(row.memory <= memory * 1e9)) return false;
    const first = jouleboard.number(wanted.first);
    if (first !== null && !(row.first <= first)) return false;
    const text = wanted.q.trim().toLowerCase();
    return !text || `${row.name} ${row.model} ${row.engine}`.toLowerCase().includes(text);
  }

  function offer(board) {
    const any = ["", word("any")];
    const distinct = (pick) => Array.from(new Set(board.rows.flatMap(pick))).filter(Boolean).sort();
    jouleboard.options(form.elements.model, [any, ...distinct((row) => row.model).map((one) => [one, one])]);
    jouleboard.options(form.elements.technique, [any, ...distinct((row) => row.techniques || []).map((one) => [one, word(`technique-${one}`)])]);
    jouleboard.options(form.elements.engine, [any, ...distinct((row) => row.engine).map((one) => [one, one])]);
    jouleboard.options(form.elements.tier, [any, ...board.tiers.map((one) => [String(one), `≥ ${jouleboard.fixed(one / 10, 1)}`])]);
  }

  function start(board) {
    const shown = columns(board);
    offer(board);
    jouleboard.fill(form, jouleboard.state());
    let wanted = jouleboard.values(form);
    const saved = jouleboard.state();
    const [, column, way] = /^(\w+)-(asc|desc)$/.exec(saved.get("sort") || "") || [];
    const index = shown.findIndex((one) => one.name === column);
    document.getElementById("fallback").hidden = true;
    place.hidden = false;
    const table = new DataTable("#grid", {
      data: board.rows, columns: shown, autoWidth: false, pageLength: 50, order: index < 0 ? [] : [[index, way]],
      layout: { topStart: null, topEnd: null, bottomStart: "info", bottomEnd: "paging" },
      language: { info: word("info"), infoEmpty: word("info-empty"), infoFiltered: word("info-filtered"), emptyTable: word("nothing"), zeroRecords: word("nothing"),
        aria: { orderable: word("aria-sort"), orderableReverse: word("aria-reverse"), orderableRemove: word("aria-remove"),
          paginate: { first: word("page-first"), last: word("page-last"), next: word("page-next"), previous: word("page-previous") } },
        paginate: { first: "«", last: "»", next: "›", previous: "‹" } },
      createdRow: (made, row) => made.classList.add(row.base ? "is-base" : "is-variant"),
    });
    table.search.fixed("filters", (_text, row) => keeps(row, wanted));
    table.draw();
    const page = jouleboard.number(saved.get("page") || "");
    if (page !== null && page > 1) table.page(Math.min(page, table.page.info().pages) - 1).draw("page");
    const remember = () => {
      const [order] = table.order();
      const sort = order && order[1] ? `${shown[order[0]].name}-${order[1]}` : "";
      jouleboard.remember({ ...wanted, sort, page: table.page() + 1 }, DEFAULTS);
    };
    form.addEventListener("input", () => { wanted = jouleboard.values(form); table.draw(); });
    form.addEventListener("reset", () => setTimeout(() => { wanted = jouleboard.values(form); table.order([]).draw(); }));
    form.addEventListener("submit", (event) => event.preventDefault());
    table.on("draw", remember);
    place.dataset.ready = "1";
  }

  jouleboard.load(place.dataset.key, start);
})();
