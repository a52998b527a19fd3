"use strict";
// Plotly and the figures are packed: compressed, then written in base 85, as Python's b85encode does.
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";
const { nonce } = document.currentScript;

async function unpack(element) {
  const text = element.textContent, values = new Map([...DIGITS].map((digit, i) => [digit, i]));
  const bytes = new DataView(new ArrayBuffer((text.length / 5) * 4));
  for (let i = 0; i < text.length; i += 5) {
    let word = 0;
    for (let j = i; j < i + 5; j += 1) word = word * 85 + values.get(text[j]);
    bytes.setUint32((i / 5) * 4, word);
  }
  const compressed = new Blob([bytes.buffer.slice(0, Number(element.dataset.bytes))]);
  const stream = compressed.stream().pipeThrough(new DecompressionStream("deflate"));
  element.textContent = await new Response(stream).text();
}

function run(id) {
  const script = document.createElement("script");
  script.nonce = nonce;
  script.textContent = document.getElementById(id).textContent;
  document.body.append(script);
}

Promise.all(["plotly", "plots"].map((id) => unpack(document.getElementById(id))))
  .then(() => ["plotly", "report"].forEach(run))
  .catch((error) => document.querySelector("main").prepend(`This browser cannot draw the figures: ${error}`));
