// An image, its spectrum and the transfer of a microscope in physical units, drawn again whenever a slider moves.
"use strict";

const microscope = (() => {
  /** Relativistic wavelength in Å at a voltage in kV, with the digits that RELION has of the constants. */
  function wavelength(voltage) {
    const volts = 1e3 * voltage;
    return 12.2643247 / Math.sqrt(volts * (1 + 0.978466e-6 * volts));
  }

  /** exp(-B k²/4) sin χ at a frequency in cycles per Å; defocus in µm, lengths in Å, angles in degrees. */
  function transfer(at, x, y) {
    const lambda = wavelength(at.voltage), squared = x * x + y * y, degree = Math.PI / 180;
    const across = Math.cos(2 * (Math.atan2(y, x) - degree * at.angle));
    const defocus = 1e4 * at.defocus + at.astigmatism * across;
    const chi = Math.PI * lambda * defocus * squared
      - 0.5 * Math.PI * 1e7 * at.aberration * lambda ** 3 * squared ** 2
      + Math.asin(at.contrast) + degree * at.phase;
    return Math.exp(-0.25 * at.envelope * squared) * Math.sin(chi);
  }

  /** Coefficients of the molecule at rest behind the microscope, and the transfer at the same frequencies. */
  function coefficients(model, at) {
    const still = { amplitude: 0, pose: 0, noise: 0, resolution: model.boxSize };
    model.projected ||= projection.coefficients(model, still);
    const { m, width, real, imag } = model.projected, size = model.boxSize * model.pixelSize;
    const noise = projection.coefficients({ ...model, reference: [] }, { ...still, noise: at.noise });
    const passed = { m, width, real: new Float64Array(real), imag: new Float64Array(imag) };
    const values = new Float64Array(width * width);
    for (let kx = 0; kx <= m; kx++) {
      for (let ky = -m; ky <= m; ky++) {
        const i = kx * width + ky + m, h = transfer(at, kx / size, ky / size);
        passed.real[i] = h * real[i] + noise.real[i];
        passed.imag[i] = h * imag[i] + noise.imag[i];
        values[(ky + m) * width + m + kx] = values[(m - ky) * width + m - kx] = h;
      }
    }
    return { passed, values };
  }

  /** The transfer along two directions, that of the most defocus and across it, out to the edge of the box. */
  function curves(canvas, model, at) {
    const scale = window.devicePixelRatio || 1, context = canvas.getContext("2d");
    const width = canvas.clientWidth, height = canvas.clientHeight, edge = 0.5 / model.pixelSize;
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    context.scale(scale, scale);
    const y = (value) => height * (0.5 - 0.42 * value);
    context.strokeStyle = "#888";
    context.strokeRect(0, y(0), width, 0);
    for (const [turn, colour] of [[90, "#de8f05"], [0, "#0173b2"]]) {
      const angle = (at.angle + turn) * Math.PI / 180;
      context.strokeStyle = colour;
      context.lineWidth = 1.5;
      context.beginPath();
      for (let x = 0; x <= width; x += 0.5) {
        const k = edge * x / width;
        context.lineTo(x, y(transfer(at, k * Math.cos(angle), k * Math.sin(angle))));
      }
      context.stroke();
    }
    context.fillStyle = "#333";
    context.font = "11px sans-serif";
    context.textAlign = "center";
    for (const pixels of [6.7, 3.3, 2.3]) {
      const detail = Math.round(pixels * model.pixelSize);
      context.fillText(`${detail} Å`, width / detail / edge, height - 4);
    }
  }

  /** Join the sliders and the button of a figure to its canvases. */
  function start(figure, model) {
    const sliders = [...figure.querySelectorAll("input")];
    const [picture, rings, transfers] = figure.querySelectorAll("canvas");
    let brightest = 0;
    const redraw = () => {
      const at = {};
      for (const slider of sliders) {
        at[slider.name] = Number(slider.value);
        figure.querySelector(`output[for="${slider.id}"]`).textContent = `${slider.value} ${slider.dataset.unit}`;
      }
      const { passed, values } = coefficients(model, at);
      const pixels = projection.synthesis(passed, model.boxSize);
      brightest ||= pixels.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      projection.paint(picture, pixels, model.boxSize, -brightest, brightest);
      projection.paint(rings, values, passed.width, -1, 1);
      curves(transfers, model, at);
    };
    figure.querySelector("button").addEventListener("click", () => {
      model.draw = (model.draw || 0) + 1;
      redraw();
    });
    sliders.forEach((slider) => slider.addEventListener("input", redraw));
    new ResizeObserver(redraw).observe(transfers);
    redraw();
  }

  return { coefficients, start, transfer };
})();
