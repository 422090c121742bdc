// The picture of chapter 4: the optimal plan of two scalar Gaussians closes from a cloud to a line as gamma grows.
"use strict";

(() => {
  const root = document.getElementById("plan");
  root.innerHTML = `
    <label for="plan-gamma">γ = <output id="plan-value"></output></label>
    <input id="plan-gamma" type="range" min="-2" max="4" step="0.05" value="0"
      aria-label="coupling strength gamma, logarithmic">
    <label for="plan-width">standard deviation of z<sub>b</sub> = <output id="plan-sigma"></output></label>
    <input id="plan-width" type="range" min="0.2" max="1.6" step="0.05" value="1"
      aria-label="standard deviation of z b">
    <svg viewBox="-5 -6.2 10 12.4" role="img"
      aria-label="Samples and two-sigma ellipse of the optimal plan, with the two marginals on the sides"></svg>
    <p id="plan-numbers" aria-live="polite"></p>`;
  const find = (id) => root.querySelector(`#plan-${id}`), svg = root.querySelector("svg");
  const draw = (name, attributes) => {
    const element = svg.appendChild(document.createElementNS("http://www.w3.org/2000/svg", name));
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    return element;
  };
  const curve = (method) => draw("path", {class: method, fill: "none", "stroke-width": 0.06});
  const line = (points) => `M${points.map(([x, y]) => `${x.toFixed(3)} ${y.toFixed(3)}`).join("L")}`;

  // A fixed cloud of standard normal pairs (Box and Muller on a low-discrepancy sequence).
  const cloud = Array.from({length: 350}, (_, k) => {
    const r = Math.sqrt(-2 * Math.log((k + 0.5) / 350)), phi = 2 * Math.PI * (((k + 1) * 0.61803398875) % 1);
    return [r * Math.cos(phi), r * Math.sin(phi)];
  });
  const turn = Array.from({length: 121}, (_, i) => [2 * Math.cos(Math.PI * i / 60), 2 * Math.sin(Math.PI * i / 60)]);
  const range = Array.from({length: 121}, (_, i) => -6 + i / 10);
  const bell = (z, sigma) => 0.9 * Math.min(Math.exp(-z * z / (2 * sigma * sigma)) / sigma, 2.5);

  draw("path", {d: "M-4.6 5.7H4.6M-4.6 5.7V-6", stroke: "currentColor", "stroke-width": 0.03, fill: "none"});
  const dots = cloud.map(() => draw("circle", {class: "se", r: 0.055}));
  const ellipse = curve("se"), sideA = curve("vae"), sideB = curve("pinned");
  for (const [x, y, anchor, letter] of [[4.6, 5.4, "end", "a"], [-4.3, -5.8, "start", "b"]]) {
    draw("text", {x, y, "font-size": 0.45, fill: "currentColor", "text-anchor": anchor})
      .innerHTML = `z<tspan dy="0.13" font-size="0.36">${letter}</tspan>`;
  }

  function update() {
    const gamma = 10 ** Number(find("gamma").value), sigma = Number(find("width").value);
    const {rho, information, cost, least} = SmoothEncoders.plan(gamma, 1, sigma), rest = Math.sqrt(1 - rho * rho);
    const place = ([e, f]) => [e, -sigma * (rho * e + rest * f)];
    cloud.forEach((pair, i) => {
      const [x, y] = place(pair);
      dots[i].setAttribute("cx", x);
      dots[i].setAttribute("cy", y);
    });
    ellipse.setAttribute("d", line(turn.map(place)));
    sideA.setAttribute("d", line(range.filter((z) => Math.abs(z) < 4.5).map((z) => [z, 5.7 - bell(z, 1)])));
    sideB.setAttribute("d", line(range.map((z) => [-4.6 + bell(z, sigma), -z])));
    find("value").textContent = gamma < 10 ? gamma.toPrecision(2) : Math.round(gamma);
    find("sigma").textContent = sigma.toFixed(2);
    find("numbers").textContent =
      `correlation ρ = ${rho.toFixed(3)}; mutual information I = ${information.toFixed(3)} nats; ` +
      `expected cost ${cost.toFixed(3)}, where the least possible is ${least.toFixed(3)}.`;
  }
  root.querySelectorAll("input").forEach((input) => input.addEventListener("input", update));
  update();
})();
