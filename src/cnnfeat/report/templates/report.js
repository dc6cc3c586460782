"use strict";
(() => {
  const WIDTH = 1000, HEIGHT = 700, CLOSEST = 60, REACH = 26; // REACH: pixels from pointer to point
  const root = document.getElementById("scatter");
  const data = JSON.parse(document.getElementById("scatter-data").textContent);
  const plane = document.getElementById("plane");
  const ring = plane.querySelector(".ring");
  const inspector = root.querySelector(".inspector");
  const canvas = inspector.querySelector("canvas");
  const told = document.getElementById("told");
  const sprite = document.getElementById("sprite");
  const view = { x: 0, y: 0, w: WIDTH };
  const pointers = new Map();
  let chosen = -1, only = null, dragged = false, pinch = 0;

  const visible = (i) => only === null || data.label[i] === only;

  function show() {
    view.w = Math.min(WIDTH, Math.max(CLOSEST, view.w));
    const h = view.w * HEIGHT / WIDTH;
    view.x = Math.min(WIDTH - view.w, Math.max(0, view.x));
    view.y = Math.min(HEIGHT - h, Math.max(0, view.y));
    plane.setAttribute("viewBox", `${view.x} ${view.y} ${view.w} ${h}`);
    plane.style.setProperty("--zoom", view.w / WIDTH);
    plane.style.touchAction = view.w < WIDTH ? "none" : "pan-y";
    ring.setAttribute("r", 11 * view.w / (plane.getBoundingClientRect().width || WIDTH));
  }

  function zoom(factor, x, y) {
    const w = Math.min(WIDTH, Math.max(CLOSEST, view.w * factor));
    view.x = x - (x - view.x) * w / view.w;
    view.y = y - (y - view.y) * w / view.w;
    view.w = w;
    show();
  }

  const middle = () => chosen >= 0
    ? [data.x[chosen], data.y[chosen]]
    : [view.x + view.w / 2, view.y + view.w * HEIGHT / WIDTH / 2];

  function place(event) {
    const box = plane.getBoundingClientRect();
    const unit = view.w / box.width;
    return [view.x + (event.clientX - box.left) * unit, view.y + (event.clientY - box.top) * unit, unit];
  }

  function nearest(x, y, reach) {
    let best = -1, least = reach * reach;
    for (let i = 0; i < data.x.length; i++) {
      const d = (data.x[i] - x) ** 2 + (data.y[i] - y) ** 2;
      if (d < least && visible(i)) { least = d; best = i; }
    }
    return best;
  }

  function towards(dx, dy) {
    if (chosen < 0) return nearest(...middle(), Infinity);
    let best = chosen, least = Infinity;
    for (let i = 0; i < data.x.length; i++) {
      const x = data.x[i] - data.x[chosen], y = data.y[i] - data.y[chosen];
      const ahead = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
      if (ahead > 0 && aside <= ahead && ahead + aside < least && visible(i)) {
        least = ahead + aside;
        best = i;
      }
    }
    return best;
  }

  function describe(i) {
    const lines = [data.id[i]];
    if (data.true[i]) lines.push(`class ${data.true[i]}`);
    if (data.predicted[i]) {
      const right = data.predicted[i] === data.true[i];
      lines.push(right ? `predicted ${data.predicted[i]}` : `mistaken for ${data.predicted[i]}`);
    }
    if (data.margin[i] !== null) lines.push(`margin ${data.margin[i].toFixed(2)}`);
    return lines;
  }

  function choose(i) {
    if (i === chosen || i < 0) return;
    chosen = i;
    ring.setAttribute("cx", data.x[i]);
    ring.setAttribute("cy", data.y[i]);
    const lines = describe(i);
    told.replaceChildren(...lines.flatMap((line, k) => (k ? [document.createElement("br"), line] : [line])));
    canvas.setAttribute("aria-label", `Image of ${lines.join(", ")}`);
    if (!sprite) return;
    const side = data.cell;
    const left = i % data.columns * side, top = Math.floor(i / data.columns) * side;
    canvas.getContext("2d").drawImage(sprite, left, top, side, side, 0, 0, side, side);
  }

  function keepInView() {
    const h = view.w * HEIGHT / WIDTH, x = data.x[chosen], y = data.y[chosen];
    if (x < view.x || x > view.x + view.w) view.x = x - view.w / 2;
    if (y < view.y || y > view.y + h) view.y = y - h / 2;
    show();
  }

  function reset() {
    Object.assign(view, { x: 0, y: 0, w: WIDTH });
    show();
  }

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  plane.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) { choose(towards(...steps[event.key])); if (chosen >= 0) keepInView(); }
    else if (event.key === "+" || event.key === "=") zoom(0.6, ...middle());
    else if (event.key === "-") zoom(1 / 0.6, ...middle());
    else if (event.key === "0") reset();
    else return;
    event.preventDefault();
  });

  plane.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && document.activeElement !== plane) return;
    event.preventDefault();
    const [x, y] = place(event);
    zoom(Math.exp(Math.sign(event.deltaY) * 0.2), x, y);
  }, { passive: false });

  function spread() {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  }

  plane.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, event);
    dragged = false;
    if (pointers.size === 2) pinch = spread();
    plane.setPointerCapture(event.pointerId);
  });

  plane.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    const [x, y, unit] = place(event);
    if (!before) return choose(nearest(x, y, REACH * unit));
    pointers.set(event.pointerId, event);
    if (pointers.size === 2) {
      const now = spread();
      if (pinch && now) zoom(pinch / now, x, y);
      pinch = now;
      dragged = true;
      return;
    }
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
    dragged ||= Math.hypot(dx, dy) > 3;
    view.x -= dx * unit;
    view.y -= dy * unit;
    show();
  });

  for (const end of ["pointerup", "pointercancel"]) {
    plane.addEventListener(end, (event) => {
      pointers.delete(event.pointerId);
      if (end === "pointerup" && !dragged) {
        const [x, y, unit] = place(event);
        choose(nearest(x, y, REACH * unit));
      }
    });
  }

  const actions = { in: () => zoom(0.6, ...middle()), out: () => zoom(1 / 0.6, ...middle()), reset };
  for (const button of root.querySelectorAll("[data-do]")) {
    button.addEventListener("click", actions[button.dataset.do]);
  }

  const buttons = [...document.querySelectorAll(".entry")].map((entry) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.class = entry.dataset.class;
    button.setAttribute("aria-pressed", "false");
    button.append(...entry.childNodes);
    entry.replaceChildren(button);
    return button;
  });
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const label = Number(button.dataset.class);
      only = only === label ? null : label;
      for (const other of buttons) {
        other.setAttribute("aria-pressed", String(only === Number(other.dataset.class)));
      }
      for (const path of plane.querySelectorAll("[data-class]")) {
        path.classList.toggle("faded", only !== null && Number(path.dataset.class) !== only);
      }
    });
  }

  plane.setAttribute("tabindex", "0");
  plane.setAttribute("role", "application");
  plane.setAttribute("aria-roledescription", "scatter plot");
  plane.setAttribute("aria-describedby", "keys");
  root.classList.add("live");
  canvas.hidden = !sprite;
  for (const hidden of root.querySelectorAll(".tools, .inspector, #keys")) hidden.hidden = false;
  new ResizeObserver(show).observe(plane);
  show();
})();
