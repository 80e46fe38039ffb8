// The chat page: one dialogue, or two models side by side. What is sent back to a model is its own raw text.
import { render } from "./text.js";

const at = (id) => document.getElementById(id);
const STORE = "steel.dialogue";
const models = new Map(); // name -> entry of /v1/models
let sides = [newSide()]; // [{model, turns: [{role, content, facts?, stopped?, error?}]}]
let running = null; // AbortController while answers come

function newSide(model = "") {
  return { model, turns: [] };
}

// ------------------------------------------------------------------ the server
function headers() {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function loadModels() {
  const reply = await fetch("/v1/models", { headers: headers() });
  if (reply.status === 401) {
    at("key-label").hidden = false;
    return say("This server asks for an API key.");
  }
  if (!reply.ok) return say(`The server says ${reply.status}.`);
  models.clear();
  for (const entry of (await reply.json()).data) models.set(entry.id, entry);
  for (const id of ["model-a", "model-b"]) {
    at(id).replaceChildren(...[...models.keys()].map((name) => new Option(name, name)));
  }
  const names = [...models.keys()];
  sides.forEach((side, i) => {
    if (!models.has(side.model)) side.model = names[Math.min(i, names.length - 1)];
  });
  at("compare").disabled = false;
  say("");
  draw();
}

// What of a dialogue is sent: no turn that failed or was stopped, nor the question before it.
function sendable(turns) {
  const kept = [];
  for (const turn of turns) {
    if (turn.stopped || turn.error) kept.pop();
    else kept.push({ role: turn.role, content: turn.content });
  }
  return kept;
}

async function answer(side, signal) {
  const entry = models.get(side.model) || { chat: true };
  const messages = sendable(side.turns);
  const turn = { role: "assistant", content: "", facts: "" };
  side.turns.push(turn);
  const body = {
    model: side.model,
    temperature: Number(at("temperature").value),
    max_tokens: Number(at("tokens").value),
    stream: true,
    stream_options: { include_usage: true },
    ...(entry.chat ? { messages } : { prompt: messages.at(-1).content }),
  };
  const begun = performance.now();
  let first = 0;
  let reason = "";
  let usage = null;
  try {
    const place = entry.chat ? "/v1/chat/completions" : "/v1/completions";
    const reply = await fetch(place, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    for await (const frame of frames(reply.body)) {
      if (frame.error) throw new Error(frame.error.message);
      usage = frame.usage || usage;
      const choice = frame.choices[0];
      if (!choice) continue;
      const piece = entry.chat ? choice.delta.content : choice.text;
      if (piece) {
        first = first || performance.now();
        turn.content += piece;
        drawTurn(side, side.turns.length - 1);
      }
      reason = choice.finish_reason || reason;
    }
    if (!reason) throw new Error("the answer ended early");
    const seconds = (performance.now() - (first || begun)) / 1000;
    const made = usage ? usage.completion_tokens : 0;
    const speed = made > 1 && seconds > 0 ? `, ${((made - 1) / seconds).toFixed(0)} tokens/s` : "";
    const cut = reason === "length" ? ", cut at the limit of tokens" : "";
    turn.facts = `${side.model}, temperature ${body.temperature}, ${made} tokens${speed}${cut}`;
  } catch (error) {
    if (error.name === "AbortError") {
      turn.stopped = true;
      turn.facts = "stopped: the model is not reminded of this turn";
    } else {
      turn.error = error.message;
    }
  }
  drawTurn(side, side.turns.length - 1);
}

async function* frames(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (data.length && data[0] !== "[DONE]") yield JSON.parse(data.join("\n"));
    }
  }
}

async function run() {
  running = new AbortController();
  buttons();
  await Promise.all(sides.map((side) => answer(side, running.signal)));
  running = null;
  buttons();
  save();
}

// -------------------------------------------------------------------- the page
function draw() {
  at("sides").replaceChildren(
    ...sides.map((side) => {
      const element = document.createElement("section");
      element.className = "side";
      const title = document.createElement("h2");
      title.textContent = side.model + (models.get(side.model)?.chat === false ? ": continues texts, knows no turns" : "");
      element.append(title);
      side.element = element;
      side.turns.forEach((_, i) => drawTurn(side, i));
      return element;
    }),
  );
  at("compare").checked = sides.length > 1;
  at("second-label").hidden = sides.length < 2;
  at("model-a").value = sides[0].model;
  if (sides[1]) at("model-b").value = sides[1].model;
  buttons();
}

