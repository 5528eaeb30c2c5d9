"use strict";

// The page of `cvae demo`. One request at a time: while one is under way, only the newest wish is kept.

const byId = (id) => document.getElementById(id);
const about = JSON.parse(byId("stage").dataset.about);
const [clip, first, scrub, play] = ["clip", "first", "scrub", "play"].map(byId);
const columns = [...document.querySelectorAll(".column")];

let moved = {}; // places of the joints that were dragged, in pixels of the label
let held = null; // the joint under the pointer
let wish = null; // what to ask for next
let busy = false;
let timer = null;
let seed = 0;
const arrivals = []; // times of the last frames, for their rate

async function ask(path, given) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(given),
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

async function carryOut() {
  if (busy || wish === null) return;
  busy = true;
  const [path, given] = wish;
  wish = null;
  try {
    show(await (await ask(path, given)).json());
    byId("message").classList.add("hidden");
  } catch (error) {
    byId("message").textContent = error.message;
    byId("message").classList.remove("hidden");
  }
  busy = false;
  carryOut();
}

function want(path, given) {
  wish = [path, given];
  carryOut();
}

function step(vector = null) {
  want("/step", { t: Number(scrub.value), joints: Object.keys(moved).length ? moved : null, vector });
}

function paint(id, text) {
  if (!text) return;
  const context = byId(id).getContext("2d");
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const picture = context.createImageData(about.width, about.height);
  for (let pixel = 0; 3 * pixel < bytes.length; pixel++) {
    picture.data.set([...bytes.subarray(3 * pixel, 3 * pixel + 3), 255], 4 * pixel);
  }
  context.putImageData(picture, 0, 0);
}

function show(found) {
  paint("frame", found.frame);
  paint("label", found.label);
  if (found.vector) columns.forEach((column, number) => (column.value = found.vector[number]));
  if (found.joints) place(found.joints);
  byId("shown").value = `frame ${found.t}`;
  const now = performance.now();
  arrivals.push(now);
  while (arrivals[0] < now - 1000) arrivals.shift();
  byId("speed").value = `${arrivals.length} frames/s`;
}

// Joints: small circles over the label, to drag.

function place(joints) {
  const board = byId("joints");
  for (const [name, [x, y]] of Object.entries(joints)) {
    let circle = board.querySelector(`[data-name="${name}"]`);
    if (!circle) {
      circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      circle.dataset.name = name;
      circle.setAttribute("r", about.height / 40);
      circle.append(document.createElementNS("http://www.w3.org/2000/svg", "title"));
      circle.firstChild.textContent = name.replace("_", " ");
      board.append(circle);
    }
    if (held === name) continue; // it is where the pointer is
    circle.setAttribute("cx", x);
    circle.setAttribute("cy", y);
  }
}

if (about.joints) {
  const board = byId("joints");
  const at = (event) => {
    const box = board.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * about.width,
      ((event.clientY - box.top) / box.height) * about.height,
    ];
  };
  board.addEventListener("pointerdown", (event) => {
    if (!event.target.dataset.name) return;
    held = event.target.dataset.name;
    board.setPointerCapture(event.pointerId);
    pause();
  });
  board.addEventListener("pointermove", (event) => {
    if (held === null) return;
    moved[held] = at(event);
    const circle = board.querySelector(`[data-name="${held}"]`);
    circle.setAttribute("cx", moved[held][0]);
    circle.setAttribute("cy", moved[held][1]);
    step();
  });
  for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, () => (held = null));
}

// Controls.

function pause() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}

function restart() {
  pause();
  moved = {};
  const { steps, frames } = about.clips[Number(clip.value)];
  first.max = frames - about.n_past;
  first.value = Math.min(Number(first.value), Number(first.max));
  scrub.max = steps - 1;
  scrub.value = Number(first.value) + about.n_past - 1;
  want("/restart", { clip: Number(clip.value), first: Number(first.value), seed });
}

play.addEventListener("click", () => {
  if (timer !== null) return pause();
  moved = {};
  play.textContent = "Pause";
  timer = setInterval(() => {
    if (busy) return; // a slow model plays more slowly, and leaves out no frame
    if (Number(scrub.value) >= Number(scrub.max)) return pause();
    scrub.value = Number(scrub.value) + 1;
    step();
  }, 40);
});
scrub.addEventListener("input", () => {
  moved = {};
  step();
});
clip.addEventListener("change", () => {
  first.value = 0;
  restart();
});
byId("restart").addEventListener("click", restart);
byId("draw").addEventListener("click", async () => {
  seed += 1;
  await ask("/draw", { seed });
  step(columns.length ? columns.map((column) => Number(column.value)) : null);
});
columns.forEach((column) =>
  column.addEventListener("input", () => {
    pause();
    step(columns.map((each) => Number(each.value)));
  }),
);
byId("record").addEventListener("click", async (event) => {
  const button = event.currentTarget;
  const recording = button.getAttribute("aria-pressed") === "true";
  try {
    const answer = await ask(recording ? "/gif" : "/record", {});
    if (recording) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(await answer.blob());
      link.download = `${about.run}.gif`;
      link.click();
      URL.revokeObjectURL(link.href);
    }
    button.setAttribute("aria-pressed", String(!recording));
    button.textContent = recording ? "Record" : "Save GIF";
  } catch (error) {
    byId("message").textContent = error.message;
    byId("message").classList.remove("hidden");
  }
});

restart();
