// What lies on a frame: the scan in grey, masks, heat maps. Each has a canvas of its own, so that opacity is a matter of style.

const INFERNO = [[0, 0, 4], [40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 193, 39], [252, 255, 164]];
const COOLWARM = [[59, 76, 192], [141, 176, 254], [221, 221, 221], [244, 152, 122], [180, 4, 38]];

function between(stops, share) {
  const place = share * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((value, n) => Math.round(value + (place - low) * (stops[low + 1][n] - value)));
}

const ramp = (stops) => `linear-gradient(to right, ${stops.map(rgb).join(', ')})`;

async function decoded(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

class Layer {
  constructor(name, sheet, width, height, { on, opacity }) {
    this.name = name;
    this.width = width;
    this.height = height;
    this.canvas = this.makeCanvas(1);
    this.on = on;
    this.opacity = opacity;
    this.ready = decoded(sheet).then((image) => { this.image = image; });
  }

  makeCanvas(times) {
    return el('canvas', { width: this.width * times, height: this.height * times, 'aria-hidden': 'true' });
  }

  draw(frame) {
    const visible = this.on && this.opacity > 0;
    this.canvas.hidden = !visible;
    this.canvas.style.opacity = this.opacity;
    if (visible && this.image) this.paint(frame);
  }

  paint(frame, canvas = this.canvas) {
    const context = canvas.getContext('2d', { willReadFrequently: true });
    context.drawImage(this.image, 0, frame * this.height, this.width, this.height, 0, 0, this.width, this.height);
    return context;
  }
}

const FINE_PX = 640;

// Labels are filled lightly and outlined along the edges of their voxels; each can be hidden. Its canvas is finer than the
// frames, so that outlines stay thin.
class MaskLayer extends Layer {
  constructor(sheet, width, height, labels, chosen) {
    super('mask', sheet, width, height, chosen);
    this.labels = labels.map((label) => ({ ...label, on: true }));
    this.times = Math.max(1, Math.round(FINE_PX / Math.max(width, height)));
    this.coarse = this.canvas;
    this.canvas = this.makeCanvas(this.times);
  }

  paint(frame) {
    const { width, height, times } = this;
    const values = super.paint(frame, this.coarse).getImageData(0, 0, width, height).data;
    const context = this.canvas.getContext('2d');
    const out = context.createImageData(width * times, height * times);
    const shown = (row, column) => {
      const value = row < 0 || column < 0 || row >= height || column >= width ? 0 : values[4 * (row * width + column)];
      return value && this.labels[value - 1]?.on ? value : 0;
    };
    const line = times > 3 ? 2 : 1;
    for (let row = 0; row < height; row += 1) {
      for (let column = 0; column < width; column += 1) {
        const value = shown(row, column);
        if (value) this.fill(out, row, column, this.labels[value - 1].colour, line, {
          top: shown(row - 1, column) !== value, bottom: shown(row + 1, column) !== value,
          left: shown(row, column - 1) !== value, right: shown(row, column + 1) !== value,
        });
      }
    }
    context.putImageData(out, 0, 0);
  }

  fill(out, row, column, [red, green, blue], line, edge) {
    const { times } = this;
    for (let y = 0; y < times; y += 1) {
      for (let x = 0; x < times; x += 1) {
        const border = (edge.top && y < line) || (edge.bottom && y >= times - line) || (edge.left && x < line) || (edge.right && x >= times - line);
        const at = 4 * ((row * times + y) * out.width + column * times + x);
        out.data[at] = red;
        out.data[at + 1] = green;
        out.data[at + 2] = blue;
        out.data[at + 3] = border ? 255 : 80;
      }
    }
  }
}

// The stronger a value, the more opaque its colour.
class HeatLayer extends Layer {
  constructor(map, chosen) {
    super(map.name, map.sheet, map.width, map.height, chosen);
    this.map = map;
    this.colours = Array.from({ length: 256 }, (_, value) => {
      const share = map.signed ? (value - 128) / 127 : value / 255;
      const colour = map.signed ? between(COOLWARM, Math.max(0, (share + 1) / 2)) : between(INFERNO, share);
      return [...colour, Math.round(255 * Math.min(1, Math.abs(share)))];
    });
  }

  paint(frame) {
    const context = super.paint(frame);
    const pixels = context.getImageData(0, 0, this.width, this.height);
    for (let at = 0; at < pixels.data.length; at += 4) pixels.data.set(this.colours[pixels.data[at]], at);
    context.putImageData(pixels, 0, 0);
  }

  legend() {
    const { signed, limit, largest } = this.map;
    const beyond = largest > limit ? ' and more' : '';
    return el('div', { class: 'ramp' },
      el('span', {}, signed ? `−${limit.toPrecision(3)}` : '0'),
      el('i', { style: { background: ramp(signed ? COOLWARM : INFERNO) } }),
      el('span', {}, `${limit.toPrecision(3)}${beyond}`));
  }
}
