"use strict";
// One battle at a time. What the models wrote is only ever inserted as text, or as HTML that the server made of it.
const $ = (id) => document.getElementById(id);
const SIDES = ["left", "right"];
const KEYS = {1: "left", 2: "right", "=": "tie", b: "both_bad", s: "skip"};
let battle = null; // {id, prompt, typed, turns}
let busy = false; // a request is under way
let voted = false;
let last = ""; // the prompt that was asked last

function element(parent, name, className, text) {
  const made = document.createElement(name);
  made.className = className || "";
  made.textContent = text || "";
  parent.append(made);
  return made;
}

// Direction marks and controls as escapes: they would show a text as another one.
const visible = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
  (sign) => sign === "\r" ? "" : "\\u" + sign.charCodeAt(0).toString(16).padStart(4, "0"));

async function post(path, body) {
  const reply = await fetch(path, {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify(body || {}),
  });
  if (!reply.ok) {
    let why = "";
    try { why = (await reply.json()).error; } catch { /* no JSON */ }
    throw new Error(why || `the server answered ${reply.status}`);
  }
  return reply;
}

function refresh() {
  const open = battle && !busy && !voted;
  for (const button of $("votes").children) {
    button.disabled = !open || (button.dataset.vote !== "skip" && !battle.turns);
  }
  $("votes").hidden = !battle || voted;
  $("ask").hidden = !open || !battle.typed || battle.prompt !== null;
  $("next").hidden = !voted || busy;
}

async function guarded(work) {
  busy = true;
  $("message").textContent = "";
  $("again").hidden = true;
  refresh();
  try { await work(); } catch (error) { $("message").textContent = error.message; }
  busy = false;
  refresh();
}

async function start() {
  await guarded(async () => {
    const reply = await (await post("/battles")).json();
    voted = false;
    $("talk").replaceChildren();
    $("result").textContent = "";
    battle = reply.done ? null : {...reply, turns: 0};
    if (reply.done) $("result").textContent = reply.unvoted
      ? `No prompt is left. Without a vote, on a page that was closed: ${reply.unvoted}. They come again when the command is started again.`
      : "All prompts have a vote. Thank you.";
  });
  if (!battle) return;
  window.scrollTo(0, 0);
  if (battle.prompt !== null) await askAll();
  else $("prompt").focus();
}

async function askAll() {
  while (battle && battle.prompt !== null && (await ask(battle.prompt)));
}

async function ask(text) {
  last = text;
  for (const block of document.querySelectorAll("article.failed")) block.remove();
  let complete = false;
  const block = element($("talk"), "article");
  const said = element(block, "div", "message user");
  element(said, "p", "role", "user");
  element(said, "div", "plain", visible(text)).dir = "auto";
  const pair = element(block, "div", "pair");
  const places = {};
  for (const side of SIDES) {
    const box = element(pair, "section", side);
    element(box, "h2", "", side === "left" ? "Left" : "Right");
    places[side] = element(box, "div", "plain busy");
    places[side].dir = "auto";
  }
  await guarded(async () => {
    complete = await readAnswers(await post(`/battles/${battle.id}/prompts`, {text}), places);
  });
  if (complete) $("prompt").value = "";
  else {
    for (const side of SIDES) places[side].classList.remove("busy");
    block.classList.add("failed");
    $("again").hidden = false;
    $("message").textContent ||= "A model gave no answer. Ask again, or skip.";
  }
  return complete;
}

async function readAnswers(reply, places) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  const failed = [];
  let rest = "", finished = false;
  for (;;) {
    const {value, done} = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const part = JSON.parse(line);
      if ("next" in part) {
        finished = true;
        if (!failed.length) { battle.turns += 1; battle.prompt = part.next; }
      } else show(part, places[part.side], failed);
    }
  }
  return finished && !failed.length;
}

function show(part, place, failed) {
  place.append(visible(part.text));
  if (!part.end) return;
  place.classList.remove("busy");
  if (part.failed) {
    failed.push(part.side);
    element(place, "p", "why", "no answer");
  } else {
    place.className = "";
    place.innerHTML = part.html; // escaped by the server; the page's policy runs no script of it
  }
  if (part.cut) element(place, "p", "note", "(cut off at the longest answer)");
}

async function vote(choice) {
  if (!battle || busy || voted || (choice !== "skip" && !battle.turns)) return;
  await guarded(async () => {
    const reply = await (await post(`/battles/${battle.id}/vote`, {vote: choice})).json();
    voted = true;
    $("count").textContent = reply.votes === 1 ? "1 vote" : `${reply.votes} votes`;
    if (choice === "skip") return;
    $("result").textContent = `Left: ${reply.left} · Right: ${reply.right}`;
    for (const box of document.querySelectorAll(`.pair .${CSS.escape(choice)}`)) box.classList.add("won");
  });
  if (voted && choice === "skip") await start();
}

$("votes").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) vote(button.dataset.vote);
});
$("next").addEventListener("click", start);
$("again").addEventListener("click", async () => {
  if ((await ask(last)) && battle.prompt !== null) await askAll();
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value;
  if (text.trim() && !busy) ask(text);
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.target.closest("textarea") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (KEYS[event.key]) vote(KEYS[event.key]);
  else if (event.key === "n" && voted && !busy) start();
});
start();
