// The page of `worldsim play`: keys go out as actions, frames come in as bytes (worldsim/play/messages.py).

const HEAD = 14, FRAME = 0, PASSED = 1, LOOPED = 2, BRANCH = 3, SHOWN = 40;
const KEYS = {
  ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down",
  KeyA: "left", KeyD: "right", KeyW: "up", KeyS: "down", Enter: "fire", ShiftLeft: "fire",
};
const MARKS = { left: "←", right: "→", up: "↑", down: "↓", fire: "⏎" };
const at = (id) => document.getElementById(id);
const screen = at("screen"), strip = at("strip");
const toWorld = () => screen.focus({ preventScroll: true }); // where keys are heard

let socket = null, hello = null, retry = 500, quiet = null;
let mode = "pause", wanted = "pause", held = new Set(), action = null, heard = 0, sentAt = new Map();
let own = null, loop = [], closing = false, looping = null, begun = null, clicked = null;
let arrivals = [];
const delays = [], measured = { heard: 0, told: 0 };
globalThis.measured = measured; // for scripts/play_latency.py
const branches = new Map();

function say(told) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(told));
}

function tell(text, seconds = 4) {
  at("message").textContent = text;
  at("message").classList.add("there");
  clearTimeout(quiet);
  quiet = setTimeout(() => at("message").classList.remove("there"), 1000 * seconds);
}

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/play`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => document.body.classList.remove("off");
  socket.onmessage = ({ data }) => (typeof data === "string" ? hear(JSON.parse(data)) : see(data));
  socket.onclose = ({ code, reason }) => {
    document.body.classList.add("off");
    closing = false;
    stopLoop();
    showMode("pause");
    at("badge").textContent = "no connection";
    if (code === 1008 || code === 1013) { // sent away: come back when somebody asks for it
      tell(`${reason || "closed"}. Click to go on.`, 3600);
      addEventListener("pointerdown", connect, { once: true });
      return;
    }
    tell("The server is gone; trying again.", 60);
    setTimeout(connect, retry);
    retry = Math.min(8000, 2 * retry);
  };
}

function hear(told) {
  if (told.type === "hello") {
    hello = told;
    retry = 500;
    tell("", 0);
    greet();
    begin(begun ?? 0);
    setMode("play");
  } else if (told.type === "mode") showMode(told.mode);
  else if (told.type === "error") {
    tell(told.text);
    if (told.of === "loop") closing = false;
    if (told.of === "start" && begun !== 0) { begin(0); setMode("play"); }
  }
  else if (told.type === "anew") strip.replaceChildren();
  else if (told.type === "span") {
    at("position").textContent = `${told.present} of ${told.first} … ${told.last}`;
    for (const number of branches.keys()) if (!told.branches.includes(number)) branches.get(number).remove(), branches.delete(number);
  } else if (told.type === "loop") {
    closing = false;
    tell(told.holds ? "The last frames as a loop. Any key goes on." : "A loop, but it does not close well here. Any key goes on.", 6);
    playLoop();
  }
}

function picture(bytes) {
  const head = new DataView(bytes, 0, HEAD), width = head.getUint16(2, true), height = head.getUint16(4, true);
  const rgb = new Uint8Array(bytes, HEAD), image = new ImageData(width, height), rgba = image.data;
  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
    rgba[j] = rgb[i]; rgba[j + 1] = rgb[i + 1]; rgba[j + 2] = rgb[i + 2]; rgba[j + 3] = 255;
  }
  return { kind: head.getUint8(0), known: head.getUint8(1) === 1, heard: head.getUint32(6, true), position: head.getInt32(10, true), image };
}

function paint(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) { canvas.width = image.width; canvas.height = image.height; }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function see(bytes) {
  const shown = picture(bytes);
  if (shown.kind === LOOPED) { loop[shown.position] = shown.image; return; }
  if (shown.kind === BRANCH) { addBranch(shown); return; }
  addToStrip(shown);
  if (shown.kind === PASSED) return;
  stopLoop();
  measured.heard = shown.heard;
  paint(screen, shown.image);
  screen.className = shown.known ? "known" : "made";
  const now = performance.now();
  arrivals.push(now);
  arrivals = arrivals.filter((then) => now - then < 2000);
  for (const [number, then] of sentAt) if (number <= shown.heard) {
    sentAt.delete(number);
    if (number === shown.heard) requestAnimationFrame(() => { delays.push(performance.now() - then); });
  }
}

function addToStrip({ image, known, position }) {
  const there = [...strip.children].find((one) => one.dataset.position === String(position));
  for (const one of strip.children) one.classList.remove("present");
  const canvas = there ?? document.createElement("canvas");
  paint(canvas, image);
  canvas.className = known ? "known present" : "present";
  canvas.dataset.position = position;
  if (there) while (strip.lastChild !== there && mode !== "back") strip.lastChild.remove();
  else {
    const first = strip.firstChild;
    if (first && position < Number(first.dataset.position)) strip.prepend(canvas); else strip.append(canvas);
    while (strip.children.length > SHOWN) (mode === "back" ? strip.lastChild : strip.firstChild).remove();
  }
  const left = canvas.offsetLeft - strip.offsetLeft, right = left + canvas.offsetWidth; // scrollIntoView moves the page too
  strip.scrollLeft = Math.max(right - strip.clientWidth, Math.min(left, strip.scrollLeft));
}

function addBranch({ image, position }) {
  if (!branches.size) at("branches").replaceChildren();
  const button = document.createElement("button");
  button.title = `branch ${position}`;
  button.dataset.branch = position;
  button.append(paint(document.createElement("canvas"), image));
  button.onclick = () => { setMode("pause"); say({ type: "go", number: position }); toWorld(); };
  at("branches").append(button);
  branches.set(position, button);
}

function setMode(next) { wanted = next; say({ type: "mode", mode: next }); stopLoop(); }

function showMode(next) {
  mode = next;
  sentAt.clear();
  at("pause").textContent = mode === "play" || mode === "back" ? "pause" : "play";
  at("pause").classList.toggle("on", mode === "play");
  at("back").classList.toggle("on", mode === "back");
  at("loop").classList.toggle("on", mode === "loop");
  at("badge").textContent = { play: "playing", back: "back in time", pause: "paused", loop: "closing a loop …" }[mode];
}

function playLoop() {
  let i = 0;
  at("badge").textContent = "loop";
  at("save").href = `/save/${hello.session}?what=loop`;
  at("save").title = "the loop, a few times over, as an mp4";
  const next = () => {
    if (loop[i]) paint(screen, loop[i]);
    i = (i + 1) % loop.length;
    looping = setTimeout(next, 1000 / Number(at("pace").value));
  };
  next();
}

function saveTimeline() {
  at("save").href = `/save/${hello.session}`;
  at("save").title = "the timeline as an mp4";
}

function goOn() {
  if (looping === null) return;
  stopLoop();
  setMode("play");
}

function stopLoop() {
  if (looping === null) return;
  clearTimeout(looping);
  looping = null;
  saveTimeline();
  at("loop").classList.remove("on");
}

function choose() {
  if (!hello) return;
  let next = hello.idle;
  if (clicked !== null) next = clicked;
  else if (hello.kind === "discrete") {
    const keys = [...held].map((key) => hello.aliases[key] ?? key);
    let best = 0;
    hello.held.forEach((need, i) => {
      if (need.length > best && need.every((key) => keys.includes(key))) { best = need.length; next = i; }
    });
  } else if (hello.kind === "continuous") next = [...at("actions").querySelectorAll("input")].map((one) => Number(one.value));
  if (JSON.stringify(next) === JSON.stringify(action)) return;
  action = next;
  heard += 1;
  measured.told = heard;
  if (mode === "play") sentAt.set(heard, performance.now());
  say({ type: "act", action, heard });
  at("actions").querySelectorAll("button").forEach((one, i) => one.classList.toggle("on", i === action));
}

function begin(clip) {
  begun = clip; action = null; sentAt.clear();
  if (clip === 0) at("clip").value = 0;
  branches.forEach((one) => one.remove()); branches.clear();
  say({ type: "start", clip, dials: dials() });
  choose();
}

function dials() {
  const found = {};
  document.querySelectorAll("[data-dial]").forEach((one) => {
    if (one.dataset.dial !== "refine_steps" || hello.refines) found[one.dataset.dial] = Number(one.value);
  });
  return found;
}

function greet() {
  document.title = `${hello.world} · worldsim play`;
  at("world").textContent = hello.world;
  screen.style.setProperty("--ratio", hello.width / hello.height);
  saveTimeline();
  document.querySelector("[data-refine]").hidden = !hello.refines;
  at("pace").value ||= 15;
  const clip = at("clip");
  if (!clip.children.length) {
    for (let i = 0; i < hello.clips; i += 1) clip.add(new Option(`clip ${i + 1}`, i));
    const first = { steps: hello.dials.steps, temperature: hello.dials.temperature, refine_steps: hello.dials.refine_steps ?? 4, seed: hello.dials.seed };
    document.querySelectorAll("[data-dial]").forEach((one) => { one.value = first[one.dataset.dial]; });
    at("pace").value = Math.round(hello.fps || 15);
  }
  document.querySelectorAll("#dials label").forEach(showDial);
  say({ type: "pace", fps: Number(at("pace").value) });
  const list = at("actions");
  list.replaceChildren();
  const back = Object.fromEntries(Object.entries(hello.aliases).map(([key, to]) => [to, key]));
  hello.names.forEach((name, i) => {
    const button = document.createElement("button"), mark = document.createElement("kbd");
    button.textContent = name.replaceAll("_", " ");
    mark.textContent = hello.held[i].map((key) => MARKS[key] + (back[key] ? MARKS[back[key]] : "")).join(" ");
    button.append(mark);
    button.onpointerdown = () => { goOn(); clicked = i; choose(); };
    list.append(button);
  });
  if (hello.kind === "continuous") for (let i = 0; i < hello.size; i += 1) {
    const input = Object.assign(document.createElement("input"), { type: "range", min: -1, max: 1, step: 0.05, value: 0 });
    input.oninput = choose;
    list.append(input);
  }
  if (hello.kind === "none") list.textContent = "This world takes no actions; it runs free.";
}

function showDial(label) {
  const output = label.querySelector("output");
  if (output) output.textContent = label.querySelector("input").value;
}

for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => { if (clicked !== null) { clicked = null; choose(); } });
addEventListener("pointerdown", (event) => { if (event.target.closest("button")) event.preventDefault(); }); // keys stay with the world
addEventListener("blur", () => { held.clear(); choose(); });
addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const on = event.target.matches("button, a") && (event.code === "Space" || event.code === "Enter");
  if (on) return;
  goOn();
  if (KEYS[event.code]) {
    event.preventDefault();
    held.add(KEYS[event.code]);
    choose();
  } else if (!event.repeat && event.code === "Space") { event.preventDefault(); at("pause").click(); }
  else if (event.code === "Period") at("step").click();
  else if (!event.repeat && event.code === "Backspace") { event.preventDefault(); setMode("back"); }
  else if (!event.repeat && event.code === "KeyB") at("branch").click();
  else if (!event.repeat && event.code === "KeyL") at("loop").click();
});
addEventListener("keyup", (event) => {
  if (event.code === "Backspace" && wanted === "back") setMode("pause");
  if (KEYS[event.code] && held.delete(KEYS[event.code])) choose();
});

at("pause").onclick = () => setMode(mode === "play" || mode === "back" ? "pause" : "play");
at("back").onclick = () => setMode(mode === "back" ? "pause" : "back");
at("step").onclick = () => { setMode("pause"); say({ type: "step" }); };
at("branch").onclick = () => say({ type: "branch" });
at("loop").onclick = () => {
  if (closing) return;
  closing = true;
  stopLoop();
  loop = [];
  say({ type: "loop", frames: 32 });
};
at("clip").onchange = ({ target }) => { begin(target.value === "own" ? own : Number(target.value)); setMode("play"); toWorld(); };
at("pace").oninput = (event) => { say({ type: "pace", fps: Number(event.target.value) }); showDial(event.target.closest("label")); };
at("pace").onchange = toWorld;
document.querySelectorAll("[data-dial]").forEach((one) => {
  one.onchange = () => { say({ type: "dials", dials: dials() }); toWorld(); };
  one.oninput = () => showDial(one.closest("label"));
});
at("file").oncancel = toWorld;
at("file").onchange = async ({ target }) => {
  const file = target.files[0];
  toWorld();
  if (!file) return;
  const query = new URLSearchParams({ name: file.name, session: hello.session });
  try {
    const answer = await fetch(`/clip?${query}`, { method: "POST", body: file });
    const text = await answer.text();
    if (answer.ok) {
      own = text;
      at("clip").querySelector("[value=own]")?.remove();
      at("clip").add(new Option(file.name, "own", true, true));
      begin(own);
      setMode("play");
    } else tell(text);
  } catch { tell(`${file.name} could not be sent.`); }
  target.value = "";
};

setInterval(() => {
  const now = performance.now(), recent = arrivals.filter((then) => now - then < 2000);
  at("fps").textContent = recent.length > 1 ? (1000 * (recent.length - 1) / (recent.at(-1) - recent[0])).toFixed(1) : "–";
  const ranked = delays.slice(-31).sort((a, b) => a - b);
  at("latency").textContent = ranked.length ? Math.round(ranked[Math.floor(ranked.length / 2)]) : "–";
}, 500);

connect();
