// Routes: #/PAGE, #DICTIONARY (its table), #DICTIONARY/LATENT. Nothing after # is ever used as HTML.
"use strict";

(function () {
  const { el } = tunediff;
  const sections = new Map([...document.querySelectorAll("main > section")].map((each) => [each.dataset.page, each]));
  const problem = document.getElementById("problem");
  const main = document.getElementById("main");
  const title = document.title;
  let tableShown = null;
  let turn = 0;

  function show(page) {
    for (const [name, section] of sections) section.hidden = name !== page;
    tunediff.say("");
  }

  function marked(hash) {
    const page = hash.split("/").length > 1 && !hash.startsWith("#/") ? hash.split("/")[0] : hash || "#/";
    for (const link of document.querySelectorAll("nav a")) {
      if (link.getAttribute("href") === page) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  async function route() {
    const hash = location.hash;
    if (hash === "#main") return main.focus();
    const own = ++turn;
    problem.hidden = true;
    marked(hash);
    try {
      const meta = await tunediff.load("meta");
      if (own !== turn) return;
      const [name, latent] = hash.slice(1).split("/");
      if (!hash || hash === "#" || hash.startsWith("#/")) {
        const page = hash.slice(2);
        if (!sections.has(page)) throw new Error(`this report has no page '${page}'`);
        show(page);
        document.title = title;
        if (page === "") await overview(meta);
      } else if (!Object.hasOwn(meta.dictionaries, name)) {
        throw new Error(`this report has no dictionary '${name}', but: ${Object.keys(meta.dictionaries).join(", ")}`);
      } else if (latent === undefined) {
        if (tableShown !== name) {
          tableShown = name;
          await tunediff.tablePage(sections.get("table"), name, meta);
          if (own !== turn) return;
        }
        show("table");
        document.title = `${name} · ${title}`;
      } else {
        if (!/^\d+$/.test(latent)) throw new Error(`'${latent}' is no number of a latent`);
        const page = el("div");
        await tunediff.latentPage(page, name, Number(latent), meta);
        if (own !== turn) return;
        sections.get("latent").replaceChildren(...page.childNodes);
        show("latent");
        document.title = `${name}/${latent} · ${title}`;
      }
      if (own > 1) {
        window.scrollTo(0, 0);
        main.focus({ preventScroll: true });
      }
    } catch (error) {
      show(null);
      problem.textContent = error.message;
      problem.hidden = false;
    }
    document.documentElement.dataset.ready = `${own}`;
  }

  // -- first screen: the first latents of every dictionary, beside those of a null pair --------------------------------

  let listed = false;
  async function overview(meta) {
    if (listed) return;
    listed = true;
    const place = document.getElementById("first");
    for (const [name, about] of Object.entries(meta.dictionaries)) {
      const own = el("section", { class: "first", "aria-label": `First latents of ${name}` });
      place.append(own);
      await firsts(own, name, about, meta);
    }
  }

  async function firsts(place, name, about, meta) {
    const nulls = meta.nulls.filter((each) => each[1] === name).map((each) => each[0]);
    const own = el("div", { class: "column" }, el("h4", {}, "This pair"), entries(await tunediff.load(`first/${name}`), name, about));
    const columns = el("div", { class: nulls.length ? "columns" : "" }, own);
    const heading = el("h3", {}, about.kind, " ", el("small", {}, name));
    if (nulls.length) {
      const beside = el("div", { class: "column null" });
      const choice = el(
        "select",
        { onchange: () => shown() },
        nulls.map((pair) => el("option", { value: pair }, `${pair}: ${meta.null_models[pair]}`)),
      );
      const shown = async function () {
        const pair = choice.value;
        const found = await tunediff.load(`first/${pair}/${name}`);
        beside.replaceChildren(
          el("h4", {}, el("label", {}, "Null pair ", choice)),
          entries(found, null, about),
        );
      };
      await shown();
      columns.append(beside);
    }
    const yardstick = about.explained ? el("p", { class: "small lead" }, tunediff.yardstick(about)) : null;
    place.append(...[heading, yardstick, columns].filter(Boolean));
    if (!nulls.length) place.append(el("p", { class: "hint" }, "No examples of a null pair are there to compare with: run ", el("code", {}, "snakemake nulls"), ", then ", el("code", {}, "snakemake"), "."));
  }

  const VERDICTS = { confirmed: "chat-specific, confirmed", "not confirmed": "chat-specific, not confirmed", no: "not chat-specific" };

  // A list of latents; without a `name` they have no page (those of a null pair).
  function entries(found, name, about) {
    const items = found.map(function (each) {
      const number = name === null ? el("span", {}, `latent ${each.latent}`) : tunediff.latentLink(name, each.latent);
      const chip = (text, kind) => el("span", { class: `chip ${kind || ""}` }, text);
      const stable = each.stable === null ? null : chip(each.stable ? "stable over seeds" : "not stable over seeds");
      const nu = about.norms ? `ν^r ${each.nu_r}, ν^ε ${each.nu_e}` : `ν^act ${each.nu_a}`;
      const numbers = [about.norms && each.delta !== null ? `Δnorm ${each.delta.toFixed(2)}` : null, nu, `fires on ${each.fires}`, each.template ? `${each.template} of it on template tokens` : null];
      return el(
        "li",
        {},
        el("p", { class: "title" }, number, " ", el("bdi", { class: "name" }, each.label || (each.snippets.length ? "" : "no examples")), " ", about.norms ? chip(VERDICTS[each.verdict], each.verdict.replace(" ", "-")) : null, stable),
        each.explained ? el("p", {}, el("span", { class: "where" }, "explanation"), " ", tunediff.explained(each.explained)) : null,
        el("p", { class: "small" }, tunediff.nu(numbers.filter(Boolean).join(" · "))),
        each.snippets.map((snippet) => el("p", { class: "snippet" }, el("span", { class: "where" }, snippet.source), " ", tunediff.passage(snippet, each.max))),
      );
    });
    return el("ol", { class: "entries" }, items);
  }

  // -- figures --------------------------------------------------------------------------------------------------------

  const dialog = document.getElementById("zoomed");
  for (const button of document.querySelectorAll("button.zoom")) {
    button.addEventListener("click", function () {
      const from = button.querySelector("img"), to = dialog.querySelector("img");
      to.src = from.src;
      to.alt = from.alt;
      dialog.showModal();
    });
  }

  window.addEventListener("hashchange", route);
  route();
})();
