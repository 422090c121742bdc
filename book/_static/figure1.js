// Figure 1, to look into: methods, seeds and intervals one by one, and the digits behind a point of a curve.
"use strict";

(() => {
  const root = document.getElementById("figure1"), SIDE = SmoothEncoders.SIDE, HEIGHT = 200;
  const {names, panels, profiles} = JSON.parse(document.getElementById("figure1-data").textContent);
  const percent = (share) => `${Math.round(100 * share)} %`;
  const check = (name, text, marks = "") =>
    `<label ${marks}><input type="checkbox" name="${name}" checked> ${text}</label>`;
  const radio = ([name, {title}], k) =>
    `<label><input type="radio" name="figure1-profile" value="${name}" ${k ? "" : "checked"}> ${title}</label>`;
  root.innerHTML = `
    <fieldset><legend>Show</legend>
      ${Object.entries(names).map(([name, text]) => check(name, text, `class="${name}"`)).join("")}
      ${check("intervals", "95 % intervals")}${check("seeds", "each seed")}</fieldset>
    <fieldset><legend>Training</legend>${Object.entries(profiles).map(radio).join("")}</fieldset>
    <div class="figure1-panels">${panels.map(({letter, title}) => `<figure><figcaption>${title}</figcaption>
      <svg data-panel="${letter}" tabindex="0" role="application" aria-describedby="figure1-words"
        aria-label="${title}; arrow keys go along a curve and from one to the next"></svg></figure>`).join("")}</div>
    <div class="figure1-said">
      <p id="figure1-words" role="status">Point at a curve, tap it, or go along it with the arrow keys.</p>
      <div class="figure1-digits"></div>
    </div>`;
  const words = document.getElementById("figure1-words"), row = root.querySelector(".figure1-digits");
  const shown = (name) => root.querySelector(`[name=${name}]`).checked;
  const profile = () => root.querySelector("[name=figure1-profile]:checked").value;
  const curvesOf = (letter) =>
    profiles[profile()].curves.filter(({panel, method}) => panel === letter && shown(method));
  let chosen = null, digits = null; // {panel, method, k}; a promise of the file, once somebody asks

  function scales(svg) {
    const left = 46, right = svg.clientWidth - 12, bottom = HEIGHT - 34, widest = 0.4;
    const x = (radius) => left + (right - left) * radius / widest, y = (share) => bottom - (bottom - 8) * share;
    return {left, right, bottom, x, y};
  }

  function drawPanel(svg) {
    const {left, right, bottom, x, y} = scales(svg), letter = svg.dataset.panel, parts = [];
    const line = (points, attributes) => parts.push(`<path d="M${points.join("L")}" ${attributes}/>`);
    const text = ([tx, ty], content, anchor) =>
      parts.push(`<text x="${tx}" y="${ty}" text-anchor="${anchor}">${content}</text>`);
    line([`${left} 8`, `${left} ${bottom}`, `${right} ${bottom}`], 'class="axis"');
    [0, 0.5, 1].forEach((share) => text([left - 4, y(share) + 4], percent(share), "end"));
    [0, 0.1, 0.2, 0.3, 0.4].forEach((radius) => text([x(radius), bottom + 14], radius, "middle"));
    text([(left + right) / 2, HEIGHT - 4], "attack radius", "middle");
    const {chance} = panels.find((panel) => panel.letter === letter);
    line([`${left} ${y(chance)}`, `${right} ${y(chance)}`], 'class="now"');
    text([right, y(chance) - 3], "chance", "end");
    const curves = curvesOf(letter);
    for (const {method, radii, mean, half, seeds} of curves) {
      const at = (values) => values.map((value, k) => `${x(radii[k])} ${y(Math.min(Math.max(value, 0), 1))}`);
      if (shown("intervals") && half[0] !== null) {
        const band = [...at(mean.map((m, k) => m + half[k])), ...at(mean.map((m, k) => m - half[k])).reverse()];
        line(band, `class="${method} band"`);
      }
      if (shown("seeds")) seeds.forEach((values) => line(at(values), `class="${method} seed"`));
      line(at(mean), `class="${method} mean"`);
      mean.forEach((m, k) => {
        const mark = chosen && chosen.panel === letter && chosen.method === method && chosen.k === k;
        parts.push(`<circle class="${method}" cx="${x(radii[k])}" cy="${y(m)}" r="${mark ? 7 : 3}"/>`);
      });
    }
    if (!curves.length) text([(left + right) / 2, HEIGHT / 2], "nothing yet", "middle");
    svg.setAttribute("viewBox", `0 0 ${svg.clientWidth} ${HEIGHT}`);
    svg.innerHTML = parts.join("");
  }

  const drawAll = () => root.querySelectorAll("svg").forEach(drawPanel);

  // ---- A point of a curve ------------------------------------------------------------------------------------------

  function choose(panel, method, k) {
    if (chosen && chosen.panel === panel && chosen.method === method && chosen.k === k) return;
    chosen = {panel, method, k};
    const {radii, mean, half, seeds} = curvesOf(panel).find((curve) => curve.method === method);
    const interval = half[k] === null ? "" : ` ± ${Math.round(100 * half[k])}`;
    const each = seeds.length > 1 ? ` (seeds: ${seeds.map((values) => percent(values[k])).join(", ")})` : "";
    words.textContent = `Panel (${panel}), ${names[method]}, radius ${radii[k]}: ` +
      `accuracy ${Math.round(100 * mean[k])}${interval} %${each}.`;
    drawAll();
    showDigits(chosen);
  }

  async function showDigits(point) {
    row.replaceChildren();
    if (profile() !== "full") return;
    digits ??= fetch(root.dataset.digits).then((answer) => answer.arrayBuffer()).then(SmoothEncoders.readSafetensors);
    const tensors = await digits.catch(() => ({})), name = `${point.panel}.${point.method}`;
    if (point !== chosen || !tensors[name]) return;
    row.replaceChildren(...Array.from(tensors.labels, (label, i) => {
      const index = point.k * tensors.labels.length + i, read = tensors[`${name}.read`][index];
      const figure = document.createElement("figure"), canvas = document.createElement("canvas");
      const size = SIDE * SIDE, bytes = tensors[name].subarray(index * size, (index + 1) * size);
      const data = new ImageData(SIDE, SIDE);
      bytes.forEach((byte, pixel) => data.data.set([byte, byte, byte, 255], 4 * pixel));
      Object.assign(canvas, {width: SIDE, height: SIDE, role: "img", ariaLabel: `an attacked ${label}`});
      canvas.getContext("2d").putImageData(data, 0, 0);
      const caption = document.createElement("figcaption");
      caption.textContent = label === read ? `${label}` : `${label} → ${read}`;
      figure.append(canvas, caption);
      return figure;
    }));
  }

  function nearest(svg, event) {
    const {x, y} = scales(svg), panel = svg.dataset.panel, box = svg.getBoundingClientRect(), found = [];
    for (const {method, radii, mean} of curvesOf(panel)) {
      mean.forEach((m, k) => found.push([
        Math.hypot(x(radii[k]) - (event.clientX - box.left), y(m) - (event.clientY - box.top)), method, k]));
    }
    const [distance, method, k] = found.sort((a, b) => a[0] - b[0])[0] ?? [Infinity];
    if (distance < 30) choose(panel, method, k);
  }

  function walk(svg, event) {
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    const curves = curvesOf(svg.dataset.panel);
    if (!(event.key in moves) || !curves.length) return;
    event.preventDefault();
    const [along, across] = moves[event.key], here = chosen && chosen.panel === svg.dataset.panel ? chosen : null;
    const now = here ? Math.max(curves.findIndex(({method}) => method === here.method), 0) : 0;
    const curve = curves[here ? (now + across + curves.length) % curves.length : 0];
    const k = here ? Math.min(Math.max(here.k + along, 0), curve.radii.length - 1) : 0;
    choose(svg.dataset.panel, curve.method, k);
  }

  root.querySelectorAll("svg").forEach((svg) => {
    svg.addEventListener("pointermove", (event) => nearest(svg, event));
    svg.addEventListener("pointerdown", (event) => nearest(svg, event));
    svg.addEventListener("keydown", (event) => walk(svg, event));
  });
  root.addEventListener("change", () => { chosen = null; row.replaceChildren(); drawAll(); });
  addEventListener("resize", drawAll);
  drawAll();
})();
