// Shards: scripts that hand in one compressed JSON value each. A page opened from the disk cannot fetch, but it can load
// scripts. No value of a shard is ever used as HTML.
"use strict";

var tunediff = {};

(function () {
  const texts = new Map(); // key -> compressed text, until it is read
  const values = new Map(); // key -> promise of its value

  tunediff.data = function (key, text) {
    texts.set(key, text);
  };

  async function inflated(text) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  // The value of a shard; it is loaded once.
  tunediff.load = function (key) {
    if (!values.has(key)) {
      const value = new Promise(function (resolve, reject) {
        const script = document.createElement("script");
        script.src = "data/" + key + ".js";
        script.onload = function () {
          script.remove();
          const text = texts.get(key);
          texts.delete(key);
          inflated(text).then(resolve, reject);
        };
        script.onerror = function () {
          reject(new Error("data/" + key + ".js cannot be read; unpack the whole folder of the report"));
        };
        document.head.append(script);
      });
      values.set(key, value);
    }
    return values.get(key);
  };

  // Text of every token id.
  let pieces = null;
  tunediff.pieces = function () {
    pieces ??= tunediff.load("pieces").then(function (found) {
      const text = [];
      found.id.forEach((id, i) => (text[id] = found.text[i]));
      return text;
    });
    return pieces;
  };

  // Table of a dictionary: columns as typed arrays (missing numbers are NaN), the latents in the order of the ranking.
  const tables = new Map();
  tunediff.table = function (name) {
    if (!tables.has(name)) {
      tables.set(
        name,
        tunediff.load("table/" + name).then(function (found) {
          const columns = {};
          for (const [key, values] of Object.entries(found.columns)) {
            const column = new Float32Array(values.length);
            for (let i = 0; i < values.length; i++) column[i] = values[i] === null ? NaN : values[i];
            columns[key] = column;
          }
          const ranked = [];
          columns.rank.forEach((rank, latent) => rank && (ranked[rank - 1] = latent));
          const explained = new Map(); // explained latents, in the order in which they stand in shards
          if (found.explained) {
            columns.explained = new Float32Array(found.label.length).fill(NaN);
            const { latent, text, why, score, low, high } = found.explained;
            latent.forEach(function (number, place) {
              explained.set(number, { place, text: text[place], why: why[place], score: [score[place], low[place], high[place]] });
              columns.explained[number] = score[place] ?? -1; // not scored: after all scores
            });
          }
          return { n: found.label.length, classes: found.classes, columns, label: found.label, ranked, explained };
        }),
      );
    }
    return tables.get(name);
  };

  // Rows of one latent in a table of a shard: an object of slices.
  tunediff.rows = function (table, i) {
    let start = 0;
    for (let k = 0; k < i; k++) start += table.count[k];
    const end = start + table.count[i];
    const found = { n: end - start };
    for (const [key, values] of Object.entries(table)) {
      if (key !== "count") found[key] = values.slice(start, end);
    }
    return found;
  };
})();
