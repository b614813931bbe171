// The table of all latents of a dictionary: search, sort, filter; only the rows in view are in the page.
"use strict";

(function () {
  const { el, number, percent, interval } = tunediff;
  const ROW = 34; // pixels, as in style.css
  const SPARE = 12; // rows above and below the view
  const FLAGS = { dead: 1, chat_specific: 2, chat_specific_validation: 4, chat_specific_interval: 8, reversed: 16 };
  tunediff.has = (table, latent, flag) => (table.columns.flags[latent] & FLAGS[flag]) > 0;

  tunediff.verdict = function (table, latent) {
    if (!tunediff.has(table, latent, "chat_specific")) return tunediff.has(table, latent, "reversed") ? "reversed" : "no";
    return tunediff.has(table, latent, "chat_specific_validation") ? "confirmed" : "not confirmed";
  };

  // Columns: head, key of the values it is sorted by, text of a cell, and what the head means.
  function columns(name, about, table) {
    const c = table.columns;
    const found = [
      { head: "rank", key: "rank", cell: (i) => c.rank[i] || "–", means: "place by rank(ν^r) + rank(ν^ε)" },
      { head: "latent", cell: (i) => tunediff.latentLink(name, i), means: "number of the latent; the link can be shared" },
      { head: "peak tokens", label: true, cell: (i) => el("bdi", {}, table.label[i]), means: "the tokens its peaks fall on" },
      { head: "class", key: "class", cell: (i) => table.classes[c.class[i]], means: "by Δnorm" },
      { head: "chat-specific", value: (i) => c.flags[i] & 14, cell: (i) => tunediff.verdict(table, i), means: "by the criterion, and confirmed on held-out tokens" },
    ];
    if (about.explained) {
      const means = "balanced accuracy [95 %] of judging by the explanation where it fires, on held-out windows it was not made from; 0.5 is chance";
      found.splice(3, 0, { head: "explanation", key: "explained", cell: (i) => tunediff.explained(table.explained.get(i)), means });
    }
    const put = (head, key, cell, means) => c[key] && found.push({ head, key, cell, means });
    if (about.norms) {
      put("Δnorm", "delta", (i) => number(c.delta[i], 2), "1: chat only, 0: base only");
      put("ν^r [95 %]", "nu_r", (i) => interval(c.nu_r[i], c.nu_r_low[i], c.nu_r_high[i]), "base's share in the reconstruction");
      put("ν^ε [95 %]", "nu_e", (i) => interval(c.nu_e[i], c.nu_e_low[i], c.nu_e_high[i]), "base's share in what the reconstruction leaves");
    }
    put("ν^act", "nu_a", (i) => number(c.nu_a[i], 2), "base's share in the activation");
    put("swap ratio", "swap", (i) => number(c.swap[i], 2), "log ratio of firing on chat and on base activations");
    for (const source of about.sources) {
      put(`fires on ${source}`, `frequency_${source}`, (i) => percent(c[`frequency_${source}`][i]), "share of held-out tokens");
    }
    put("template share", "template", (i) => percent(c.template[i]), "of its firings, those on tokens of the chat template");
    if (about.norms) put("cosine", "cosine", (i) => number(c.cosine[i], 2), "of its base and chat directions");
    put("twin", "twin", (i) => (c.twin[i] < 0 ? "–" : tunediff.latentLink(name, c.twin[i])), "a latent of the other model alone with the same direction");
    put("seed match", "seed_cosine", (i) => number(c.seed_cosine[i], 2) + (c.stable[i] ? " stable" : ""), "lowest cosine with its match in another training seed");
    return found;
  }

  function order(table, rows, column, falling) {
    const sign = falling ? -1 : 1;
    if (column.label) {
      const text = table.lower;
      return rows.sort((a, b) => (text[a] === "") - (text[b] === "") || sign * (text[a] < text[b] ? -1 : text[a] > text[b] ? 1 : 0) || a - b);
    }
    const values = new Float64Array(table.n);
    for (let i = 0; i < table.n; i++) values[i] = column.value ? column.value(i) : column.key ? table.columns[column.key][i] : i;
    const missing = (x) => Number.isNaN(x) || (column.key === "rank" && x === 0) || (column.key === "twin" && x < 0);
    return rows.sort(function (a, b) {
      const x = values[a], y = values[b];
      const gone = missing(x) - missing(y);
      return gone || sign * (x - y) || a - b;
    });
  }

  tunediff.tablePage = async function (section, name, meta) {
    const about = meta.dictionaries[name];
    const table = await tunediff.table(name);
    table.lower ??= table.label.map((text) => text.toLowerCase());
    for (const each of table.explained.values()) each.lower ??= each.text.toLowerCase();
    const found = (latent, wanted) => table.lower[latent].includes(wanted) || Boolean(table.explained.get(latent)?.lower.includes(wanted));
    const all = columns(name, about, table);
    const state = { sort: all[0], falling: false, rows: null };

    // filters
    const box = (label, control) => el("label", {}, el("span", {}, label), control);
    const search = el("input", { type: "search", placeholder: about.explained ? "token, word or number" : "token or number", oninput: () => update() });
    const select = (options) => el("select", { onchange: () => update() }, options.map(([value, text]) => el("option", { value }, text)));
    const classes = select([["", "all classes"], ...table.classes.map((each, i) => [`${i}`, each])]);
    const called = select([["", "all"], ["chat_specific", "chat-specific"], ["chat_specific_validation", "confirmed"], ["chat_specific_interval", "intervals below too"], ["reversed", "reversed"]]);
    const source = select([["", "all sources"], ...about.sources.map((each) => [each, `mostly ${each}`])]);
    const template = select([["", "any"], ["below", "under 10 %"], ["above", "over 50 %"]]);
    const dead = el("input", { type: "checkbox", onchange: () => update() });
    const controls = el(
      "form",
      { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      box("Search", search),
      box("Class", classes),
      box("Chat-specific", called),
      box("Fires on", source),
      box("Template share", template),
      el("label", { class: "check" }, dead, el("span", {}, "dead latents too")),
    );

    // the table: a head, and a body between two spacers
    const heads = all.map(function (column) {
      const button = el("button", { type: "button", title: column.means, onclick: () => sortBy(column) }, tunediff.nu(column.head));
      return el("th", { scope: "col", "aria-sort": "none", class: column.label ? "label" : null }, button);
    });
    const body = el("tbody");
    const grid = el("table", { class: "latents", "aria-colcount": all.length }, el("thead", {}, el("tr", { "aria-rowindex": 1 }, heads)), body);
    const view = el("div", { class: "view", tabindex: "0", role: "region", "aria-label": `Latents of ${name}`, onscroll: () => draw() }, grid);
    const status = el("p", { class: "small", role: "status" });

    function sortBy(column) {
      state.falling = state.sort === column ? !state.falling : ["nu_r", "nu_e", "nu_a", "rank"].includes(column.key) || column.label || (!column.key && !column.value) ? false : true;
      state.sort = column;
      update();
    }

    function update() {
      const wanted = search.value.trim().toLowerCase();
      const exact = /^\d+$/.test(wanted) ? Number(wanted) : -1;
      const c = table.columns;
      const shares = about.sources.map((each) => c[`frequency_${each}`]);
      const own = about.sources.indexOf(source.value);
      const rows = [];
      for (let i = 0; i < table.n; i++) {
        if (!dead.checked && c.flags[i] & 1) continue;
        if (classes.value && c.class[i] !== Number(classes.value)) continue;
        if (called.value && !tunediff.has(table, i, called.value)) continue;
        if (own >= 0 && !shares.every((each, k) => k === own || each[i] < shares[own][i])) continue;
        if (template.value === "below" && !(c.template[i] < 0.1)) continue;
        if (template.value === "above" && !(c.template[i] > 0.5)) continue;
        if (wanted && i !== exact && !found(i, wanted)) continue;
        rows.push(i);
      }
      state.rows = order(table, rows, state.sort, state.falling);
      heads.forEach((head, k) => head.setAttribute("aria-sort", all[k] === state.sort ? (state.falling ? "descending" : "ascending") : "none"));
      const hidden = dead.checked ? "" : " (dead ones are left out)";
      status.textContent = `${tunediff.count(rows.length)} of ${tunediff.count(table.n)} latents${hidden}.`;
      grid.setAttribute("aria-rowcount", rows.length + 1);
      view.scrollTop = 0;
      draw(true);
    }

    let drawn = "";
    function draw(force) {
      const from = Math.max(0, Math.floor(view.scrollTop / ROW) - SPARE);
      const to = Math.min(state.rows.length, Math.ceil((view.scrollTop + view.clientHeight) / ROW) + SPARE);
      if (!force && drawn === `${from} ${to}`) return;
      drawn = `${from} ${to}`;
      const spacer = (n) => el("tr", { class: "spacer", "aria-hidden": "true" }, n ? el("td", { colspan: all.length }) : null);
      const before = spacer(from), after = spacer(state.rows.length - to);
      before.style.height = `${from * ROW}px`;
      after.style.height = `${(state.rows.length - to) * ROW}px`;
      const lines = state.rows.slice(from, to).map((latent, k) =>
        el("tr", { "aria-rowindex": from + k + 2 }, all.map((column) => el("td", { class: column.label ? "label" : null }, column.cell(latent)))),
      );
      body.replaceChildren(before, ...lines, after);
    }

    const yardstick = about.explained ? el("p", { class: "small" }, tunediff.yardstick(about)) : null;
    section.replaceChildren(...[el("h1", {}, "Latents ", el("small", {}, name)), controls, status, view, yardstick].filter(Boolean));
    update();
    new ResizeObserver(() => draw()).observe(view);
  };
})();
