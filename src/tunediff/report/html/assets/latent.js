// The page of a latent.
"use strict";

(function () {
  const { el, number, percent, interval, significant } = tunediff;
  const BANDS = {
    strongest: "Strongest",
    high: "High: .7 to 1 of the maximum, at random",
    middle: "Middle: .4 to .7 of the maximum, at random",
    low: "Low: .1 to .4 of the maximum, at random",
    inactive: "Inactive: the latent fires nowhere here, at random",
    inactive_hard: "Inactive though one of its peak tokens is there",
  };
  const DIRECTIONS = { chat: "chat direction", base: "base direction", difference: "difference chat − base" };

  // The windows of a latent: those of a shard, with the tokens on which it fires put back in place.
  function windows(table, k) {
    const before = table.count.slice(0, k).reduce((a, b) => a + b, 0);
    const n = table.count[k];
    let fired = 0;
    for (let i = 0; i < before; i++) fired += table.active[i];
    const found = [];
    for (let i = before; i < before + n; i++) {
      const activation = new Array(table.length[i]).fill(0);
      for (let j = 0, at = 0; j < table.active[i]; j++, fired++) {
        at = j ? at + table.step[fired] : table.step[fired];
        activation[at] = table.activation[fired];
      }
      const [band, source, document, start, peak, value] = ["band", "source", "document", "start", "peak", "value"].map((key) => table[key][i]);
      found.push({ band, source, document, start, peak, value, activation, p: table.p ? table.p[i] : null });
    }
    return found;
  }

  // The texts of windows, and what is known of their tokens.
  async function filled(found, meta, measured) {
    const text = await tunediff.pieces();
    const needed = new Set();
    for (const each of found) {
      for (const at of [each.start, each.start + each.activation.length - 1]) needed.add(Math.floor(at / meta.shard));
    }
    const shards = new Map();
    const losses = new Map();
    await Promise.all(
      [...needed].map(async function (number) {
        shards.set(number, await tunediff.load(`tokens/${number}`));
        if (measured && meta.losses.includes(number)) {
          const rows = await tunediff.load(`losses/${number}`);
          const places = new Map(rows.at.map((at, i) => [at, i]));
          losses.set(number, { rows, places });
        }
      }),
    );
    for (const each of found) {
      const position = (i) => [Math.floor((each.start + i) / meta.shard), (each.start + i) % meta.shard];
      each.text = each.activation.map(function (_, i) {
        const [number, at] = position(i);
        return text[shards.get(number)[at]];
      });
      each.cut = [each.peak >= meta.context, each.activation.length - 1 - each.peak >= meta.context];
      each.measured = function (i) {
        const [number, at] = position(i);
        const of = losses.get(number);
        const row = of && of.places.get(at);
        if (row === undefined) return "";
        const { kl, base, chat } = of.rows;
        const nats = [["loss base", base], ["chat", chat], ["KL after it", kl]].map(([name, values]) => `${name} ${number_(values[row])}`);
        return ` · ${nats.join(", ")} nats`;
      };
    }
  }
  const number_ = (value) => number(value, 2);

  const facts = (pairs) => el("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, tunediff.nu(name)), el("dd", {}, value))));

  const plain = (caption, heads, rows) =>
    el(
      "table",
      { class: "plain" },
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell))))),
    );

  const part = (title, ...content) => el("section", { class: "part" }, el("h2", {}, title), content);
  const quote = (text) => el("bdi", { class: "piece" }, tunediff.quoted(text ?? "?"));

  function tokenTables(rows, pieces, codes) {
    return codes.token.map(function (kind, code) {
      const own = [...rows.kind.keys()].filter((i) => rows.kind[i] === code);
      const said = kind === "peak" ? "Tokens it fires on" : "Tokens after those";
      return plain(said, ["token", "share", "lift"], own.map((i) => [quote(pieces[rows.token[i]]), percent(rows.share[i]), `${significant(rows.lift[i])}×`]));
    });
  }

  function logits(rows, pieces, codes) {
    return codes.direction.map(function (direction, d) {
      const lines = codes.end.map(function (end, e) {
        const own = [...rows.direction.keys()].filter((i) => rows.direction[i] === d && rows.end[i] === e);
        return own.map((i) => el("span", { class: "logit" }, quote(pieces[rows.token[i]]), ` ${number(rows.value[i], 2)}`));
      });
      return el("div", { class: "logits" }, el("h3", {}, DIRECTIONS[direction]), ...lines.map((line, e) => el("p", {}, el("strong", {}, e ? "lowest: " : "highest: "), line)));
    });
  }

  // Explanations of the latent: every explainer and judge with its score, controls, the yardstick, and where the shown one fails.
  const PARTS = ["high", "middle", "low", "silent", "silent, its tokens"];
  const AGAINST = { above: ["lies above", "."], below: ["lies below", ", so they are explained better."], within: ["includes", ", so it may score no better than those."] };

  function explanations(name, about, rows, mistakes, wrong, maximum, meta) {
    const best = rows.find((row) => row.best);
    const cells = rows.map(function (row) {
      const of = row.of === null ? null : [" (latent ", tunediff.latentLink(name, row.of), ")"];
      const who = el("div", { class: "told" }, el("strong", {}, row.control ? `control: ${row.who}` : row.who), of, `, ${row.by}`, el("br"), el("bdi", {}, row.text));
      if (row.why) return [who, el("div", { class: "why" }, `not scored: ${row.why}`), ...new Array(PARTS.length + 2).fill("–")];
      const [active, silent, missing] = row.windows;
      return [who, interval(...row.score), number(row.auroc, 2), ...row.accuracy.map(percent), `${missing} of ${active + silent + missing}`];
    });
    const heads = ["explanation", "balanced accuracy [95 %]", "AUROC", ...PARTS, "not judged"];
    const table = plain("Windows judged rightly from the explanation alone: of the bands in which the latent fires, and of silence", heads, cells);
    const against = [];
    if (best.score[0] !== null && best.random !== null) {
      const [, low, high] = best.score;
      const where = low > best.random ? "above" : high < best.random ? "below" : "within";
      const [lies, so] = AGAINST[where];
      against.push(` The one shown in lists (${best.who}, ${best.by}) has ${interval(...best.score)}; its interval ${lies} the ${number(best.random, 2)} of random directions${so}`);
    }
    const list = function (said, all, kind) {
      const own = wrong.filter((each) => each.value > 0 === (kind === 0));
      const items = own.map((each) => el("li", {}, el("p", { class: "where" }, `${meta.sources[each.source]}, document ${each.document}`, each.value > 0 ? `, activation ${significant(each.value)}` : "", `, judged to fire with p = ${number(each.p, 2)}`), tunediff.passage(each, maximum)));
      const counted = `${all[0]} of ${all[1]} windows${own.length && own.length < all[0] ? `; the ${own.length} worst are shown` : ""}`;
      return el("div", { class: "mistakes" }, el("h4", {}, said, el("span", { class: "of" }, ` ${counted}`)), el("ol", { class: "windows" }, items));
    };
    const [active, silent] = best.windows;
    const fails = best.why || !mistakes
      ? null
      : [
          el("h3", {}, "Where it fails ", el("small", {}, `${best.who}, ${best.by}`)),
          list("False negatives: the latent fires, the judge says it does not.", [mistakes[0], active], 0),
          list("False positives: the latent is silent, the judge says it fires.", [mistakes[1], silent], 1),
        ];
    return part(
      "Explanations",
      el("p", { class: "small" }, `A judge sees an explanation and a held-out window that the explanation was not made from, and says whether the latent fires in it. ${about.explained.yardstick}`, against),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Scores of explanations" }, table),
      fails,
    );
  }

  const step = (table, latent, by) => table.ranked[table.columns.rank[latent] - 1 + by];

  function beside(name, latent, found, table) {
    const link = (other) => tunediff.latentLink(name, other, table.label[other]);
    const parts = [];
    const [chatOnly, baseOnly, cosine, divergence] = found.twins.length ? found.twins : [[], [], [], []];
    const twins = [...chatOnly.keys()].filter((i) => chatOnly[i] === latent || baseOnly[i] === latent);
    if (twins.length) {
      const rows = twins.map((i) => [link(chatOnly[i] === latent ? baseOnly[i] : chatOnly[i]), number(cosine[i], 2), number(divergence[i] ?? NaN, 2)]);
      parts.push(part("Twins", plain("Latents of the other model alone with the same direction", ["latent", "cosine", "divergence"], rows)));
    }
    if (found.seeds) {
      const [own, seed, match, alike] = found.seeds;
      const rows = [...own.keys()].filter((i) => own[i] === latent);
      const base = name.replace(/-seed\d+$/, "");
      const cells = rows.map((i) => [`seed ${seed[i]}`, match[i] < 0 ? "none" : tunediff.latentLink(`${base}-seed${seed[i]}`, match[i]), number(alike[i] ?? NaN, 2)]);
      parts.push(part("In other training seeds", plain("Best one-to-one match", ["seed", "latent", "cosine"], cells)));
    }
    const concepts = found.concepts.filter((row) => row.latent === latent);
    if (concepts.length) {
      const rows = concepts.map((row) => [row.concept, row.pool, number(row.auroc, 3), `${number(row.auroc_among, 3)} (${row.among})`, percent(row.precision), percent(row.recall), percent(row.control_share)]);
      parts.push(part("Labelled concepts it stands for", el("div", { class: "scroll" }, plain("Scores on held-out documents that did not choose the latent", ["concept", "chosen among", "AUROC", "AUROC among", "precision", "recall", "controls as good"], rows))));
    }
    return parts;
  }

  // Steering by the latent: what was measured, and answers side by side.
  function steering(found) {
    const rate = (row) => (row.rate === null ? "–" : `${percent(row.rate)} [${percent(row.low)}, ${percent(row.high)}]`);
    const rows = found.measures.map((row) => [
      number(row.alpha, 2),
      row.positions,
      percent(row.dose_share),
      `${number(row.kl, 3)} (${number(row.kl_random, 3)})`,
      `${number(row.nll, 2)} (${number(row.nll_random, 2)})`,
      `${percent(row.repetition)} (${percent(row.repetition_random)})`,
      `${number(row.logit_shift, 2)} (${number(row.logit_shift_random, 2)})`,
      row.kind || "none of its own",
      rate(row),
      row.unsteered === null ? "–" : percent(row.unsteered),
      row.control_low === null ? "–" : `${percent(row.control_low)} to ${percent(row.control_high)}`,
      row.moves || "no",
    ]);
    const heads = ["α", "positions", "dose / residual norm", "KL (random)", "loss (random)", "repetition (random)", "logit shift (random)", "kind of answer", "rate [95 %]", "unsteered", "controls within", "moves the rate"];
    const place = el("ol", { class: "answers" });
    const choice = el(
      "select",
      { onchange: () => put() },
      found.answers.map((each, i) => el("option", { value: `${i}` }, `${each.arm}; α = ${each.alpha}, ${each.positions}`)),
    );
    const text = (head, value) => el("div", {}, el("h4", {}, head), el("p", {}, el("bdi", { class: "answer" }, value)));
    const put = function () {
      const own = found.answers[Number(choice.value)];
      place.replaceChildren(
        ...own.prompt.map((prompt, i) => el("li", {}, text("Request", prompt), el("div", { class: "pair" }, text("Unsteered", own.unsteered[i]), text("Steered", own.steered[i])))),
      );
    };
    if (found.answers.length) put();
    return part(
      "Steering",
      rows.length ? el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Measures of steering" }, plain("Adding α · maximum · chat direction to the chat model's residuals; in brackets random directions of equal dose", heads, rows)) : null,
      found.answers.length ? [el("p", {}, el("label", {}, "Answers with ", choice)), place] : null,
    );
  }

  tunediff.latentPage = async function (section, name, latent, meta) {
    const about = meta.dictionaries[name];
    const [table, found] = await Promise.all([tunediff.table(name), tunediff.load(`beside/${name}`)]);
    const c = table.columns;
    if (!(latent < table.n)) throw new Error(`${name} has latents 0 to ${table.n - 1}, not ${latent}`);
    const ends = [["previous in the ranking", -1], ["next in the ranking", 1]].map(([text, by]) => {
      const other = c.rank[latent] ? step(table, latent, by) : undefined;
      return other === undefined ? null : el("a", { href: `#${name}/${other}`, rel: by < 0 ? "prev" : "next" }, `${by < 0 ? "← " : ""}${text}${by > 0 ? " →" : ""}`);
    });
    const verdict = tunediff.verdict(table, latent);
    const words = { confirmed: "yes, confirmed on held-out tokens", "not confirmed": "yes, not confirmed on held-out tokens", no: "no", reversed: "no: reversed" };
    const head = [
      el("p", { class: "crumbs" }, el("a", { href: `#${name}` }, `All latents of ${name}`), " ", ends),
      el("h1", {}, `Latent ${latent} `, el("small", {}, name)),
      table.label[latent] ? el("p", { class: "name" }, el("bdi", {}, table.label[latent])) : null,
      table.explained.has(latent) ? el("p", { class: "small" }, el("span", { class: "where" }, "explanation"), " ", tunediff.explained(table.explained.get(latent))) : null,
      facts([
        about.norms ? ["chat-specific", words[verdict]] : null,
        ["rank", c.rank[latent] ? `${tunediff.count(c.rank[latent])} of ${tunediff.count(table.ranked.length)}` : "none"],
        ["class", table.classes[c.class[latent]]],
        about.norms ? ["Δnorm", number(c.delta[latent], 2)] : null,
        about.norms ? ["ν^r [95 %]", interval(c.nu_r[latent], c.nu_r_low[latent], c.nu_r_high[latent])] : null,
        about.norms ? ["ν^r, held out", number(c.nu_r_validation[latent], 2)] : null,
        about.norms ? ["ν^ε [95 %]", interval(c.nu_e[latent], c.nu_e_low[latent], c.nu_e_high[latent])] : null,
        about.norms ? ["ν^ε, held out", number(c.nu_e_validation[latent], 2)] : null,
        ["ν^act", number(c.nu_a[latent], 2)],
        ...about.sources.map((source) => [`fires on ${source}`, percent(c[`frequency_${source}`][latent])]),
        ["firings on template tokens", percent(c.template[latent])],
        ["maximum", significant(c.max[latent])],
        about.seeds ? ["stable over seeds", c.stable[latent] ? "yes" : "no"] : null,
      ]),
    ];
    if (!about.examples) {
      section.replaceChildren(...head.filter(Boolean), el("p", {}, "Examples of this dictionary were not made."), ...beside(name, latent, found, table));
      return;
    }
    if (tunediff.has(table, latent, "dead")) {
      section.replaceChildren(...head.filter(Boolean), el("p", {}, "This latent is dead: it fires on no held-out token, so it has no examples."), ...beside(name, latent, found, table));
      return;
    }
    const number_ = Math.floor(latent / meta.block);
    const [shard, pieces] = await Promise.all([tunediff.load(`latents/${name}/${number_}`), tunediff.pieces()]);
    const k = latent - shard.first;
    const shown = windows(shard.windows, k);
    const called = tunediff.has(table, latent, "chat_specific");
    await filled(shown, meta, called);
    const maximum = c.max[latent] || Math.max(...shown.map((each) => each.value));
    const rows = (key) => tunediff.rows(shard[key], k);

    const examples = meta.bands.map(function (band, code) {
      const own = shown.filter((each) => each.band === code);
      if (!own.length) return null;
      const items = own.map((each) =>
        el("li", {}, el("p", { class: "where" }, `${meta.sources[each.source]}, document ${each.document}`, each.value ? `, activation ${significant(each.value)}` : ""), tunediff.passage(each, maximum)),
      );
      return el("details", { class: "band", open: code < 2 || undefined }, el("summary", {}, el("h3", {}, BANDS[band]), ` ${own.length} windows`), el("ol", { class: "windows" }, items));
    });
    const counts = rows("histogram");
    const histograms = meta.sources.map(function (source, s) {
      const bins = new Array(20).fill(0);
      for (let i = 0; i < counts.n; i++) if (counts.source[i] === s) bins[counts.bin[i]] = counts.tokens[i];
      return tunediff.histogram(source, bins, maximum);
    });
    const near = rows("neighbours");
    const kinds = { cosine: ["By decoder cosine", "cosine"], coactivation: ["By firing together", "Jaccard"] };
    const neighbours = meta.codes.neighbour.map(function (kind, code) {
      const own = [...near.kind.keys()].filter((i) => near.kind[i] === code);
      return plain(kinds[kind][0], ["latent", kinds[kind][1]], own.map((i) => [tunediff.latentLink(name, near.latent[i], table.label[near.latent[i]]), number(near.value[i], 2)]));
    });
    const said = table.explained.get(latent);
    let explained = null;
    if (said) {
      const size = about.explained.block;
      const shard = await tunediff.load(`explanations/${name}/${Math.floor(said.place / size)}`);
      const at = said.place % size;
      const wrong = shard.windows ? windows(shard.windows, at) : [];
      await filled(wrong, meta, called);
      explained = explanations(name, about, shard.rows[at], shard.mistakes ? shard.mistakes[at] : null, wrong, maximum, meta);
    }
    const steered = about.steered.includes(latent) ? (await tunediff.load(`steering/${name}`))[latent] : null;
    const measuredText = meta.losses.length && called ? " Pointing at a token also tells both models' losses and the KL." : "";
    const content = [
      ...head,
      part("Examples", el("p", { class: "small" }, `Held-out texts, ${meta.context} tokens to each side of the peak at most.${measuredText} Arrow keys go from token to token. ${tunediff.detailText(meta)}`), examples.filter(Boolean)),
      explained,
      part("Activations per source", el("p", { class: "small" }, "Held-out tokens on which it fires, in twentieths of its maximum; the axis of tokens is logarithmic."), el("div", { class: "row" }, histograms)),
      part("Tokens", el("div", { class: "row" }, tokenTables(rows("tokens"), pieces, meta.codes))),
      part("Direct logits", el("p", { class: "small" }, "What each decoder direction adds to the chat model's logits per unit of activation, through its final norm's scale and unembedding, if nothing after the block interferes."), el("div", { class: "row" }, logits(rows("logits"), pieces, meta.codes))),
      part("Nearest latents", el("div", { class: "row" }, neighbours)),
      ...beside(name, latent, found, table),
      steered ? steering(steered) : null,
    ];
    section.replaceChildren(...content.filter(Boolean));
  };

  // What is said where not every window of the examples is in the report.
  tunediff.detailText = function (meta) {
    if (meta.whole) return "";
    const { strongest, band } = meta.detail;
    return `To keep the report small, latents that are neither chat-specific nor among the first ${tunediff.count(meta.first_ranked)} of the ranking are shown with ${strongest} strongest windows and ${band} of each band.`;
  };
})();
