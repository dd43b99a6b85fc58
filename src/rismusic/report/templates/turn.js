"use strict";
// Turns the pictures of space. Without this script they stay as they are drawn.
// The projection is that of View in report/scene.py.
for (const svg of document.querySelectorAll("svg.turning")) {
  const numbers = (text) => text.split(" ").map(Number);
  const { width, height } = svg.viewBox.baseVal;
  const start = {
    centre: numbers(svg.dataset.centre), scale: +svg.dataset.scale,
    yaw: +svg.dataset.yaw, pitch: +svg.dataset.pitch,
  };
  const shapes = [...svg.querySelectorAll("[data-xyz]")].map((node) => [node, numbers(node.dataset.xyz)]);
  let view = { ...start };

  const draw = () => {
    const { yaw, pitch, scale, centre: [cx, cy, cz] } = view;
    const [sa, ca, sb, cb] = [Math.sin(yaw), Math.cos(yaw), Math.sin(pitch), Math.cos(pitch)];
    for (const [node, xyz] of shapes) {
      const points = [];
      for (let i = 0; i < xyz.length; i += 3) {
        const [x, y, z] = [xyz[i] - cx, xyz[i + 1] - cy, xyz[i + 2] - cz];
        const across = width / 2 + scale * (-ca * x + sa * z);
        const down = height / 2 - scale * (sa * sb * x + cb * y + ca * sb * z);
        points.push([across.toFixed(1), down.toFixed(1)]);
      }
      const [first] = points;
      if (node.tagName === "text") {
        node.setAttribute("x", first[0]);
        node.setAttribute("y", first[1]);
      } else if (node.tagName === "g") {
        node.setAttribute("transform", `translate(${first[0]} ${first[1]})`);
      } else if (node.classList.contains("dots")) {
        node.setAttribute("d", points.map((p) => `M${p[0]} ${p[1]}h0`).join(""));
      } else {
        const end = node.classList.contains("area") ? "Z" : "";
        node.setAttribute("d", "M" + points.map((p) => `${p[0]} ${p[1]}`).join("L") + end);
      }
    }
  };
  const turn = (yaw, pitch) => {
    view.yaw += yaw;
    view.pitch = Math.min(Math.PI / 2, Math.max(-Math.PI / 2, view.pitch + pitch));
    draw();
  };

  let last = null;
  svg.addEventListener("pointerdown", (event) => {
    last = [event.clientX, event.clientY];
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => {
    if (!last) return;
    turn((event.clientX - last[0]) / 120, (event.clientY - last[1]) / 120);
    last = [event.clientX, event.clientY];
  });
  for (const name of ["pointerup", "pointercancel"]) svg.addEventListener(name, () => { last = null; });

  svg.tabIndex = 0;
  const steps = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
  svg.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    turn(...steps[event.key]);
  });

  const buttons = document.createElement("div");
  buttons.className = "buttons";
  const button = (name, label, change) => {
    const one = document.createElement("button");
    one.type = "button";
    one.textContent = name;
    one.setAttribute("aria-label", label);
    one.addEventListener("click", () => { view = { ...view, ...change() }; draw(); });
    buttons.append(one);
  };
  button("start", "back to the first view", () => start);
  button("behind", "view from behind the panel", () => ({ yaw: 0, pitch: 0 }));
  button("side", "view from the side", () => ({ yaw: -Math.PI / 2, pitch: 0 }));
  button("above", "view from above", () => ({ yaw: 0, pitch: Math.PI / 2 }));
  for (const [node, xyz] of shapes) {
    if (!node.matches(".mark.estimate")) continue;
    const name = node.textContent.trim();
    button(`at ${name}`, `close view of source ${name}`, () => ({ centre: xyz, scale: start.scale * 4 }));
  }
  button("+", "larger", () => ({ scale: view.scale * 1.25 }));
  button("\u2212", "smaller", () => ({ scale: view.scale / 1.25 }));
  svg.after(buttons);
}
