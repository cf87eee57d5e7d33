// The picture to start from, and its mask: chosen or dropped, cut to the engine's size, kept in this page alone.

const $ = (id) => document.getElementById(id);
const USUAL = { plain: "0.8", masked: "1" }; // strengths, as Engine.images has them
const KINDS = ["image", "mask"];

let size = null; // [width, height] of the engine
let changed = () => {};
let wanted = {}; // by kind: what the link was made with, "name:sum"
let moved = false; // the slider of the strength
const chosen = {}; // by kind: { name, sum, file, cut, url }; file is what was chosen, cut what is sent

export function setUp(engine, words, onChange) {
  changed = onChange;
  $("picture").hidden = !engine.takes_image;
  const other = engine.image && [engine.image[1], engine.image[0]];
  const resized = String(size) !== String(other);
  size = other;
  wanted = engine.takes_image ? Object.fromEntries(KINDS.filter((kind) => words.get(kind)).map((kind) => [kind, words.get(kind)])) : {};
  const strength = Number(words.get("strength"));
  moved = strength > 0 && strength <= 1;
  if (moved) $("strength").value = strength;
  if (!engine.takes_image) KINDS.forEach(forget);
  else if (resized) KINDS.filter((kind) => chosen[kind]).forEach((kind) => choose(kind, chosen[kind].file));
  show();
}

// What must be chosen before anything is drawn; empty when nothing is missing.
export function missing(engine) {
  const asked = KINDS.filter((kind) => wanted[kind] && !chosen[kind]);
  if (asked.length) return `This link starts from ${asked.map((kind) => `the ${kind} ${nameOf(wanted[kind])}`).join(" and ")}. Choose the same file${asked.length > 1 ? "s" : ""}.`;
  if (engine.from_picture.length && !(chosen.image && chosen.mask)) return "This engine inpaints: choose a picture and a mask.";
  return chosen.mask && !chosen.image ? "Choose the picture that the mask is of." : "";
}

// Said beside the pictures: a link that was made with other files shows something else.
export function warning() {
  const other = KINDS.filter((kind) => wanted[kind] && chosen[kind] && label(kind) !== wanted[kind] && sumOf(wanted[kind]) !== chosen[kind].sum);
  return other.map((kind) => `Not the ${kind} of the link, which was ${nameOf(wanted[kind])}.`).join(" ");
}

export const given = () => Boolean(chosen.image);
export const fields = () => ({ strength: $("strength").value });
export const files = () => KINDS.filter((kind) => chosen[kind]).map((kind) => [kind, chosen[kind]]);

// For the link, and for what answers are remembered by.
export function words() {
  const said = KINDS.filter((kind) => chosen[kind] || wanted[kind]).map((kind) => [kind, chosen[kind] ? label(kind) : wanted[kind]]);
  return said.length ? [...said, ["strength", $("strength").value]] : [];
}

const label = (kind) => `${chosen[kind].name}:${chosen[kind].sum}`;
const nameOf = (text) => text.slice(0, text.lastIndexOf(":")) || text;
const sumOf = (text) => text.slice(text.lastIndexOf(":") + 1);

async function choose(kind, file) {
  $("picture-status").textContent = "";
  try {
    const sum = hash(new Uint8Array(await file.arrayBuffer()));
    const cut = await fitted(file);
    forget(kind);
    chosen[kind] = { name: file.name, sum, file, cut, url: URL.createObjectURL(cut) };
  } catch {
    $("picture-status").textContent = `${file.name} is no picture that this browser reads.`;
    return;
  }
  show();
  changed();
}

function forget(kind) {
  if (chosen[kind]) URL.revokeObjectURL(chosen[kind].url);
  delete chosen[kind];
  $(`${kind}-file`).value = "";
}

// A PNG of the engine's size goes as it is; all else is cut to its middle and drawn in that size.
async function fitted(file) {
  const bitmap = await createImageBitmap(file);
  const [width, height] = size;
  if (file.type === "image/png" && bitmap.width === width && bitmap.height === height) return file;
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [w, h] = [width / scale, height / scale];
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (bitmap.width - w) / 2, (bitmap.height - h) / 2, w, h, 0, 0, width, height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// FNV-1a, 32 bits: tells a reader of the link that a file is another one; crypto.subtle is not there without HTTPS.
function hash(bytes) {
  let sum = 0x811c9dc5;
  for (const byte of bytes) sum = Math.imul(sum ^ byte, 0x01000193) >>> 0;
  return sum.toString(16).padStart(8, "0");
}

function show() {
  if (!moved) $("strength").value = chosen.mask ? USUAL.masked : USUAL.plain;
  $("strength-shown").value = Number($("strength").value).toFixed(2);
  $("strength-label").hidden = $("mask-zone").hidden = !chosen.image && !chosen.mask && !wanted.mask;
  for (const kind of KINDS) {
    const one = chosen[kind];
    const zone = $(`${kind}-zone`);
    zone.classList.toggle("chosen", Boolean(one));
    const image = zone.querySelector("img");
    image.hidden = !one;
    if (one) image.src = one.url;
    else image.removeAttribute("src");
    zone.querySelector(".name").textContent = one ? one.name : "";
    zone.querySelector("button").hidden = !one;
  }
}

for (const kind of KINDS) {
  const zone = $(`${kind}-zone`);
  $(`${kind}-file`).onchange = (event) => { if (event.target.files[0]) choose(kind, event.target.files[0]); };
  zone.querySelector("button").onclick = () => {
    forget(kind);
    delete wanted[kind];
    if (kind === "image") { forget("mask"); delete wanted.mask; }
    show();
    changed();
    $(`${kind}-file`).focus();
  };
}
$("strength").oninput = () => { moved = true; show(); changed(); };

// A file may be dropped anywhere: on the mask's place it is the mask, elsewhere the picture.
addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file && !$("picture").hidden) choose(event.target.closest?.("#mask-zone") ? "mask" : "image", file);
});
