// The page: a state in the address, three requests for it, pictures and times side by side.

import * as controls from "/controls.js";
import * as start from "/picture.js";

const $ = (id) => document.getElementById(id);
const TITLES = { ddim: "DDIM", pfdiff: "PFDiff", engine: "This engine" };
const ORDER = ["ddim", "pfdiff", "engine"];
const COUNTS = [1, 4, 8, 10, 16];
const MOST_FROM_PICTURE = 10; // of /v1/images/edits
const SMALL = 128; // pixels: smaller pictures are shown with hard edges, eight a row
const HELD = 150; // answers kept, so that the slider goes back at once
const PAUSE_MS = 60;

let engines = [];
let engine = null;
let stops = [];
let running = null;
let timer = 0;
const answers = new Map();

// Talking to the server.
async function call(path, body, signal) {
  const key = sessionStorage.getItem("key");
  const headers = { ...(typeof body === "string" && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body, signal });
  if (answer.status === 401) {
    await askForKey();
    return call(path, body, signal);
  }
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.error.message), { retry: answer.headers.get("Retry-After") });
  const timing = [...(answer.headers.get("Server-Timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)];
  return { timing: Object.fromEntries(timing.map(([, name, ms]) => [`${name}_ms`, Number(ms)])), ...content };
}

function askForKey() {
  const dialog = $("key-dialog");
  return new Promise((resolve) => {
    dialog.onclose = () => { sessionStorage.setItem("key", $("key").value); resolve(); };
    if (!dialog.open) dialog.showModal();
  });
}

// The state, in the inputs and in the address. Seeds are 64-bit: they are written into the JSON by hand.
function seeds() {
  const first = BigInt($("seed").value || 0);
  return Array.from({ length: Number($("count").value) }, (_, i) => BigInt.asUintN(64, first + BigInt(i)));
}

// Prompts and pictures stand for the others.
function shownConditions() {
  return engine.contract.conditions.filter((one) => ![...engine.encoded, ...engine.from_picture].includes(one.name));
}

// What is asked for: path, body, and the key by which the answer is remembered.
function request(sampler) {
  if (!start.given()) return { path: "/v1/samples", body: bodyOf(sampler), key: bodyOf(sampler) };
  const body = new FormData();
  const fields = fieldsOf(sampler);
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  for (const [kind, one] of start.files()) body.append(kind, one.cut, one.name);
  return { path: "/v1/images/edits", body, key: JSON.stringify([fields, start.words()]) };
}

function fieldsOf(sampler) {
  const chosen = seeds();
  const fields = { model: engine.name, sampler, nfe: stops[$("nfe").value], seed: String(chosen[0]), n: chosen.length, ...start.fields() };
  fields.conditions = JSON.stringify(controls.values($("conditions"), shownConditions(), chosen[0], chosen.length));
  if (engine.takes_prompt) fields.prompt = $("prompt").value;
  if (engine.takes_negative_prompt && $("negative").value) fields.negative_prompt = $("negative").value;
  return fields;
}

function bodyOf(sampler) {
  const chosen = seeds();
  const body = { engine: engine.name, sampler, nfe: stops[$("nfe").value], format: "json" };
  body.conditions = controls.values($("conditions"), shownConditions(), chosen[0], chosen.length);
  if (engine.takes_prompt) body.prompt = $("prompt").value;
  if (engine.takes_negative_prompt && $("negative").value) body.negative_prompt = $("negative").value;
  return `${JSON.stringify(body).slice(0, -1)},"seeds":[${chosen.join()}]}`;
}

function link() {
  const words = new URLSearchParams({ engine: engine.name, nfe: stops[$("nfe").value], seed: $("seed").value, n: $("count").value });
  if (engine.takes_prompt) {
    words.set("prompt", $("prompt").value);
    if (engine.takes_negative_prompt && $("negative").value) words.set("negative", $("negative").value);
  }
  for (const [name, text] of Object.entries(controls.texts($("conditions"), shownConditions()))) words.set(`c.${name}`, text);
  for (const [name, text] of start.words()) words.set(name, text);
  return `${location.origin}/?${words}`;
}

function setUp(words) {
  engine = engines.find((one) => one.name === words.get("engine")) ?? engines[0];
  $("engine").value = engine.name;
  const shape = engine.image ? `${engine.image[1]} × ${engine.image[0]}` : engine.contract.shape.join(" × ");
  $("about").textContent = `${shape}, ${engine.description}`;
  document.title = `${engine.name} · pfdiff`;
  $("words").hidden = !engine.takes_prompt;
  $("negative").parentElement.hidden = !engine.takes_negative_prompt;
  $("prompt").value = words.get("prompt") ?? "";
  $("negative").value = words.get("negative") ?? "";

  const held = Object.values(engine.samplers).flatMap((one) => Object.keys(one).map(Number));
  stops = [...new Set(held)].sort((a, b) => a - b);
  const wanted = stops.indexOf(Number(words.get("nfe")));
  const own = stops.indexOf(engine.nfe.find((nfe) => nfe >= 8) ?? engine.nfe.at(-1));
  $("nfe").max = stops.length - 1;
  $("nfe").value = wanted < 0 ? own : wanted;
  $("stops").replaceChildren(...stops.map((nfe, index) => {
    const stop = Object.assign(document.createElement("li"), { textContent: nfe });
    stop.classList.toggle("own", engine.nfe.includes(nfe));
    stop.onclick = () => { $("nfe").value = index; changed(); };
    return stop;
  }));

  const small = engine.image && engine.image[1] <= SMALL;
  $("seed").value = /^\d{1,20}$/.test(words.get("seed")) ? words.get("seed") : "0";
  $("count").replaceChildren(...COUNTS.map((n) => new Option(n)));
  $("count").value = COUNTS.includes(Number(words.get("n"))) ? words.get("n") : small ? 8 : 1;
  const given = Object.fromEntries([...words].filter(([name]) => name.startsWith("c.")).map(([name, text]) => [name.slice(2), text]));
  controls.build($("conditions"), shownConditions(), given, changed);
  start.setUp(engine, words, changed);
  $("rows").replaceChildren(...ORDER.filter((name) => engine.samplers[name]).map(newRow));
  draw();
}

// Drawing.
function newRow(sampler) {
  const row = $("row").content.firstElementChild.cloneNode(true);
  row.dataset.sampler = sampler;
  row.style.setProperty("--aspect", engine.image ? `${engine.image[1]} / ${engine.image[0]}` : 1);
  return row;
}

function changed() {
  document.body.dataset.shown = "";
  showNfe();
  clearTimeout(timer);
  timer = setTimeout(draw, PAUSE_MS);
}

function showNfe() {
  const nfe = stops[$("nfe").value];
  $("nfe-shown").value = nfe;
  $("nfe").setAttribute("aria-valuetext", `${nfe} network evaluations`);
  [...$("stops").children].forEach((stop, index) => stop.classList.toggle("chosen", index === Number($("nfe").value)));
}

async function draw() {
  showNfe();
  if (!$("seed").checkValidity()) return;
  running?.abort(); // the server does not sample for who has left
  const mine = running = new AbortController();
  history.replaceState(null, "", link());
  boundCount();
  $("rows").classList.toggle("single", $("count").value === "1");
  const missing = start.missing(engine);
  $("status").textContent = missing || start.warning();
  if (missing) {
    for (const row of $("rows").children) empty(row, "");
    return;
  }
  for (const row of $("rows").children) {
    if (mine.signal.aborted) return;
    try {
      await drawRow(row, mine.signal);
    } catch (error) {
      row.classList.remove("drawing");
      if (error.name === "AbortError") return;
      $("status").textContent = error.retry ? `${error.message}; in ${error.retry} s` : error.message;
    }
  }
  if (!mine.signal.aborted) document.body.dataset.shown = link();
}

// Fewer pictures start from one.
function boundCount() {
  for (const option of $("count").options) option.disabled = start.given() && Number(option.value) > MOST_FROM_PICTURE;
  if ($("count").selectedOptions[0].disabled) $("count").value = MOST_FROM_PICTURE;
}

function empty(row, why) {
  show(row, [Object.assign(document.createElement("p"), { textContent: why })]);
  row.classList.add("absent");
  row.querySelector(".time").textContent = "";
}

async function drawRow(row, signal) {
  const sampler = row.dataset.sampler;
  const held = engine.samplers[sampler][stops[$("nfe").value]];
  const instead = sampler === "engine" ? whyNoPictures(held) : held ? "" : "Too few times in the schedule.";
  row.classList.toggle("absent", instead !== "");
  row.querySelector("h2").textContent = sampler === "engine" && held?.tuned ? "Tuned" : TITLES[sampler];
  row.querySelector(".solver").textContent = held ? `${held.solver}, ${held.grid}` : "";
  if (instead) return empty(row, instead);
  const { path, body, key } = request(sampler);
  let answer = answers.get(key);
  if (!answer) {
    row.classList.add("drawing");
    const begun = performance.now();
    answer = await call(path, body, signal);
    answer.total = performance.now() - begun;
    answer.samples ??= answer.data.map((one) => ({ seed: one.seed, png: one.b64_json }));
    answers.set(key, answer);
    if (answers.size > HELD) answers.delete(answers.keys().next().value);
  }
  row.classList.remove("drawing");
  show(row, answer.samples.map((one) => (one.png ? picture(one, sampler) : numbers(one))));
  showTime(row, answer);
}

// The engine's own row says so when it holds nothing for this slider, or nothing else than the row above.
function whyNoPictures(held) {
  const nfe = stops[$("nfe").value];
  if (!held) return `Built for ${engine.nfe.join(", ")} evaluations, not for ${nfe}.`;
  const same = ["pfdiff", "ddim"].find((name) => engine.samplers[name]?.[nfe]?.digest === held.digest);
  return same ? `The same program as ${TITLES[same]}; pfdiff tune searches a better one.` : "";
}

function show(row, children) {
  const pictures = row.querySelector(".pictures");
  const small = engine.image && engine.image[1] <= SMALL;
  pictures.style.setProperty("--across", Math.min(children.length, small ? (innerWidth > 736 ? 10 : children.length % 5 ? 4 : 5) : 4));
  pictures.replaceChildren(...children);
}

function picture(one, sampler) {
  const image = new Image();
  image.src = `data:image/png;base64,${one.png}`;
  image.alt = `seed ${one.seed}, ${TITLES[sampler]}`;
  image.title = `seed ${one.seed}`;
  image.classList.toggle("small", engine.image[1] <= SMALL);
  return image;
}

function numbers(one) {
  return Object.assign(document.createElement("pre"), { textContent: JSON.stringify(one.sample, (_, x) => (typeof x === "number" ? Number(x.toPrecision(3)) : x)) });
}

function showTime(row, answer) {
  const { wait_ms: wait, sample_ms: sample, encode_ms: encode } = answer.timing;
  const parts = { wait, sample, encode, rest: Math.max(0, answer.total - wait - sample - encode) };
  const each = (sample / answer.nfe).toFixed(sample < 10 * answer.nfe ? 1 : 0);
  const time = row.querySelector(".time");
  time.replaceChildren(Object.assign(document.createElement("b"), { textContent: `${answer.total.toFixed(0)} ms` }), ` = ${answer.nfe} × ${each} + ${(answer.total - sample).toFixed(0)}`);
  const bar = row.querySelector(".bar");
  bar.replaceChildren(...Object.entries(parts).map(([name, ms]) => {
    const part = document.createElement("i");
    part.className = name;
    part.style.width = `${(100 * ms) / answer.total}%`;
    return part;
  }));
  bar.title = Object.entries(parts).map(([name, ms]) => `${name} ${ms.toFixed(1)} ms`).join(", ");
  bar.setAttribute("aria-label", bar.title);
}

// Copying, keys.
async function copy(button, text) {
  const title = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    prompt("Copy this:", text); // a page that is not on localhost or HTTPS has no clipboard
  }
  setTimeout(() => { button.textContent = title; }, 1200);
}

function curl() {
  const sampler = engine.samplers.engine[stops[$("nfe").value]] ? "engine" : "pfdiff";
  const key = sessionStorage.getItem("key") ? ' -H "Authorization: Bearer $PFDIFF_API_KEY"' : "";
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  if (start.given()) {
    const files = start.files().map(([kind, one]) => `-F ${quoted(`${kind}=@"${one.name}"`)}`);
    const fields = Object.entries(fieldsOf(sampler)).map(([name, value]) => `--form-string ${quoted(`${name}=${value}`)}`);
    return `curl ${location.origin}/v1/images/edits${key} ${[...files, ...fields].join(" ")} -o samples.json`;
  }
  const body = bodyOf(sampler).replace('"format":"json"', `"format":"${engine.image ? "png" : "npz"}"`);
  const file = engine.image ? "samples.png" : "samples.npz";
  return `curl ${location.origin}/v1/samples -H 'Content-Type: application/json'${key} -d ${quoted(body)} -o ${file}`;
}

function step(field, by) {
  if (field === "nfe") $("nfe").value = Number($("nfe").value) + by;
  else $("seed").value = BigInt.asUintN(64, BigInt($("seed").value || 0) + BigInt(by)).toString();
  changed();
}

const KEYS = { ArrowLeft: ["nfe", -1], ArrowRight: ["nfe", 1], ArrowUp: ["seed", 1], ArrowDown: ["seed", -1] };
addEventListener("keydown", (event) => {
  if (!KEYS[event.key] || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea, dialog")) return;
  event.preventDefault();
  step(...KEYS[event.key]);
});
$("controls").onsubmit = (event) => event.preventDefault();
$("nfe").oninput = $("seed").oninput = $("count").oninput = $("words").oninput = changed;
$("engine").oninput = () => setUp(new URLSearchParams({ engine: $("engine").value, seed: $("seed").value }));
$("another").onclick = () => { $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 100000; changed(); };
$("link").onclick = () => copy($("link"), link());
$("curl").onclick = () => copy($("curl"), curl());

try {
  ({ engines } = await call("/v1/engines"));
  $("engine").replaceChildren(...engines.map((one) => new Option(one.name)));
  setUp(new URLSearchParams(location.search));
} catch (error) {
  $("status").textContent = error.message;
}
