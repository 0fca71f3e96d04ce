// What the other scripts of the site share: boards as data, words of the page's language, numbers, and the state in the address.
// Classic scripts only: pages opened from a folder may fetch nothing and load no modules. Nothing here makes markup out of text.
"use strict";

window.jouleboard = (() => {
  const page = document.documentElement.dataset;
  const known = new Map();
  const waiting = new Map();
  let list = [];

  function arrived(name, found) {
    known.set(name, found);
    for (const then of waiting.get(name) || []) then(found);
    waiting.delete(name);
  }

  /** A board's own script calls this. */
  const board = (found) => arrived(`board-${found.key}`, found);

  /** The script with a board's fitted models calls this. */
  const fits = (found) => arrived(`fits-${found.key}`, found);

  /** The script that lists all boards calls this. */
  function site(found) {
    list = found.boards;
  }

  function script(name, then) {
    if (known.has(name)) { then(known.get(name)); return; }
    if (!/^[a-z]+-[A-Za-z0-9][A-Za-z0-9._-]*$/.test(name)) return;
    if (waiting.has(name)) { waiting.get(name).push(then); return; }
    waiting.set(name, [then]);
    const made = document.createElement("script");
    made.src = `${page.root}data/${name}.js`;
    document.head.append(made);
  }

  /** Load a board by its key, and hand it on. */
  const load = (key, then) => script(`board-${key}`, then);

  /** Load a board whose rows have their fitted models. */
  function fitted(key, then) {
    load(key, (found) => script(`fits-${key}`, (models) => {
      for (const row of found.rows) {
        row.fit = models.fits[row.entry];
        row.correct = models.correct[row.entry];
      }
      then(found);
    }));
  }

  /** A text of the page, by its name; `{name}` in it is replaced. */
  function word(name, values = {}) {
    const words = document.getElementById("words");
    const found = words && words.content.querySelector(`[data-word="${CSS.escape(name)}"]`);
    const text = found ? found.textContent.trim() : name;
    return text.replace(/\{(\w+)\}/g, (whole, key) => (key in values ? String(values[key]) : whole));
  }

  /** An element with attributes and children; strings become text. */
  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) made.setAttribute(name, value);
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function fixed(value, decimals) {
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const unit = decimals < 0 ? 10 ** -decimals : 1;
    const digits = Math.max(decimals, 0);
    const text = new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })
      .format(unit === 1 ? value : Math.round(value / unit) * unit);
    return text.replace("-", "−");
  }

  /** So many significant digits, as the pages themselves print numbers. */
  function sig(value, digits = 3) {
    if (value === 0 || !Number.isFinite(value)) return fixed(value, 0);
    const exponent = Math.floor(Math.log10(Math.abs(Number(value.toPrecision(digits)))));
    return fixed(value, Math.min(digits - 1 - exponent, 9));
  }

  const megabytes = (bytes) => (bytes >= 1e9 ? fixed(bytes / 1e6, 0) : sig(bytes / 1e6));
  const entry = (path) => `${page.home}entries/${path}/index.html`;

  /** What the address says behind `#`, where it says something as `name=value`. */
  function state() {
    const hash = location.hash.slice(1);
    return new URLSearchParams(hash.includes("=") ? hash : "");
  }

  /** Write what differs from the default behind `#`; nothing is added to the history. */
  function remember(values, defaults) {
    const kept = new URLSearchParams();
    for (const [name, value] of Object.entries(values)) if (String(value) !== String(defaults[name] ?? "")) kept.set(name, value);
    const text = kept.toString();
    if (text || location.hash.includes("=")) history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }

  /** Options of a select, the chosen one kept where it is still there. */
  function options(select, pairs) {
    const before = select.value;
    select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));
    if (pairs.some(([value]) => value === before)) select.value = before;
  }

  /** The values of a form's named fields. */
  function values(form) {
    return Object.fromEntries(Array.from(form.elements).filter((one) => one.name)
      .map((one) => [one.name, one.type === "checkbox" ? (one.checked ? "1" : "") : one.value]));
  }

  /** Put values into the named fields of a form. */
  function fill(form, found) {
    for (const one of form.elements) {
      if (!one.name || !found.has(one.name)) continue;
      if (one.type === "checkbox") one.checked = found.get(one.name) === "1";
      else one.value = found.get(one.name);
    }
  }

  /** A number that somebody typed; null where there is none. */
  function number(text) {
    const value = Number.parseFloat(text);
    return Number.isFinite(value) && value >= 0 ? value : null;
  }

  /** The figure of an estimate as text, and its interval, "" where there is none: `[0.61, "0.610 [0.580, 0.640]"]`. */
  const figure = (found) => found[1].split(" [", 1)[0];
  const range = (found) => found[1].slice(figure(found).length + 1);

  /** Lower and upper bound of an estimate as its text gives them; null where it has none. */
  function bounds(found) {
    const ends = range(found).slice(1, -1).split(", ").map((one) => Number(one.replaceAll(",", "").replace("−", "-").replace("∞", "Infinity")));
    return ends.length === 2 ? ends : null;
  }

  const tier = (found) => (found === undefined || found === null ? "–" : `${fixed(found / 10, 1)} – ${fixed((found + 1) / 10, 1)}`);

  return { board, fits, site, load, fitted, word, el, fixed, sig, megabytes, entry, state, remember, options, values, fill, number, figure, range, bounds, tier,
    get boards() { return list; } };
})();
