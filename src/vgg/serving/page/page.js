// The page: pictures in, results out. Nothing is kept but what is on screen.
import { paint } from "/page/heat.js";

const $ = (id) => document.getElementById(id);
const main = document.querySelector("main");
const AT_ONCE = 4; // requests
const PATIENCE = 5; // how often a full server is asked again

let models = [];
let pictures = []; // {name, blob, url, button, result, error, ms}
let chosen = null;
let round = new AbortController(); // ends what is asked for pictures that were replaced, or of a model that was
let key = sessionStorage.getItem("key") || "";

const percent = (score) => (score < 0.001 ? "<0.1%" : `${(100 * score).toFixed(1)}%`);
const count = (n) => (n >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : n.toLocaleString("en"));
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
const model = () => models[$("model").selectedIndex];
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

function element(tag, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.textContent = text;
  return made;
}

async function ask(path, options = {}) {
  const response = await fetch(path, { ...options, headers: key ? { ...options.headers, "X-API-Key": key } : options.headers });
  if (response.status === 401 && $("key").hidden) {
    $("key").hidden = false;
    $("key-field").focus();
  }
  return response;
}

async function loadModels() {
  const response = await ask("/v1/models");
  if (!response.ok) return response.status !== 401;
  models = (await response.json()).models;
  $("model").replaceChildren(...models.map((one) => element("option", one.version === "1" ? one.name : `${one.name}, version ${one.version}`)));
  document.querySelector(".model").hidden = models.length === 0;
  return true;
}

async function classify(picture, signal) {
  const { name, version, explains } = model() || {};
  const query = new URLSearchParams({ top: 5, explain: Boolean(explains), ...(name && { model: name, version }) });
  const started = performance.now();
  for (let attempt = 0; ; attempt++) {
    const response = await ask(`/v1/classify?${query}`, { method: "POST", body: picture.blob, headers: { "Content-Type": "application/octet-stream" }, signal });
    const answer = await response.json();
    if (response.status === 503 && attempt < PATIENCE) {
      await wait(Number(response.headers.get("Retry-After")) || 1);
    } else if (response.ok) {
      return { ...answer.results[0], timing: answer.timing, model: models.find((one) => one.name === name && one.version === version), ms: performance.now() - started };
    } else {
      return { error: answer.error.replace(/^image: /, "This file "), short: response.status === 422 ? "can't be read" : "no answer" };
    }
  }
}

async function look(picture, signal) {
  picture.result = null;
  if (picture === chosen) show(picture);
  let result;
  try {
    result = await classify(picture, signal);
  } catch {
    result = { error: "The server can't be reached.", short: "no answer" };
  }
  if (signal.aborted) return;
  picture.result = result;
  label(picture);
  if (picture === chosen) show(picture);
}

