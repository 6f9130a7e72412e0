"use strict";
// One list of answers is the whole state: which question is shown, and whether all is done, follow
// from its length. Undo drops its last entry. Everything from the data is set as text, never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const kept = `ipo_lightning.annotate.${data.id}`;
const KEYS = {
  1: "A", ArrowLeft: "A", 2: "same", ArrowDown: "same", 3: "B", ArrowRight: "B",
  4: "invalid", ArrowUp: "invalid",
};
const WORDS = { A: "left", same: "equally good", B: "right", invalid: "cannot say" };
const still = matchMedia("(prefers-reduced-motion: reduce)");
const $ = (id) => document.getElementById(id);

let given = restored(); // {question, dim, choice, seconds, timestamp}
let since = performance.now(); // when what is asked now was shown, in milliseconds

function restored() {
  let found = [];
  try {
    found = JSON.parse(localStorage.getItem(kept) || "[]");
  } catch {
    $("unkept").hidden = false;
  }
  const sound = (one, place) => one.question === asked(place).question.id && one.choice in WORDS;
  return Array.isArray(found) && found.length <= steps() && found.every(sound) ? found : [];
}

function keep() {
  try {
    localStorage.setItem(kept, JSON.stringify(given));
  } catch {
    $("unkept").hidden = false;
  }
}

function steps() {
  return data.questions.length * data.dims.length;
}

function asked(step) {
  const place = Math.floor(step / data.dims.length);
  return { question: data.questions[place], dim: data.dims[step % data.dims.length] };
}

function answer(choice) {
  if (given.length >= steps()) return;
  const { question, dim } = asked(given.length);
  const seconds = Math.round(performance.now() - since) / 1000;
  given.push({ question: question.id, dim: dim.name, choice, seconds,
    timestamp: new Date().toISOString() });
  keep();
  show();
  $("status").textContent = `Answered: ${WORDS[choice]}.`;
}

function undo() {
  if (!given.length) return;
  given.pop();
  keep();
  show();
  $("status").textContent = "Undone: answer this one again.";
}

function rows() {
  const size = data.dims.length;
  return data.questions.slice(0, Math.floor(given.length / size)).map((question, place) => {
    const own = given.slice(place * size, (place + 1) * size);
    const row = { pair_id: question.id, prompt: question.prompt,
      video_A: data.names[question.left], video_B: data.names[question.right], shown_left: "A",
      annotator: data.annotator, source: `page ${data.id}`,
      seconds: Number(own.reduce((sum, one) => sum + one.seconds, 0).toFixed(3)),
      timestamp: own[size - 1].timestamp };
    for (const one of own) row[one.dim] = one.choice;
    return row;
  });
}

function download() {
  const lines = rows().map((row) => `${JSON.stringify(row)}\n`);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  link.download = `answers-${data.annotator}-${data.id.slice(0, 8)}.jsonl`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  $("status").textContent = `Downloaded ${lines.length} answers as ${link.download}.`;
}

function replay() {
  for (const video of [$("left"), $("right")]) {
    video.currentTime = 0;
    video.play().catch(() => {}); // a video that cannot be played says so by its own event
  }
}

function show() {
  const finished = given.length >= steps();
  const size = data.dims.length;
  const done = Math.floor(given.length / size);
  const total = data.questions.length;
  $("progress").value = given.length / steps();
  $("count").textContent = `${done} of ${total} answered, ${total - done} left`;
  $("download").disabled = done === 0;
  $("undo").disabled = given.length === 0;
  $("replay").disabled = finished;
  $("question").hidden = finished;
  $("done").hidden = !finished;
  if (finished) {
    for (const side of ["left", "right"]) $(side).removeAttribute("src");
    $("thanks").focus();
    return;
  }
  const { question, dim } = asked(given.length);
  $("prompt").textContent = question.prompt;
  $("asked").textContent = size > 1 ? dim.asks : "";
  for (const side of ["left", "right"]) {
    const address = data.videos[question[side]];
    if ($(side).getAttribute("src") !== address) {
      $(side).src = address;
      $("broken").hidden = true;
    }
  }
  if (!still.matches) replay();
  since = performance.now();
  $("prompt").focus({ preventScroll: true });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const pressed = event.target.closest("button, summary") && [" ", "Enter"].includes(event.key);
  if (pressed) return; // the focused button is pressed, nothing else
  const actions = { " ": replay, u: undo, d: () => $("download").disabled || download() };
  const action = event.key in KEYS ? () => answer(KEYS[event.key]) : actions[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => answer(button.dataset.choice));
}
for (const side of ["left", "right"]) {
  $(side).muted = true;
  $(side).classList.toggle("small", data.small);
  $(side).addEventListener("error", () => {
    $("broken").hidden = $("question").hidden;
  });
}
$("undo").addEventListener("click", undo);
$("replay").addEventListener("click", replay);
$("download").addEventListener("click", download);
$("finish").addEventListener("click", download);
show();