function drawTurn(side, index) {
  const turn = side.turns[index];
  let box = side.element.children[index + 1];
  if (!box) {
    box = document.createElement("div");
    box.className = `turn ${turn.role}`;
    side.element.append(box);
  }
  const text = document.createElement("div");
  text.className = "text";
  render(text, turn.content);
  box.replaceChildren(text);
  const facts = turn.error ? `error: ${turn.error}` : turn.facts;
  if (facts) {
    const line = document.createElement("p");
    line.className = turn.error ? "facts error" : "facts";
    line.textContent = facts;
    box.append(line);
  }
  const end = side.element.scrollHeight - side.element.scrollTop - side.element.clientHeight;
  if (end < 120) side.element.scrollTop = side.element.scrollHeight;
}

function buttons() {
  at("send").disabled = Boolean(running) || !models.size;
  at("stop").disabled = !running;
  at("again").disabled = Boolean(running) || !sides.some((side) => side.turns.length);
  for (const id of ["new", "compare", "model-a", "model-b", "import"]) at(id).disabled = Boolean(running);
}

function say(text) {
  at("notice").textContent = text;
}

function send() {
  const text = at("text").value;
  if (!text.trim() || running || !models.size) return;
  at("text").value = "";
  for (const side of sides) {
    side.turns.push({ role: "user", content: text });
    drawTurn(side, side.turns.length - 1);
  }
  run();
}

function again() {
  for (const side of sides) {
    while (side.turns.length && side.turns.at(-1).role === "assistant") {
      side.turns.pop();
      side.element.lastChild.remove();
    }
  }
  run();
}

// --------------------------------------------------------------------- history
function record() {
  const shown = sides.map(({ model, turns }) => ({ model, folder: models.get(model)?.folder, turns }));
  const settings = { temperature: Number(at("temperature").value), max_tokens: Number(at("tokens").value) };
  return { format: "steel-dialogue", settings, sides: shown };
}

function restore(value) {
  if (value?.format !== "steel-dialogue" || !Array.isArray(value.sides) || !value.sides.length) {
    throw new Error("this is no dialogue that was exported here");
  }
  const turn = ({ role, content, facts, stopped, error }) => ({
    role: role === "user" ? "user" : "assistant",
    content: String(content ?? ""),
    ...(facts ? { facts: String(facts) } : {}),
    ...(stopped ? { stopped: true } : {}),
    ...(error ? { error: String(error) } : {}),
  });
  sides = value.sides.slice(0, 2).map((side) => ({ model: String(side.model), turns: side.turns.map(turn) }));
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify(record()));
  } catch {
    say("This browser keeps no history: use Export.");
  }
}

function open(text) {
  try {
    restore(JSON.parse(text));
    say("");
  } catch (error) {
    say(`Not read: ${error.message}`);
  }
}

// ---------------------------------------------------------------------- events
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("text").addEventListener("keydown", (event) => {
  // while an input method composes, Enter takes its word; some browsers say so by key code 229 alone
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
at("stop").addEventListener("click", () => running?.abort());
at("again").addEventListener("click", again);
at("new").addEventListener("click", () => {
  for (const side of sides) side.turns = [];
  draw();
  save();
});
at("compare").addEventListener("change", () => {
  const names = [...models.keys()];
  if (at("compare").checked) sides = [sides[0], newSide(names.find((name) => name !== sides[0].model) || names[0])];
  else sides = [sides[0]];
  if (sides[1]) sides[1].turns = sendable(sides[0].turns);
  draw();
  save();
});
["model-a", "model-b"].forEach((id, index) =>
  at(id).addEventListener("change", () => {
    sides[index].model = at(id).value;
    draw();
    save();
  }),
);
at("key").addEventListener("change", loadModels);
at("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(JSON.stringify(record(), null, 1));
    say("Copied.");
  } catch {
    say("The browser does not allow copying: use Export.");
  }
});
at("export").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(record(), null, 1)], { type: "application/json" }));
  link.download = "dialogue.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
at("import").addEventListener("change", async () => {
  const file = at("import").files[0];
  if (file) open(await file.text());
  at("import").value = "";
  draw();
  save();
});

try {
  const kept = localStorage.getItem(STORE);
  if (kept) open(kept);
} catch {
  // a browser without storage begins with an empty dialogue
}
draw();
loadModels().catch((error) => say(`The server does not answer: ${error.message}`));
