// An image computed where it is looked at, from coordinates and modes.
//
// The same sums as in `fourier_projection`: an atom contributes X(kx) Y(ky) to each Fourier coefficient, where X
// is the transform of a Gaussian sampled on the pixel grid, aliases included. No pixel of the uncropped image is
// ever computed, and no FFT.
"use strict";

const projection = (() => {
  const TURN = 2 * Math.PI;

  /** Where the atoms fall on the detector, in pixels: bent by amplitude, turned by pose in radians. */
  function positions(model, amplitude, pose) {
    const cos = Math.cos(pose), sin = Math.sin(pose);
    return model.reference.map(([x, y], p) => {
      const bentX = (x + amplitude * model.mode[p][0]) / model.pixelSize;
      const bentY = (y + amplitude * model.mode[p][1]) / model.pixelSize;
      return [cos * bentX - sin * bentY, sin * bentX + cos * bentY];
    });
  }

  /** X(k) of one atom at x, k = -m … m: real parts, then imaginary parts. */
  function transform(model, x, m) {
    const { boxSize, atomWidth } = model;
    const scale = Math.sqrt(TURN) * atomWidth / boxSize;
    const real = new Float64Array(2 * m + 1), imag = new Float64Array(2 * m + 1);
    for (let k = 0; k <= m; k++) {
      let sumReal = 0, sumImag = 0;
      for (let alias = -3; alias <= 3; alias++) {
        const frequency = k / boxSize + alias;
        const height = scale * Math.exp(-2 * (Math.PI * atomWidth * frequency) ** 2);
        sumReal += height * Math.cos(TURN * frequency * x);
        sumImag -= height * Math.sin(TURN * frequency * x);
      }
      real[m + k] = real[m - k] = sumReal;
      imag[m + k] = sumImag;
      imag[m - k] = -sumImag;
    }
    return { real, imag };
  }

  /**
   * Coefficients of the crop to K at kx = 0 … m and ky = -m … m: projection, contrast transfer, noise.
   * Atoms fall where the latents take them, or on `places` in pixels; without a defocus nothing is transferred.
   */
  function coefficients(model, latents, places = positions(model, latents.amplitude, latents.pose)) {
    const m = Math.floor((latents.resolution - 1) / 2), width = 2 * m + 1;
    const real = new Float64Array((m + 1) * width), imag = new Float64Array((m + 1) * width);
    for (const [x, y] of places) {
      const alongX = transform(model, x, m), alongY = transform(model, y, m);
      for (let kx = 0; kx <= m; kx++) {
        const a = alongX.real[m + kx], b = alongX.imag[m + kx];
        for (let i = 0; i < width; i++) {
          real[kx * width + i] += a * alongY.real[i] - b * alongY.imag[i];
          imag[kx * width + i] += a * alongY.imag[i] + b * alongY.real[i];
        }
      }
    }
    for (let kx = 0; kx <= m; kx++) {
      for (let ky = -m; ky <= m; ky++) {
        const at = kx * width + ky + m;
        const transfer = latents.defocus === undefined
          ? 1
          : -Math.sin(latents.defocus * (kx * kx + ky * ky) / model.boxSize ** 2);
        const [noiseReal, noiseImag] = noiseAt(model, kx, ky);
        real[at] = transfer * real[at] + latents.noise * noiseReal;
        imag[at] = transfer * imag[at] + latents.noise * noiseImag;
      }
    }
    return { m, width, real, imag };
  }

  /** What is left of an observed image beside the prediction: coefficients at kx = 0 … m and ky = -m … m. */
  function left(model, observed, latents) {
    const predicted = coefficients(model, { ...latents, noise: 0 }), { m, width } = predicted;
    const finest = (observed.real[0].length - 1) / 2;
    for (let kx = 0; kx <= m; kx++) {
      for (let ky = -m; ky <= m; ky++) {
        const at = kx * width + ky + m;
        predicted.real[at] = observed.real[kx][ky + finest] - predicted.real[at];
        predicted.imag[at] = observed.imag[kx][ky + finest] - predicted.imag[at];
      }
    }
    return predicted;
  }

  /** The image on K × K pixels, row by row. */
  function image(model, latents, places) {
    return synthesis(coefficients(model, latents, places), latents.resolution);
  }

  /** Pixels from the coefficients of half the plane. */
  function synthesis({ m, width, real, imag }, K) {
    const half = Math.floor(K / 2);
    // Along y first, for each kx; then along x, twice the real part for all but kx = 0.
    const rowsReal = new Float64Array((m + 1) * K), rowsImag = new Float64Array((m + 1) * K);
    for (let row = 0; row < K; row++) {
      for (let i = 0; i < width; i++) {
        const angle = TURN * (i - m) * (row - half) / K, cos = Math.cos(angle), sin = Math.sin(angle);
        for (let kx = 0; kx <= m; kx++) {
          const a = real[kx * width + i], b = imag[kx * width + i];
          rowsReal[kx * K + row] += a * cos - b * sin;
          rowsImag[kx * K + row] += a * sin + b * cos;
        }
      }
    }
    const pixels = new Float64Array(K * K);
    for (let column = 0; column < K; column++) {
      for (let kx = 0; kx <= m; kx++) {
        const angle = TURN * kx * (column - half) / K, twice = kx ? 2 : 1;
        const cos = twice * Math.cos(angle), sin = twice * Math.sin(angle);
        for (let row = 0; row < K; row++) {
          pixels[row * K + column] += rowsReal[kx * K + row] * cos - rowsImag[kx * K + row] * sin;
        }
      }
    }
    return pixels;
  }

  /** White noise of deviation 1 a pixel as a coefficient, the same at every resolution; `model.draw` counts draws. */
  function noiseAt(model, kx, ky) {
    if (kx === 0 && ky < 0) {
      const [a, b] = noiseAt(model, 0, -ky);
      return [a, -b];
    }
    const random = generator(1 + kx * 4096 + ky + 2048 + (model.draw || 0) * 16777216);
    const radius = Math.sqrt(-Math.log(1 - random())) / model.boxSize, angle = TURN * random();
    return kx === 0 && ky === 0
      ? [Math.SQRT2 * radius * Math.cos(angle), 0]
      : [radius * Math.cos(angle), radius * Math.sin(angle)];
  }

  /** Uniform numbers from a seed (mulberry32). */
  function generator(seed) {
    let state = Math.imul(seed, 0x9e3779b1);
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  /** Grey levels on a canvas of their own size; the browser makes it larger. */
  function paint(canvas, values, size, low, high) {
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d"), shown = context.createImageData(size, size);
    values.forEach((value, at) => {
      const grey = Math.round(255 * Math.min(1, Math.max(0, (value - low) / (high - low || 1))));
      shown.data.set([grey, grey, grey, 255], 4 * at);
    });
    context.putImageData(shown, 0, 0);
  }

  return { coefficients, image, left, paint, synthesis };
})();
