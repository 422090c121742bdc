// The arithmetic of the book's pictures: networks, attacks, plans. No framework, and a classic script rather than a
// module, because browsers load no module where a page is opened as a file. Numbers are doubles; weights are kept in
// single precision, which holds the half precision of their file exactly.
"use strict";

const SmoothEncoders = (() => {
  const BATCH_NORM_EPS = 1e-5; // torch.nn.BatchNorm1d's
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  // ---- Files -------------------------------------------------------------------------------------------------------

  /** The number of which these are the sixteen bits (IEEE 754 binary16; no infinities, no NaN). */
  function half(bits) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    return bits & 0x8000 ? -size : size;
  }

  /** A safetensors file: name -> Float32Array (of F16 and F32) or Uint8Array (of U8), flat, the last index fastest. */
  function readSafetensors(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const halves = Float32Array.from({length: 65536}, (_, bits) => half(bits));
    const readers = {
      F16: (bytes) => new Float32Array(new Uint16Array(bytes)).map((bits) => halves[bits]),
      F32: (bytes) => new Float32Array(bytes),
      U8: (bytes) => new Uint8Array(bytes),
    };
    return Object.fromEntries(Object.entries(header).map(([name, {dtype, data_offsets: [from, to]}]) =>
      [name, readers[dtype](buffer.slice(8 + length + from, 8 + length + to))]));
  }

  // ---- Networks ----------------------------------------------------------------------------------------------------

  /** output = weight input + bias. The sizes are multiples of four: four sums at once do not wait for one another. */
  function affine(weight, bias, input, output) {
    const n = input.length;
    for (let i = 0, row = 0; i < output.length; i++, row += n) {
      let a = bias[i], b = 0, c = 0, d = 0;
      for (let j = 0, k = row; j < n; j += 4, k += 4) {
        a += weight[k] * input[j];
        b += weight[k + 1] * input[j + 1];
        c += weight[k + 2] * input[j + 2];
        d += weight[k + 3] * input[j + 3];
      }
      output[i] = a + b + (c + d);
    }
  }

  /** slope = weight^T of the slope above. */
  function transposed(weight, above, slope) {
    const n = slope.length;
    slope.fill(0);
    for (let i = 0, row = 0; i < above.length; i++, row += n) {
      const factor = above[i];
      if (factor === 0) continue; // a unit that is off, or a row that nobody asks about
      for (let j = 0; j < n; j++) slope[j] += factor * weight[row + j];
    }
  }

  /** Linear layers with ReLU between them, [{weight: row by row, bias}]. */
  class Mlp {
    constructor(layers) {
      this.layers = layers;
      this.outputs = layers.map(({bias}) => new Float64Array(bias.length));
      this.slopes = layers.map(({weight, bias}) => new Float64Array(weight.length / bias.length));
    }

    forward(x) {
      let input = x;
      this.layers.forEach(({weight, bias}, k) => {
        const output = this.outputs[k];
        affine(weight, bias, input, output);
        if (k < this.layers.length - 1) for (let i = 0; i < output.length; i++) if (output[i] < 0) output[i] = 0;
        input = output;
      });
      return input.slice();
    }

    /** The derivative by the input of the last `forward`, given that by its output. */
    backward(above) {
      for (let k = this.layers.length - 1; k >= 0; k--) {
        const slope = this.slopes[k];
        transposed(this.layers[k].weight, above, slope);
        if (k > 0) for (let i = 0; i < slope.length; i++) if (!(this.outputs[k - 1][i] > 0)) slope[i] = 0;
        above = slope;
      }
      return above.slice();
    }
  }

  /** The layers below `prefix`, in the order of their numbers: `prefix.1.weight`, `prefix.3.weight`, ... */
  function layersOf(tensors, prefix) {
    const layers = [];
    for (let k = 0; k < 10; k++) {
      const weight = tensors[`${prefix}.${k}.weight`];
      if (weight) layers.push({weight, bias: tensors[`${prefix}.${k}.bias`]});
    }
    return layers;
  }

  /** A pretrained encoder with its decoder and its probe; images are 784 numbers in [0, 1]. */
  class Model {
    constructor(tensors, name) {
      this.encoder = new Mlp(layersOf(tensors, `${name}.encoder.layers`));
      this.decoder = new Mlp(layersOf(tensors, `${name}.decoder.layers`));
      this.probe = new Mlp([{weight: tensors[`${name}.probe.weight`], bias: tensors[`${name}.probe.bias`]}]);
      this.latents = this.decoder.layers[0].weight.length / this.decoder.layers[0].bias.length;
      this.latentVariance = tensors[`${name}.latent_variance`][0]; // of the means over digits, summed over latents
      const variance = tensors[`${name}.encoder.norm.running_var`]; // of a pinned encoder only
      this.scale = Float64Array.from({length: this.latents}, (_, k) =>
        variance ? 1 / Math.sqrt(variance[k] + BATCH_NORM_EPS) : 1);
      this.centre = tensors[`${name}.encoder.norm.running_mean`] || new Float32Array(this.latents);
    }

    /** q(Z | x): the mean and the standard deviation of each latent. */
    encode(x) {
      const output = this.encoder.forward(x);
      return {
        mean: output.slice(0, this.latents).map((mean, k) => (mean - this.centre[k]) * this.scale[k]),
        sigma: output.slice(this.latents).map((logVariance) => Math.exp(logVariance / 2)),
      };
    }

    /** g(z), an image. */
    decode(z) {
      return this.decoder.forward(z).map((logit) => 1 / (1 + Math.exp(-logit)));
    }

    /** The probe's shares for the ten digits, given the mean of q. */
    votes(mean) {
      return softmax(this.probe.forward(mean));
    }

    /** q(Z | x), objective(q) and its derivative by x; objective: q -> {value, byMean, bySigma}. */
    slope(x, objective) {
      const q = this.encode(x), {value, byMean, bySigma} = objective(q), above = new Float64Array(2 * this.latents);
      for (let k = 0; k < this.latents; k++) {
        above[k] = byMean[k] * this.scale[k];
        above[this.latents + k] = bySigma[k] * q.sigma[k] / 2; // by the logarithm of the variance
      }
      return {q, value, gradient: this.encoder.backward(above)};
    }
  }

  function softmax(logits) {
    const highest = Math.max(...logits), powers = logits.map((logit) => Math.exp(logit - highest)), total = sum(powers);
    return powers.map((power) => power / total);
  }

  // ---- Attacks -----------------------------------------------------------------------------------------------------

  /** The probe's loss in nats, -log of the label's share: se_core.losses.cross_entropy. */
  const crossEntropy = (model, label) => (q) => {
    const logits = model.probe.forward(q.mean), shares = softmax(logits), highest = Math.max(...logits);
    const value = highest + Math.log(sum(logits.map((logit) => Math.exp(logit - highest)))) - logits[label];
    const byMean = model.probe.backward(shares.map((share, digit) => share - (digit === label)));
    return {value, byMean, bySigma: new Float64Array(q.sigma.length)};
  };

  /** W_2^2(q_x, q), eq. 12, what the selection mechanism maximises: se_core.w2_squared of diagonal Gaussians. */
  const movedFrom = (from) => (q) => {
    const byMean = q.mean.map((mean, k) => 2 * (mean - from.mean[k]));
    const bySigma = q.sigma.map((sigma, k) => 2 * (sigma - from.sigma[k]));
    return {value: sum(byMean.map((d) => d * d / 4)) + sum(bySigma.map((d) => d * d / 4)), byMean, bySigma};
  };

  /** A place to start: within spread * radius of x; noise: as many uniform numbers in [0, 1). */
  const startNear = (x, radius, spread, noise) =>
    x.map((pixel, i) => clamp(pixel + spread * radius * (2 * noise[i] - 1), 0, 1));

  /**
   * se_core.attacks.pgd, step by step: yields steps + 1 times {x, q, value}, the best point so far. It may change each
   * pixel by at most `radius` within [0, 1], by 2.5 radius / steps at a time.
   */
  function* attack(model, x, objective, {radius, steps, momentum}, start) {
    let point = start, best = null;
    const direction = new Float64Array(x.length), stride = 2.5 * radius / steps;
    for (let step = 0; ; step++) {
      const {q, value, gradient} = model.slope(point, objective);
      if (best === null || value > best.value) best = {x: point, q, value};
      yield best;
      if (step === steps) return;
      const size = Math.max(sum(gradient.map(Math.abs)) / gradient.length, Number.MIN_VALUE);
      gradient.forEach((slope, i) => { direction[i] = momentum * direction[i] + slope / size; });
      point = point.map((pixel, i) => {
        const moved = pixel + stride * Math.sign(direction[i]);
        return clamp(moved, Math.max(x[i] - radius, 0), Math.min(x[i] + radius, 1));
      });
    }
  }

  // ---- Digits ------------------------------------------------------------------------------------------------------

  const SIDE = 28, BOX = 20, PEN = 1.2; // MNIST's images and box; half the width of a pen's stroke, in its pixels

  /** The image of strokes with a round pen: each pixel by its distance from the nearest stroke. */
  function inked(strokes) {
    const image = new Float64Array(SIDE * SIDE);
    const reach = (a, b) =>
      [Math.min(a, b) - PEN - 1, Math.max(a, b) + PEN + 1].map((place) => clamp(Math.round(place), 0, SIDE));
    for (const stroke of strokes) {
      stroke.forEach(([x1, y1], k) => {
        const [x0, y0] = stroke[Math.max(k - 1, 0)], dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
        const [left, right] = reach(x0, x1), [top, bottom] = reach(y0, y1);
        for (let row = top; row < bottom; row++) {
          for (let column = left; column < right; column++) {
            const x = column + 0.5 - x0, y = row + 0.5 - y0;
            const along = length ? clamp((x * dx + y * dy) / length, 0, 1) : 0;
            const ink = clamp(PEN + 0.5 - Math.hypot(x - along * dx, y - along * dy), 0, 1);
            image[row * SIDE + column] = Math.max(image[row * SIDE + column], ink);
          }
        }
      });
    }
    return image;
  }

  /**
   * Strokes, each a list of points [x, y] in units of the pad, as MNIST has its digits (LeCun et al., 1998): the longer
   * side fills a box of 20 pixels, and the centre of mass lies in the middle of 28 x 28.
   */
  function mnistDigit(strokes) {
    const points = strokes.flat(), xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const scale = (BOX - 2 * PEN) / Math.max(right - left, bottom - top, 0.1); // a dot stays one
    const placed = (shiftX, shiftY) => inked(strokes.map((stroke) => stroke.map(([x, y]) =>
      [(x - (left + right) / 2) * scale + shiftX, (y - (top + bottom) / 2) * scale + shiftY])));
    const middle = placed(SIDE / 2, SIDE / 2), mass = sum(middle);
    const centre = (place) => sum(middle.map((ink, i) => ink * (place(i) + 0.5))) / mass;
    return placed(SIDE - centre((i) => i % SIDE), SIDE - centre((i) => Math.floor(i / SIDE)));
  }

  // ---- Plans -------------------------------------------------------------------------------------------------------

  /** The optimal plan of two scalar Gaussians at coupling gamma: chapter 4, and se_core.transport. */
  function plan(gamma, sigmaA, sigmaB, shift = 0) {
    const w = 2 * gamma * sigmaA * sigmaB, rho = w / (1 + Math.hypot(1, w));
    return {
      rho,
      information: 0.5 * Math.log1p(w * rho / 2), // nats
      cost: shift ** 2 + sigmaA ** 2 + sigmaB ** 2 - 2 * rho * sigmaA * sigmaB, // eq. 19
      least: shift ** 2 + (sigmaA - sigmaB) ** 2, // eq. 12
    };
  }

  return {SIDE, half, readSafetensors, Model, crossEntropy, movedFrom, startNear, attack, mnistDigit, plan};
})();
