// The inputs of an engine's conditions, made from its contract; what they hold, as JSON for /v1/samples.

const MOST_GUIDANCE = 10;

export function build(parent, conditions, given, changed) {
  parent.replaceChildren(...conditions.map((one) => labelled(one, input(one, given[one.name]))));
  parent.oninput = changed;
}

export function values(parent, conditions, firstSeed, count) {
  const found = {};
  for (const one of conditions) {
    const field = parent.querySelector(`[name="${CSS.escape(one.name)}"]`);
    const value = read(one, field, firstSeed, count);
    if (value !== undefined) found[one.name] = value;
  }
  return found;
}

// What the link says of a condition: what its input holds.
export function texts(parent, conditions) {
  const held = {};
  for (const one of conditions) {
    const field = parent.querySelector(`[name="${CSS.escape(one.name)}"]`);
    const text = field.type === "checkbox" ? String(field.checked) : field.value;
    if (text !== "" && text !== field.dataset.start) held[one.name] = text;
  }
  return held;
}

function labelled(one, field) {
  const label = document.createElement("label");
  label.append(one.name.replaceAll("_", " "), " ", field);
  if (field.type !== "range") return label;
  const shown = document.createElement("output");
  const show = () => { shown.value = field.value; };
  field.addEventListener("input", show);
  show();
  label.insertBefore(shown, field);
  return label;
}

function input(one, text) {
  const field = one.labels.length ? choice(one) : one.shape.length ? numbers(one) : number(one);
  field.name = one.name;
  field.dataset.start = field.type === "checkbox" ? String(field.checked) : field.value;
  if (text !== undefined) {
    if (field.type === "checkbox") field.checked = text === "true";
    else field.value = text;
    if (field.selectedIndex === -1) field.value = field.dataset.start; // a name that is no label
  }
  return field;
}

function choice(one) {
  const field = document.createElement("select");
  field.add(new Option("each in turn", "turn"));
  if (one.default !== null && !one.labels[one.default]) field.add(new Option("none", ""));
  for (const name of one.labels) field.add(new Option(name, name));
  return field;
}

function number(one) {
  const field = document.createElement("input");
  if (one.dtype === "bool") {
    field.type = "checkbox";
    field.checked = Boolean(one.default);
    return field;
  }
  const guidance = one.name === "guidance" || one.alias === "guidance";
  field.type = guidance ? "range" : "number";
  if (guidance) [field.min, field.max] = [0, MOST_GUIDANCE];
  if (one.low !== null) field.min = one.low;
  if (one.high !== null) field.max = one.high;
  field.step = one.dtype.startsWith("int") ? 1 : guidance ? 0.1 : "any";
  field.value = one.default ?? one.low ?? 0;
  return field;
}

function numbers(one) {
  const field = document.createElement("textarea");
  field.rows = 2;
  field.placeholder = `JSON, shape ${one.shape.join(" × ")}` + (one.default === null ? "" : `; empty: ${one.default}`);
  return field;
}

function read(one, field, firstSeed, count) {
  if (field.type === "checkbox") return field.checked;
  if (field.value === "") return undefined;
  if (one.labels.length && field.value === "turn") {
    const many = BigInt(one.labels.length);
    return Array.from({ length: count }, (_, i) => one.labels[Number((firstSeed + BigInt(i)) % many)]);
  }
  if (one.labels.length) return field.value;
  return one.shape.length ? JSON.parse(field.value) : Number(field.value);
}
