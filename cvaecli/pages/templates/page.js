"use strict";

// Tables: a click on a heading sorts by it, another one turns the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.key;
      const order = (a, b) => {
        if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
        const difference = key(a) - key(b);
        const ascending = Number.isNaN(difference) ? key(a).localeCompare(key(b)) : difference;
        return down ? -ascending : ascending;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
}

// Legends: a click hides or shows a setting's curves in the figures of its group.
for (const legend of document.querySelectorAll(".legend")) {
  const curves = legend.closest("section");
  for (const button of legend.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "false";
      const series = button.dataset.series;
      for (const twin of curves.querySelectorAll(`.legend button[data-series="${series}"]`)) {
        twin.setAttribute("aria-pressed", String(shown));
      }
      for (const curve of curves.querySelectorAll(`[id*="-series-${series}-"]`)) {
        curve.classList.toggle("hidden", !shown);
      }
    });
  }
}

// Players: all videos of one player show the frame of one clock.
for (const player of document.querySelectorAll(".player")) {
  const frames = JSON.parse(player.dataset.frames);
  const [play, scrub, shown] = ["button", "input", "output"].map((name) => player.querySelector(name));
  const videos = [...player.querySelectorAll("canvas")].map((canvas) => {
    const sheet = canvas.previousElementSibling;
    const columns = Number(canvas.dataset.columns);
    const context = canvas.getContext("2d");
    return {
      ready: sheet.decode(),
      draw: (place) => {
        const { width, height } = canvas;
        const [x, y] = [(place % columns) * width, Math.floor(place / columns) * height];
        context.drawImage(sheet, x, y, width, height, 0, 0, width, height);
      },
    };
  });
  const draw = (place) => {
    scrub.value = place;
    shown.value = `frame ${frames[place]}`;
    videos.forEach((video) => video.draw(place));
  };
  let timer = null;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    play.textContent = "Pause";
    timer = setInterval(() => draw((Number(scrub.value) + 1) % frames.length), 80);
  });
  scrub.addEventListener("input", () => draw(Number(scrub.value)));
  Promise.all(videos.map((video) => video.ready)).then(() => draw(0));
}
