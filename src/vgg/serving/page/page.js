// The web page: sends images, shows results. It stores nothing beyond the page.
import { paint } from "/page/heat.js";

const $ = (id) => document.getElementById(id);
const main = document.querySelector("main");
const CONCURRENCY = 4; // requests at the same time
const RETRIES = 5; // after status 503
const NONE = "No class above 50%"; // of a model whose classes are independent

let models = [];
let images = []; // {name, blob, url, button, result, error, ms}
let selected = null;
let round = new AbortController(); // cancels requests when the images or the model change
let key = sessionStorage.getItem("key") || "";

const percent = (score) => (score < 0.001 ? "<0.1%" : `${(100 * score).toFixed(1)}%`);
const count = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : n.toLocaleString("en"));
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
const model = () => models[$("model").selectedIndex];
const sentence = (text) => text[0].toUpperCase() + text.slice(1);
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

function element(tag, text = "", attributes = {}) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.textContent = text;
  return node;
}

async function request(path, options = {}) {
  const response = await fetch(path, { ...options, headers: key ? { ...options.headers, "X-API-Key": key } : options.headers });
  if (response.status === 401 && $("key").hidden) {
    $("key").hidden = false;
    $("key-field").focus();
  }
  return response;
}

async function loadModels() {
  const response = await request("/v1/models");
  if (!response.ok) return response.status !== 401;
  models = (await response.json()).models;
  $("model").replaceChildren(...models.map((one) => element("option", one.version === "1" ? one.name : `${one.name}, version ${one.version}`)));
  document.querySelector(".model").hidden = models.length === 0;
  return true;
}

async function classify(image, signal) {
  const { name, version, explains, output } = model() || {};
  const query = new URLSearchParams({ ...(output !== "sigmoid" && { top: 5 }), explain: Boolean(explains), ...(name && { model: name, version }) });
  const started = performance.now();
  for (let attempt = 0; ; attempt++) {
    const response = await request(`/v1/classify?${query}`, { method: "POST", body: image.blob, headers: { "Content-Type": "application/octet-stream" }, signal });
    const body = await response.json();
    if (response.status === 503 && attempt < RETRIES) {
      await wait(Number(response.headers.get("Retry-After")) || 1);
    } else if (response.ok) {
      return { ...body.results[0], timing: body.timing, model: models.find((one) => one.name === name && one.version === version), ms: performance.now() - started };
    } else {
      return { error: sentence(body.error.replace(/^image: /, "")), short: response.status === 422 ? "unreadable" : "error" };
    }
  }
}

async function update(image, signal) {
  image.result = null;
  if (image === selected) show(image);
  let result;
  try {
    result = await classify(image, signal);
  } catch {
    result = { error: "No connection to the server", short: "error" };
  }
  if (signal.aborted) return;
  image.result = result;
  label(image);
  if (image === selected) show(image);
}

async function updateAll() {
  round.abort();
  const waiting = [...images], { signal } = round = new AbortController();
  const worker = async () => { while (waiting.length && !signal.aborted) await update(waiting.shift(), signal); };
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
}

function add(files) {
  for (const { url } of images) URL.revokeObjectURL(url);
  images = files.map((file) => ({ name: file.name || "pasted image", blob: file, url: URL.createObjectURL(file) }));
  if (!images.length) return;
  $("gallery").hidden = images.length < 2;
  $("gallery").querySelector("ul").replaceChildren(...images.map((image) => {
    image.button = element("button", "", { type: "button", onclick: () => { select(image); $("shown").scrollIntoView({ block: "nearest" }); } });
    const thumb = element("img", "", { src: image.url, alt: "", onerror: () => thumb.replaceWith(element("div")) });
    image.button.append(thumb, element("span", "…"));
    const item = element("li");
    item.append(image.button);
    return item;
  }));
  select(images[0]);
  updateAll();
}

function select(image) {
  selected = image;
  for (const one of images) one.button.setAttribute("aria-pressed", one === image);
  show(image);
}

// Updates the card of an image in the gallery.
function label(image) {
  const { error, short, predictions } = image.result;
  const text = image.button.querySelector("span");
  image.button.classList.toggle("wrong", Boolean(error));
  const [best] = predictions || [];
  text.replaceChildren(element("b", error ? short : best?.label ?? "none"), element("i", best ? percent(best.score) : ""));
  image.button.setAttribute("aria-label", `${image.name}: ${text.textContent}`);
}

