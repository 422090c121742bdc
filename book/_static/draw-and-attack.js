// The page "Draw and attack": a digit, three encoders, and forty steps of an attack on each.
"use strict";

(() => {
  const {SIDE, Model, readSafetensors, crossEntropy, movedFrom, startNear, attack, mnistDigit} = SmoothEncoders;
  const NAMES = {vae: "VAE", se: "smooth encoder", pinned: "pinned smooth encoder"};
  const FIRST = 3, STEPS = 40, MS_A_STEP = 50, MS_A_FRAME = 12;
  // Where the attack begins and how it goes on: se_core.lab.evaluation's on the votes, se_core.fictive_sample's.
  const AIMS = {votes: {spread: 0.01, momentum: 0.5}, representation: {spread: 1, momentum: 0}};
  const find = (id) => document.getElementById(`attack-${id}`);
  const root = document.getElementById("attack"), words = find("words");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const percent = (share) => `${Math.round(100 * share)} %`;
  const highest = (votes) => votes.indexOf(Math.max(...votes));

  let models = {}, columns = {}; // by method
  let image = null, label = null, drawing = false; // 784 numbers in [0, 1]; the digit, where it is known
  let found = null; // by method: {truth, votes, reconstruction, steps: [{x, mean, votes, moved}]}
  let work = null, dirty = false, playing = 0, speaking = 0;

  // The same noise at each visit, so that the same digit makes the same picture (the generator mulberry32).
  let seed = 1;
  const noise = Float64Array.from({length: SIDE * SIDE}, () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  });

  // ---- The attack, a few steps a frame -----------------------------------------------------------------------------

  /** Attack the present digit; yields after each step, so that the page stays alive. */
  function* solve() {
    const x = image, live = drawing, results = {};
    const aim = root.querySelector("[name=attack-aim]:checked").value, {spread, momentum} = AIMS[aim];
    const radius = live ? 0 : Number(find("radius").value);
    for (const [name, model] of Object.entries(models)) {
      const q = model.encode(x), votes = model.votes(q.mean), truth = label ?? highest(votes), moved = movedFrom(q);
      const objective = aim === "votes" ? crossEntropy(model, truth) : moved, steps = [];
      const settings = {radius, momentum, steps: live ? 0 : STEPS};
      for (const best of attack(model, x, objective, settings, startNear(x, radius, spread, noise))) {
        const {mean} = best.q, share = moved(best.q).value / model.latentVariance;
        steps.push({x: best.x, mean, votes: model.votes(mean), moved: share});
        yield;
      }
      results[name] = {truth, votes, reconstruction: model.decode(q.mean), steps};
    }
    found = results;
  }

  /** Attack again. Under way, another digit begins anew; another setting waits, so that a dragged slider shows much. */
  function request(anew) {
    if (work || !image) {
      dirty = !anew;
      if (work && anew) work = solve();
      return;
    }
    [work, dirty] = [solve(), false];
    const go = () => {
      const until = performance.now() + MS_A_FRAME;
      while (performance.now() < until) {
        if (work.next().done) {
          work = null;
          show();
          if (dirty) request(false);
          return;
        }
      }
      requestAnimationFrame(go);
    };
    requestAnimationFrame(go);
  }

  // ---- The picture -------------------------------------------------------------------------------------------------

  function paint(canvas, pixels) {
    const data = new ImageData(SIDE, SIDE);
    pixels.forEach((pixel, i) => data.data.set([255 * pixel, 255 * pixel, 255 * pixel, 255], 4 * i));
    canvas.getContext("2d").putImageData(data, 0, 0);
  }

  function element(parent, name, attributes = {}, text = "") {
    const made = parent.appendChild(document.createElement(name));
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.textContent = text;
    return made;
  }

  function makeColumn(name) {
    const column = element(find("columns"), "section", {class: `picture-column ${name}`, "aria-label": NAMES[name]});
    const canvas = (parent) => element(parent, "canvas", {width: SIDE, height: SIDE, role: "img"});
    element(column, "h3", {}, NAMES[name]);
    const attacked = canvas(column);
    element(column, "p", {class: "picture-note"}, "attacked digit x′");
    const pair = element(column, "div", {class: "picture-pair"}), [before, after] = [canvas(pair), canvas(pair)];
    element(column, "p", {class: "picture-note"}, "x and x′ reconstructed");
    const reading = element(column, "p", {class: "picture-reading"});
    const votes = element(column, "div", {class: "picture-votes", role: "img"});
    const bars = [...Array(10).keys()].map((digit) => {
      const place = element(votes, "div"), track = element(place, "div", {class: "picture-track"});
      element(place, "span", {}, digit);
      return {place, bar: element(track, "i"), before: element(track, "b")};
    });
    const moved = element(column, "p", {class: "picture-moved"});
    const meter = element(element(column, "div", {class: "picture-meter"}), "i");
    return {attacked, before, after, reading, votes, bars, moved, meter};
  }

  function showColumn(name, step) {
    const column = columns[name], result = found[name], {x, mean, votes, moved} = result.steps[step];
    const read = highest(votes), before = highest(result.votes);
    paint(column.attacked, x);
    paint(column.before, result.reconstruction);
    paint(column.after, models[name].decode(mean));
    column.attacked.ariaLabel = `the digit as the attack on the ${NAMES[name]} has changed it`;
    column.before.ariaLabel = `what the ${NAMES[name]} makes of the digit`;
    column.after.ariaLabel = `what the ${NAMES[name]} makes of the attacked digit`;
    column.reading.textContent = `${before} → ${read}, ${percent(votes[read])}`;
    column.votes.ariaLabel = [...votes].map((share, digit) => `${digit}: ${percent(share)}`).join(", ");
    column.bars.forEach((bar, digit) => {
      bar.bar.style.height = `${100 * votes[digit]}%`;
      bar.before.style.height = `${100 * result.votes[digit]}%`;
      bar.place.classList.toggle("picture-first", digit === read);
    });
    column.moved.textContent = `moved ${percent(moved)}`;
    column.meter.style.width = `${Math.min(50 * moved, 100)}%`;
  }

  /** The share of the right digit at each step. */
  function showCourse(step) {
    const svg = find("course"), width = svg.clientWidth, height = svg.clientHeight, left = 44, bottom = height - 18;
    const at = (k, share) => `${left + (width - left - 8) * k / STEPS} ${bottom - (bottom - 8) * share}`;
    const line = (points, attributes) => `<path d="M${points.join("L")}" fill="none" ${attributes}/>`;
    const text = (x, y, anchor, content) => `<text x="${x}" y="${y}" text-anchor="${anchor}">${content}</text>`;
    const curves = Object.entries(found).map(([name, {truth, steps}]) =>
      line(steps.map(({votes}, k) => at(k, votes[truth])), `class="${name}"`));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.innerHTML = line([at(0, 1), at(0, 0), at(STEPS, 0)], 'class="axis"') +
      line([at(step, 0), at(step, 1)], 'class="now"') + curves.join("") +
      text(left - 6, 14, "end", "100 %") + text(left - 6, bottom + 2, "end", "0 %") +
      text(left, height - 3, "middle", "0") + text(width - 8, height - 3, "end", `step ${STEPS}`);
  }

  function show() {
    root.classList.toggle("picture-waiting", !image);
    find("radius-value").value = Number(find("radius").value).toFixed(2);
    find("step-value").value = find("step").value;
    find("play").textContent = playing ? "Pause" : still.matches ? "To the end" : "Play";
    clearTimeout(speaking);
    if (!image) words.textContent = "Draw a digit, or take one of the sixteen.";
    if (!image || !found) return;
    const step = Math.min(Number(find("step").value), found.vae.steps.length - 1);
    Object.keys(models).forEach((name) => showColumn(name, step));
    showCourse(step);
    find("course-title").textContent = label === null
      ? "Votes for the digit that each has read in your drawing, by step" : `Votes for the ${label}, by step`;
    if (!playing && !drawing) speaking = setTimeout(() => { words.textContent = inWords(step); }, 300);
  }

  /** What is seen, for those who do not. */
  function inWords(step) {
    const said = Object.entries(found).map(([name, {votes, steps}]) => {
      const [before, after] = [highest(votes), highest(steps[step].votes)];
      const change = before === after ? `reads ${after} still` : `read ${before} and now reads ${after}`;
      const [share, moved] = [percent(steps[step].votes[after]), percent(steps[step].moved)];
      return `The ${NAMES[name]} ${change} (${share}), moved ${moved}.`;
    });
    const what = label === null ? "Your drawing" : `A ${label}`;
    return `${what}, radius ${find("radius-value").value}, step ${step} of ${STEPS}. ${said.join(" ")}`;
  }

  // ---- Steps -------------------------------------------------------------------------------------------------------

  function stop() {
    cancelAnimationFrame(playing);
    playing = 0;
  }

  function play() {
    stop();
    const slider = find("step"), first = Number(slider.value) % STEPS;
    let began = null;
    const go = (now) => {
      if (found) began ??= now;
      slider.value = Math.min(STEPS, first + Math.floor((now - (began ?? now)) / MS_A_STEP));
      playing = Number(slider.value) < STEPS ? requestAnimationFrame(go) : 0;
      show();
    };
    if (still.matches) slider.value = STEPS;
    else playing = requestAnimationFrame(go);
    show();
  }

  /** Another digit: attack it, from the first step on. */
  function take(pixels, digit) {
    [image, label, found] = [pixels, digit, null];
    find("step").value = 0;
    request(true);
    play();
  }

  /** The pen is down: the digit is read as it grows, and attacked when it is lifted. */
  function drawn(strokes) {
    unchoose();
    stop();
    drawing = true;
    [image, label] = [mnistDigit(strokes), null];
    find("step").value = 0;
    request(true);
  }

  function lifted() {
    drawing = false;
    take(image, null);
  }

  function cleared() {
    unchoose();
    stop();
    [drawing, image, label, found] = [false, null, null, null];
    show();
  }

  const unchoose = () => root.querySelectorAll("[name=attack-digit]").forEach((input) => { input.checked = false; });

  // ---- The beginning -----------------------------------------------------------------------------------------------

  function makeDigits(digits, labels, pad) {
    labels.forEach((digit, k) => {
      const pixels = Float64Array.from(digits.subarray(k * SIDE * SIDE, (k + 1) * SIDE * SIDE), (byte) => byte / 255);
      const choice = element(find("digits"), "label"), order = k < 10 ? "a" : "another";
      const input = element(choice, "input", {type: "radio", name: "attack-digit", "aria-label": `${order} ${digit}`});
      const canvas = element(choice, "canvas", {width: SIDE, height: SIDE, "aria-hidden": "true"});
      paint(canvas, pixels);
      input.addEventListener("change", () => {
        pad.show(canvas);
        take(pixels, digit);
      });
      if (k === FIRST) {
        input.checked = true;
        pad.show(canvas);
        [image, label] = [pixels, digit];
      }
    });
  }

  async function begin() {
    words.textContent = "Fetching the weights, a few megabytes …";
    const response = await fetch(root.dataset.weights);
    if (!response.ok) throw new Error(`the server says ${response.status}`);
    const tensors = readSafetensors(await response.arrayBuffer());
    for (const name of Object.keys(NAMES)) {
      models[name] = new Model(tensors, name);
      columns[name] = makeColumn(name);
    }
    const pad = new DrawingPad(find("pad"), {drawn, lifted, cleared});
    makeDigits(tensors.digits, tensors.labels, pad);
    find("clear").addEventListener("click", () => pad.clear());
    find("radius").addEventListener("input", () => { request(false); });
    find("aim").addEventListener("change", () => request(false));
    find("step").addEventListener("input", () => { stop(); show(); });
    find("play").addEventListener("click", () => { if (playing) { stop(); show(); } else play(); });
    addEventListener("resize", show);
    request(true);
  }

  begin().catch((error) => {
    words.textContent = location.protocol === "file:"
      ? "A browser fetches no weights for a page that is opened as a file; make serve serves the book."
      : `The weights did not arrive (${error.message}). Load the page again.`;
  });
})();
