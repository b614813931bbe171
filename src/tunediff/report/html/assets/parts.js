// What pages are made of. Texts reach the page as text nodes only.
"use strict";

(function () {
  const STEPS = 5; // of the marks' strength

  // An element: attributes by name (`class`, `aria-…`, `on…` as functions), then children: nodes or texts.
  const el = (tunediff.el = function (tag, attributes, ...children) {
    const svg = attributes && attributes.svg;
    const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "svg" || value === null || value === undefined || value === false) continue;
      if (typeof value === "function") node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) if (child !== null && child !== undefined) node.append(child);
    return node;
  });

  // Numbers in print: a true minus, a dash where there is none.
  const number = (tunediff.number = function (value, decimals) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    return value.toFixed(decimals).replace(/^-(0(\.0+)?)$/, "$1").replace("-", "−");
  });
  tunediff.significant = function (value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    return String(Number(value.toPrecision(3))).replace("-", "−");
  };
  tunediff.percent = function (value) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const x = 100 * value;
    if (x === 0) return "0 %";
    return (x >= 9.95 ? x.toFixed(0) : x < 1e-4 ? "< 0.0001" : String(Number(x.toPrecision(2)))) + " %";
  };
  tunediff.count = (value) => Number(value).toLocaleString("en");
  tunediff.interval = function (value, low, high) {
    const lacks = (end) => end === null || Number.isNaN(end);
    const ends = lacks(low) || lacks(high) ? "" : `\u00a0[${number(low, 2)},\u00a0${number(high, 2)}]`;
    return number(value, 2) + ends;
  };

  // Words with ν^r and its like: nodes with raised letters.
  tunediff.nu = (text) => text.split(/\^(r|ε|act)/).map((part, i) => (i % 2 ? el("sup", {}, part) : part));

  // An explanation with its score: the text never stands alone. Where it has no score, why. Nothing of a latent not explained.
  tunediff.explained = function (found) {
    if (!found) return null;
    if (found.why) return el("span", { class: "explained" }, `not scored: ${found.why}`);
    return el("span", { class: "explained" }, el("bdi", { class: "said", title: found.text }, found.text), el("span", { class: "score" }, `\u00a0· ${tunediff.interval(...found.score)}`));
  };

  // What scores of explanations are to be read against, in words.
  tunediff.yardstick = (about) => `Explanations stand with their balanced accuracy [95 %]: whether a judge tells from them in which held-out windows a latent fires. ${about.explained.yardstick}`;

  // A link to a latent, with its name beside the number.
  tunediff.latentLink = function (name, latent, label) {
    return el("a", { href: `#${name}/${latent}` }, `${latent}`, label ? el("span", { class: "of" }, ` ${label}`) : null);
  };

  // -- windows --------------------------------------------------------------------------------------------------------

  const readout = document.getElementById("readout");
  tunediff.say = function (text) {
    readout.textContent = text;
    readout.hidden = !text;
  };

  // A piece as it is quoted alone: the space before a word is a sign.
  tunediff.quoted = (text) => text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "∅";

  const step = (value, maximum) => (value > 0 ? Math.min(STEPS, Math.max(1, Math.ceil((STEPS * value) / maximum))) : 0);

  /* A text with its tokens marked. `text`: pieces; `activation`: per token; `maximum`: of the latent; `peak`: place of the
     peak; `cut`: whether text was left out before and after; `measured(i)`: what else is known of a token, in words.
     One token of the text is a stop for the keyboard, arrows go to the next. */
  tunediff.passage = function (window, maximum) {
    const tokens = window.text.map(function (text, i) {
      const value = window.activation[i];
      const strength = step(value, maximum);
      const classes = ["token", strength ? `s${strength}` : "", i === window.peak ? "peak" : ""].join(" ").trim();
      return el("span", { class: classes, tabindex: i === window.peak ? "0" : "-1" }, text);
    });
    const tell = function (i) {
      const value = window.activation[i];
      const share = value > 0 ? ` (${tunediff.percent(value / maximum)} of the maximum)` : "";
      const more = window.measured ? window.measured(i) : "";
      const told = `${tunediff.quoted(window.text[i])}: activation ${tunediff.significant(value)}${share}${more}`;
      tokens[i].title = told;
      tunediff.say(told);
    };
    const place = (event) => tokens.indexOf(event.target);
    const told = (event) => place(event) >= 0 && tell(place(event));
    const passage = el(
      "bdi",
      {
        class: "passage",
        onmouseover: told,
        onclick: told,
        onmouseleave: () => tunediff.say(""),
        onfocusin: told,
        onfocusout: () => tunediff.say(""),
        onkeydown: function (event) {
          const to = place(event) + { ArrowRight: 1, ArrowLeft: -1 }[event.key];
          if (!tokens[to]) return;
          event.preventDefault();
          tokens[place(event)].tabIndex = -1;
          tokens[to].tabIndex = 0;
          tokens[to].focus();
        },
      },
      window.cut[0] ? el("span", { class: "cut" }, "… ") : null,
      tokens,
      window.cut[1] ? el("span", { class: "cut" }, " …") : null,
    );
    return passage;
  };

  // -- histogram ------------------------------------------------------------------------------------------------------

  // Bars over twentieths of the maximum on a logarithmic axis; `counts`: 20 numbers.
  tunediff.histogram = function (title, counts, maximum) {
    const width = 320, height = 130, left = 44, bottom = 34, top = 8, right = 8;
    const most = Math.max(1, ...counts);
    const decades = Math.max(1, Math.ceil(Math.log10(most)));
    const x = (i) => left + (i / counts.length) * (width - left - right);
    const y = (n) => height - bottom - (n > 0 ? (Math.log10(n) + 0.15) / (decades + 0.15) : 0) * (height - bottom - top);
    const part = (tag, attributes, ...children) => el(tag, { svg: true, ...attributes }, ...children);
    const svg = part("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "histogram" });
    const total = counts.reduce((a, b) => a + b, 0);
    svg.append(part("title", {}, `${title}: ${tunediff.count(total)} tokens by activation, 0 to ${tunediff.significant(maximum)}`));
    const ticks = decades > 3 ? [0, Math.floor(decades / 2), decades] : [...Array(decades + 1).keys()];
    for (const power of ticks) {
      const n = 10 ** power;
      svg.append(part("line", { class: "grid", x1: left, x2: width - right, y1: y(n), y2: y(n) }));
      const label = n >= 1e6 ? `${n / 1e6}M` : n >= 1000 ? `${n / 1000}k` : n;
      svg.append(part("text", { x: left - 6, y: y(n) + 4, "text-anchor": "end" }, `${label}`));
    }
    counts.forEach(function (n, i) {
      if (!n) return;
      const bar = part("rect", { x: x(i) + 0.75, y: y(n), width: x(1) - x(0) - 1.5, height: height - bottom - y(n) });
      const ends = [i, i + 1].map((k) => tunediff.significant((k / counts.length) * maximum));
      bar.append(part("title", {}, `${ends[0]} to ${ends[1]}: ${tunediff.count(n)} tokens`));
      svg.append(bar);
    });
    svg.append(part("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    [0, 0.5, 1].forEach(function (share) {
      const anchor = { 0: "start", 0.5: "middle", 1: "end" }[share];
      const at = left + share * (width - left - right);
      svg.append(part("text", { x: at, y: height - bottom + 14, "text-anchor": anchor }, tunediff.significant(share * maximum)));
    });
    svg.append(part("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "activation"));
    return el("figure", { class: "small-figure" }, el("figcaption", {}, `${title}: ${tunediff.count(total)} tokens`), svg);
  };
})();
