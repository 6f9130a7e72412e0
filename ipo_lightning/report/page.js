"use strict";
// The videos: filters choose rows, rows in sight hold players, one clock drives all players.
// Everything from the data is set as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const PAGE = 12; // rows that are added at a time

if (data.rows) start();

function start() {
  const later = data.rounds.filter((round) => round > 0);
  const state = { limit: PAGE, playing: !matchMedia("(prefers-reduced-motion: reduce)").matches };
  const shown = Math.max(later.indexOf(data.shown), 0);
  $("round").value = shown;
  $("all").checked = innerWidth > 640;
  const players = new Set(); // video elements in sight
  const sight = new IntersectionObserver(appear, { rootMargin: "150px" });

  const round = () => later[Number($("round").value)];

  function draw() {
    const rows = chosenRows(round());
    $("which").textContent = round() ? `${round()}${round() === data.best ? " (best)" : ""}` : "";
    const some = rows.slice(0, state.limit);
    const count = (name) => rows.filter((row) => outcome(row, round()) === name).length;
    const tell = ["won", "tied", "lost"].map((name) => `${count(name)} ${name}`);
    $("count").textContent = `${rows.length} of ${data.rows.length} videos` +
      (later.length ? `, by the judge: ${tell.join(", ")}` : "");
    sight.disconnect();
    players.clear();
    $("list").replaceChildren(...some.map((row) => card(row, round())));
    $("more").hidden = rows.length <= state.limit;
    $("list").querySelectorAll(".clip").forEach((one) => sight.observe(one));
  }

  function chosenRows(number) {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = data.rows.filter((row) =>
      (!$("outcome").value || outcome(row, number) === $("outcome").value) &&
      (!$("category").value || row.category === $("category").value) &&
      words.every((word) => row.prompt.toLowerCase().includes(word)));
    return ordered(found, number, $("order").value);
  }

  function card(row, number) {
    const gain = change(row, number);
    const head = element("h3", "", row.prompt);
    const facts = element("span", "note");
    if (gain !== null) facts.append(element("b", outcome(row, number),
      `${outcome(row, number)} ${signed(gain)}`));
    facts.append(` video ${Number(row.number) + 1}${row.category ? `, ${row.category}` : ""}`);
    head.append(facts);
    const strip = element("div", "strip");
    const rounds = $("all").checked ? data.rounds : data.rounds.filter(
      (one) => one === 0 || one === number);
    strip.append(...rounds.map((one) => tile(row, one, number)));
    const whole = element("article", "draw");
    whole.append(head, strip);
    return whole;
  }

  function tile(row, one, number) {
    const cell = row.cells[one];
    const name = one === 0 ? "base" : `round ${one}`;
    const figure = element("figure", one === number ? "tile chosen" : "tile");
    if (cell && cell.clip !== null) {
      const clip = element("video", data.small ? "clip small" : "clip");
      clip.muted = clip.playsInline = true;
      clip.dataset.clip = cell.clip;
      clip.setAttribute("aria-label", `${name}: ${row.prompt}`);
      figure.append(clip);
    } else {
      figure.append(element("div", "absent", cell ? "no video" : "not evaluated"));
    }
    const caption = element("figcaption", "", one === data.best && one ? `${name}, best` : name);
    if (cell) caption.append(element("span", "", `${short(cell.judge)} / ${short(cell.critic)}`));
    figure.append(caption);
    return figure;
  }

  function appear(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) {
        target.src = `data:video/mp4;base64,${data.clips[target.dataset.clip]}`;
        players.add(target);
      } else if (players.delete(target)) {
        target.removeAttribute("src"); // browsers hold few players at a time
        target.load();
      }
    }
  }

  let phase = 0; // seconds since the clips' beginning
  let before = null;
  function tick(now) {
    const passed = before === null ? 0 : (now - before) / 1000;
    before = now;
    const rate = $("slow").checked ? 0.25 : 1;
    if (state.playing) {
      phase = (phase + rate * passed) % (data.seconds + 0.25); // the last frame stays for a moment
      $("scrub").value = Math.round(1000 * Math.min(phase / data.seconds, 1));
    }
    players.forEach((clip) => follow(clip, rate));
    requestAnimationFrame(tick);
  }

  function follow(clip, rate) {
    if (clip.readyState < 1 || clip.seeking) return;
    const wanted = Math.min(phase, Math.max(clip.duration - 0.02, 0));
    const running = state.playing && wanted === phase;
    clip.playbackRate = rate;
    if (Math.abs(clip.currentTime - wanted) > (running ? 0.1 : 0.02)) clip.currentTime = wanted;
    if (running && clip.paused) clip.play().catch(() => {});
    if (!running && !clip.paused) clip.pause();
  }

  function play(on) {
    state.playing = on;
    $("play").textContent = on ? "Pause" : "Play";
    $("play").setAttribute("aria-pressed", String(on));
  }

  $("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["round", "outcome", "category", "order", "search", "all"]) {
    $(id).addEventListener("input", () => {
      if (id !== "round" && id !== "all") state.limit = PAGE;
      draw();
    });
  }
  $("more").addEventListener("click", () => { state.limit += PAGE; draw(); });
  $("play").addEventListener("click", () => play(!state.playing));
  $("scrub").addEventListener("input", () => {
    play(false);
    phase = (Number($("scrub").value) / 1000) * data.seconds;
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-find]");
    if (!link) return;
    $("search").value = link.dataset.find;
    $("outcome").value = $("category").value = "";
    state.limit = PAGE;
    draw();
  });
  play(state.playing);
  draw();
  requestAnimationFrame(tick);
}

function change(row, number) {
  const [one, base] = [row.cells[number], row.cells[0]];
  const known = number && one && base && one.judge !== null && base.judge !== null;
  return known ? one.judge - base.judge : null;
}

function outcome(row, number) {
  const gain = change(row, number);
  return gain === null ? "" : gain > 0 ? "won" : gain < 0 ? "lost" : "tied";
}

function ordered(rows, number, order) {
  if (order === "prompts") return rows;
  const rated = rows.filter((row) => change(row, number) !== null);
  const others = rows.filter((row) => change(row, number) === null);
  rated.sort((a, b) => change(b, number) - change(a, number));
  if (order === "worst") rated.reverse();
  if (order === "extremes") { // the best, the worst, the second best, ...
    const turns = rated.map((_, i) => rated[i % 2 ? rated.length - (i + 1) / 2 : i / 2]);
    return [...turns, ...others];
  }
  return [...rated, ...others];
}

function element(name, kind, text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  made.textContent = text;
  return made;
}

function short(value) {
  return value === null ? "\u2013" : Math.abs(value) < 10 ? value.toFixed(2) : value.toPrecision(3);
}

function signed(value) {
  return `${value < 0 ? "\u2212" : "+"}${short(Math.abs(value))}`;
}
