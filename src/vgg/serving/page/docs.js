// Renders the OpenAPI document as an API reference.
const main = document.querySelector("main");
const METHODS = ["get", "post"];

function element(tag, text = "", name = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = name;
  return node;
}

// Text in which `code` is shown as code.
function prose(tag, text) {
  const node = element(tag);
  text.split("`").forEach((part, i) => node.append(i % 2 ? element("code", part) : part));
  return node;
}

const api = await (await fetch("/openapi.json")).json();
const resolve = (thing) => (thing?.$ref ? thing.$ref.split("/").slice(1).reduce((at, name) => at[name], api) : thing);
const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

function table(rows) {
  const node = element("table");
  for (const [name, text] of rows) {
    const row = element("tr"), cell = element("td");
    cell.append(element("code", name));
    row.append(cell, prose("td", text));
    node.append(row);
  }
  return node;
}

function operation(method, path, shared, one) {
  const node = element("details", "", "card"), head = element("summary"), inside = element("div", "", "inside");
  node.id = one.operationId;
  head.append(element("b", method.toUpperCase(), `method ${method}`), element("code", path), element("span", one.summary));
  if (one.description) inside.append(prose("p", one.description));
  for (const example of one["x-examples"] ?? []) inside.append(element("pre", example.replaceAll("http://127.0.0.1:8080", location.origin)));
  const parameters = [...shared, ...(one.parameters ?? [])].map(resolve);
  if (parameters.length) inside.append(element("h3", "Parameters"), table(parameters.map((p) => [p.name, `${p.description ?? ""} (${p.in})`])));
  const bodies = Object.entries(resolve(one.requestBody)?.content ?? {});
  if (bodies.length) inside.append(element("h3", "Body"), element("code", bodies.map(([kind]) => kind).join(", ")));
  for (const [, { example }] of bodies) if (example) inside.append(element("pre", pretty(example)));
  const responses = Object.entries(one.responses).map(([status, response]) => [status, resolve(response)]);
  inside.append(element("h3", "Responses"), table(responses.map(([status, response]) => [status, response.description])));
  const example = Object.values(responses[0][1].content ?? {})[0]?.example;
  if (example !== undefined) inside.append(element("pre", pretty(example)));
  node.append(head, inside);
  return node;
}

main.append(element("h1", "API reference"), prose("p", `${api.info.description} Version ${api.info.version}.`));
for (const { name, description } of api.tags) {
  main.append(element("h2", name), prose("p", description));
  for (const [path, item] of Object.entries(api.paths))
    for (const method of METHODS) if (item[method]?.tags[0] === name) main.append(operation(method, path, item.parameters ?? [], item[method]));
}
const named = location.hash && document.getElementById(location.hash.slice(1));
(named || main.querySelector("details")).open = true;