async function lookAtAll() {
  round.abort();
  const left = [...pictures], { signal } = round = new AbortController();
  const worker = async () => { while (left.length && !signal.aborted) await look(left.shift(), signal); };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

function add(files) {
  for (const { url } of pictures) URL.revokeObjectURL(url);
  pictures = files.map((file) => ({ name: file.name || "pasted picture", blob: file, url: URL.createObjectURL(file) }));
  if (!pictures.length) return;
  $("gallery").hidden = pictures.length < 2;
  $("gallery").querySelector("ul").replaceChildren(...pictures.map((picture) => {
    picture.button = element("button", "", { type: "button", onclick: () => { choose(picture); $("shown").scrollIntoView({ block: "nearest" }); } });
    const thumb = element("img", "", { src: picture.url, alt: "", onerror: () => thumb.replaceWith(element("div")) });
    picture.button.append(thumb, element("span", "…"));
    const item = element("li");
    item.append(picture.button);
    return item;
  }));
  choose(pictures[0]);
  lookAtAll();
}

function choose(picture) {
  chosen = picture;
  for (const one of pictures) one.button.setAttribute("aria-pressed", one === picture);
  show(picture);
}

// What a picture's card in the gallery says.
function label(picture) {
  const { error, short, predictions } = picture.result;
  const text = picture.button.querySelector("span");
  picture.button.classList.toggle("wrong", Boolean(error));
  text.replaceChildren(element("b", error ? short : predictions[0].label), element("i", error ? "" : percent(predictions[0].score)));
  picture.button.setAttribute("aria-label", `${picture.name}: ${text.textContent}`);
}

function show(picture) {
  const result = picture.result;
  main.classList.add("answered");
  main.classList.toggle("busy", !result);
  $("drop").hidden = true;
  $("shown").hidden = $("answer").hidden = false;
  if ($("picture").src !== picture.url) $("picture").src = picture.url;
  $("picture").alt = $("file").textContent = picture.name;
  $("heat-switch").hidden = !result?.explanation;
  $("heat").classList.remove("on");
  if (!result) {
    if (!$("bars").children.length) $("best").textContent = "Looking…";
    return;
  }
  $("trouble").hidden = !result.error;
  $("told").hidden = Boolean(result.error);
  $("facts").replaceChildren();
  if (result.error) {
    $("trouble").textContent = result.error;
    $("status").textContent = `${picture.name}: ${result.error}`;
    return;
  }
  tell(result);
  heat(result);
  $("status").textContent = `${picture.name}: ${result.predictions.map((one) => `${one.label}, ${percent(one.score)}`).join("; ")}`;
}

function tell({ predictions, timing, model, ms }) {
  $("best").textContent = predictions[0].label;
  $("sure").textContent = percent(predictions[0].score);
  const rows = [...$("bars").children]; // kept, so that the bars move
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
    ["In the network", milliseconds(timing.inference_ms)],
    ["Reading the picture", milliseconds(timing.decode_ms)],
    ["From click to answer", milliseconds(ms)],
    ["Model", model.name],
    ["Size", `${(model.bytes / 1e6).toFixed(1)} MB`],
    ["Parameters", count(model.parameters)],
    ["Classes", count(model.classes)],
  ];
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

// Lays the heat map on the part of the picture that the network saw.
function heat({ explanation }) {
  if (!explanation) return;
  const place = () => {
    const frame = $("frame").getBoundingClientRect(), shown = $("picture").getBoundingClientRect();
    const [left, top, right, bottom] = explanation.box, style = $("heat").style;
    style.left = `${shown.left - frame.left + left * shown.width}px`;
    style.top = `${shown.top - frame.top + top * shown.height}px`;
    style.width = `${(right - left) * shown.width}px`;
    style.height = `${(bottom - top) * shown.height}px`;
    $("heat").classList.toggle("on", $("heat-on").checked);
  };
  paint($("heat"), explanation.map);
  $("picture").decode().then(place, () => {});
}

const refresh = () => chosen?.result?.explanation && heat(chosen.result);
const onlyPictures = (files) => [...files].filter((file) => !file.type || file.type.startsWith("image/"));

$("choose").addEventListener("change", () => { add([...$("choose").files]); $("choose").value = ""; });
$("heat-on").addEventListener("change", refresh);
addEventListener("resize", refresh);
$("picture").addEventListener("load", ({ target }) => {
  target.style.setProperty("--aspect", target.naturalWidth / target.naturalHeight);
  $("frame").classList.remove("blank");
  refresh();
});
$("picture").addEventListener("error", () => $("frame").classList.add("blank")); // no picture, or of a kind that browsers don't show
$("model").addEventListener("change", lookAtAll);
$("key").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = $("key-field").value;
  if (await loadModels()) {
    sessionStorage.setItem("key", key);
    $("key").hidden = true;
    lookAtAll();
  } else {
    $("key-label").textContent = "The server does not know this key; it asks for another";
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
addEventListener("paste", (event) => { const files = onlyPictures(event.clipboardData.files); if (files.length) add(files); });
addEventListener("dragover", (event) => { event.preventDefault(); main.classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) main.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  main.classList.remove("over");
  add([...event.dataTransfer.files]);
});

await loadModels();
