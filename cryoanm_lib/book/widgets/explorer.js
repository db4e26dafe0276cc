// An image and its spectrum, drawn again whenever a slider moves.
"use strict";

const explorer = (() => {
  /** Logarithm of the power of every coefficient, the zero frequency in the middle. */
  function power({ m, width, real, imag }) {
    const values = new Float64Array(width * width);
    for (let kx = 0; kx <= m; kx++) {
      for (let i = 0; i < width; i++) {
        const at = kx * width + i;
        const level = Math.log10(real[at] ** 2 + imag[at] ** 2 + 1e-12);
        values[i * width + m + kx] = level;
        values[(width - 1 - i) * width + m - kx] = level;
      }
    }
    return values;
  }

  /** The transfer from the zero frequency to the corner of the box, and where the crop ends. */
  function curve(canvas, model, { defocus, resolution }) {
    const scale = window.devicePixelRatio || 1, context = canvas.getContext("2d");
    const width = canvas.clientWidth, height = canvas.clientHeight, corner = Math.SQRT1_2;
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    context.scale(scale, scale);
    const x = (frequency) => width * frequency / corner, y = (value) => height * (0.5 - 0.42 * value);
    const edge = resolution / 2 / model.boxSize;
    context.fillStyle = "#e6e6e6";
    context.fillRect(x(edge), 0, width, height);
    context.strokeStyle = "#888";
    context.beginPath();
    context.moveTo(0, y(0));
    context.lineTo(width, y(0));
    context.stroke();
    context.strokeStyle = "#0173b2";
    context.lineWidth = 1.5;
    context.beginPath();
    for (let at = 0; at <= width; at += 0.5) {
      context.lineTo(at, y(-Math.sin(defocus * (corner * at / width) ** 2)));
    }
    context.stroke();
    context.fillStyle = "#333";
    context.font = "11px sans-serif";
    context.textAlign = "center";
    for (const frequency of [0.25, 0.5]) {
      context.fillText(`${frequency}/px`, x(frequency), height - 4);
    }
  }

  /** Join the sliders and the button of a figure to its canvases. */
  function start(figure, model) {
    const sliders = [...figure.querySelectorAll("input")];
    const [picture, difference, spectrum, transfer] = figure.querySelectorAll("canvas");
    let brightest = 0;
    const redraw = () => {
      const latents = {};
      for (const slider of sliders) {
        const value = Number(slider.value), name = slider.name;
        latents[name] = name === "pose" ? value * Math.PI / 180 : value;
        figure.querySelector(`output[for="${slider.id}"]`).textContent = slider.dataset.unit
          ? `${slider.value} ${slider.dataset.unit}`
          : slider.value;
      }
      const K = latents.resolution, found = projection.coefficients(model, latents);
      const pixels = projection.synthesis(found, K);
      // Grey levels are those of the first image, so that what gets fainter is seen to.
      brightest ||= pixels.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      projection.paint(picture, pixels, K, -brightest, brightest);
      const resting = projection.image(model, { ...latents, amplitude: 0 });
      const five = 5 * model.noise * K / model.boxSize; // deviations of the noise that the figure starts with
      projection.paint(difference, pixels.map((value, at) => value - resting[at]), K, -five, five);
      projection.paint(spectrum, power(found), found.width, -9, -3.5);
      curve(transfer, model, latents);
    };
    figure.querySelector("button").addEventListener("click", () => {
      model.draw = (model.draw || 0) + 1;
      redraw();
    });
    sliders.forEach((slider) => slider.addEventListener("input", redraw));
    new ResizeObserver(redraw).observe(transfer);
    redraw();
  }

  return { start };
})();
