// /openapi.json as a page: each route with the fields of its body.

const schema = await (await fetch("/openapi.json")).json();
const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

function typeOf(field) {
  if (field.enum) return field.enum.join(" | ");
  if (field.const !== undefined) return String(field.const);
  if (field.anyOf) return field.anyOf.map(typeOf).join(" | ");
  return field.items ? `${field.type} of ${typeOf(field.items)}` : field.type ?? "any";
}

function fieldsOf(body) {
  const required = body.required ?? [];
  return Object.entries(body.properties ?? {}).map(([name, field]) => {
    const said = [field.description, required.includes(name) ? "Needed." : field.default != null && `Default: ${JSON.stringify(field.default)}.`];
    return element("tr", "", element("td", name), element("td", typeOf(field)), element("td", said.filter(Boolean).join(" ")));
  });
}

for (const [path, methods] of Object.entries(schema.paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const section = element("section", "", element("code", `${method.toUpperCase()} ${path}`), element("p", route.summary));
    const content = route.requestBody?.content ?? {};
    const body = (content["application/json"] ?? content["multipart/form-data"])?.schema;
    if (body) section.append(element("table", "", ...fieldsOf(body)));
    document.getElementById("routes").append(section);
  }
}
