// The picture of chapter 1: one-dimensional encoders, trained beforehand, by coupling strength and radius.
"use strict";

(() => {
  const root = document.getElementById("blind-spot"), HEIGHT = 260, HIGHEST = 5.2;
  const {data, gammas, radii, vae, se} = JSON.parse(document.getElementById("blind-spot-data").textContent);
  root.innerHTML = `
    <label for="blind-gamma">coupling <output id="blind-gamma-value"></output></label>
    <input id="blind-gamma" type="range" min="0" max="${gammas.length}" value="0">
    <label for="blind-radius">radius of the neighbour <output id="blind-radius-value"></output></label>
    <input id="blind-radius" type="range" min="0" max="${radii.length - 1}" value="3">
    <svg role="img" aria-labelledby="blind-words"></svg>
    <p id="blind-words" aria-live="polite"></p>`;
  const find = (id) => root.querySelector(`#blind-${id}`), svg = root.querySelector("svg");
  const travel = ({mean}) => mean.slice(1).reduce((total, z, i) => total + Math.abs(z - mean[i]), 0);
  const at = ({mean}, x) => { // between the points that were kept, a straight line
    const place = x * (mean.length - 1), i = Math.min(Math.floor(place), mean.length - 2);
    return mean[i] + (place - i) * (mean[i + 1] - mean[i]);
  };
  const apart = ([one, other], xs) =>
    xs.reduce((total, x) => total + Math.abs(at(one, x) - at(other, x)), 0) / xs.length;
  const between = data.slice(1).map((x, i) => (x + data[i]) / 2);

  function update() {
    const index = Number(find("gamma").value), gamma = gammas[index - 1], radius = radii[find("radius").value];
    const encoders = index === 0 ? vae : se.find((row) => row.gamma === gamma && row.radius === radius).encoders;
    const method = index === 0 ? "vae" : "se", width = svg.clientWidth, left = 34, bottom = HEIGHT - 34;
    const x = (value) => left + (width - left - 10) * value, y = (z) => bottom / 2 * (1 - z / HIGHEST);
    const path = (points, attributes) => `<path d="M${points.join("L")}" ${attributes}/>`;
    const text = (px, py, anchor, content) => `<text x="${px}" y="${py}" text-anchor="${anchor}">${content}</text>`;
    const line = (values) => values.map((z, i) => `${x(i / (values.length - 1))} ${y(z)}`);
    const side = ({mean, sigma}, sign) => line(mean.map((m, i) => m + 2 * sign * sigma[i]));
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.innerHTML = '<clipPath id="blind-clip">' +
      `<rect x="${left}" y="0" width="${width}" height="${bottom}"/></clipPath>` +
      path([`${left} 0`, `${left} ${bottom}`, `${width - 10} ${bottom}`], 'class="axis"') +
      [-4, 0, 4].map((z) => text(left - 5, y(z) + 4, "end", z)).join("") +
      [0, 0.5, 1].map((value) => text(x(value), bottom + 14, "middle", value)).join("") +
      text(x(0.5), HEIGHT - 4, "middle", "observation x") +
      (index ? data : []).map((d) =>
        path([d - radius, d + radius].map((end) => `${x(end)} ${bottom}`), 'class="reach"')).join("") +
      '<g clip-path="url(#blind-clip)">' + encoders.map((q, seed) =>
        path([...side(q, 1), ...side(q, -1).reverse()], `class="${method} band"`) +
        path(line(q.mean), `class="${method} ${seed ? "other" : "mean"}"`)).join("") + "</g>" +
      data.map((d) => `<circle cx="${x(d)}" cy="${y(at(encoders[0], d))}" r="4"/>`).join("");
    find("gamma-value").textContent = index ? `γ = ${gamma}` : "none: the VAE";
    find("radius-value").textContent = index ? radius : "(there is none)";
    find("radius").disabled = !index;
    const [one, other] = encoders.map((q) => travel(q).toFixed(1));
    const [low, high] = encoders.map((q) => (at(q, data.at(-1)) - at(q, data[0])).toFixed(1));
    find("words").textContent = `From the first datum to the last the means rise by ${low} and ${high}, one ` +
      `initialisation and the other; from x = 0 to 1 they travel ${one} and ${other}, up and down. The two differ by ` +
      `${apart(encoders, data).toFixed(2)} on the data and by ${apart(encoders, between).toFixed(2)} halfway between.`;
  }
  root.querySelectorAll("input").forEach((input) => input.addEventListener("input", update));
  addEventListener("resize", update);
  update();
})();