function show(image) {
  const result = image.result;
  main.classList.add("has-result");
  main.classList.toggle("busy", !result);
  $("drop").hidden = true;
  $("shown").hidden = $("result").hidden = false;
  if ($("image").src !== image.url) $("image").src = image.url;
  $("image").alt = $("file").textContent = image.name;
  $("heat-switch").hidden = !result?.explanation;
  $("heat").classList.remove("on");
  if (!result) {
    if (!$("bars").children.length) $("best").textContent = "Classifying…";
    return;
  }
  $("error").hidden = !result.error;
  $("predictions").hidden = Boolean(result.error);
  $("facts").replaceChildren();
  if (result.error) {
    $("error").textContent = result.error;
    $("status").textContent = `${image.name}: ${result.error}`;
    return;
  }
  showPredictions(result);
  heat(result);
  const spoken = result.predictions.map((one) => `${one.label}, ${percent(one.score)}`).join("; ") || NONE;
  $("status").textContent = `${image.name}: ${spoken}`;
}

function showPredictions({ predictions, timing, model, ms }) {
  $("best").textContent = predictions[0]?.label ?? NONE;
  $("score").textContent = predictions.length ? percent(predictions[0].score) : "";
  $("note").hidden = model.output !== "sigmoid" || !predictions.length;
  $("bars").classList.toggle("equal", model.output === "sigmoid");
  const rows = [...$("bars").children]; // reused, so that the bars are animated
  while (rows.length < predictions.length) {
    const row = element("li");
    row.append(element("b"), element("i"), element("div"));
    $("bars").append(row);
    rows.push(row);
  }
  rows.splice(predictions.length).forEach((row) => row.remove());
  predictions.forEach((one, place) => {
    const [name, score, bar] = rows[place].children;
    name.textContent = one.label;
    name.title = one.wnid || "";
    score.textContent = percent(one.score);
    requestAnimationFrame(() => bar.style.setProperty("--share", `${100 * one.score}%`));
  });
  const facts = [
    ["Inference", milliseconds(timing.inference_ms)],
    ["Decoding", milliseconds(timing.decode_ms)],
    ["Total", milliseconds(ms)],
    ["Model", model.name],
    ["Size", `${(model.bytes / 1e6).toFixed(1)} MB`],
    ["Parameters", count(model.parameters)],
    ["Classes", count(model.classes)],
  ];
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

// Places the heat map on the part of the image that the network received.
function heat({ explanation }) {
  if (!explanation) return;
  const place = () => {
    const frame = $("frame").getBoundingClientRect(), shown = $("image").getBoundingClientRect();
    const [left, top, right, bottom] = explanation.box, style = $("heat").style;
    style.left = `${shown.left - frame.left + left * shown.width}px`;
    style.top = `${shown.top - frame.top + top * shown.height}px`;
    style.width = `${(right - left) * shown.width}px`;
    style.height = `${(bottom - top) * shown.height}px`;
    $("heat").classList.toggle("on", $("heat-on").checked);
  };
  paint($("heat"), explanation.map, explanation.box);
  $("image").decode().then(place, () => {});
}

const refresh = () => selected?.result?.explanation && heat(selected.result);
const onlyImages = (files) => [...files].filter((file) => !file.type || file.type.startsWith("image/"));

$("choose").addEventListener("change", () => { add([...$("choose").files]); $("choose").value = ""; });
$("heat-on").addEventListener("change", refresh);
addEventListener("resize", refresh);
$("image").addEventListener("load", ({ target }) => {
  target.style.setProperty("--aspect", target.naturalWidth / target.naturalHeight);
  $("frame").classList.remove("blank");
  refresh();
});
$("image").addEventListener("error", () => $("frame").classList.add("blank")); // not an image, or a format that browsers don't show
$("model").addEventListener("change", updateAll);
$("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = $("key-field").value;
  if (await loadModels()) {
    sessionStorage.setItem("key", key);
    $("key").hidden = true;
    updateAll();
  } else {
    $("key-label").textContent = "Invalid API key; enter another one";
    $("key-field").select();
  }
});
$("examples").addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const name = button.dataset.example;
  const blob = await (await fetch(`/page/${name}`)).blob();
  add([new File([blob], name, { type: blob.type })]);
});
addEventListener("paste", (event) => { const files = onlyImages(event.clipboardData.files); if (files.length) add(files); });
addEventListener("dragover", (event) => { event.preventDefault(); main.classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) main.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  main.classList.remove("over");
  add([...event.dataTransfer.files]);
});

await loadModels();
