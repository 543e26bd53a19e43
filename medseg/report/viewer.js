// The slices of one case with everything that lies on them. Wheel, slider and arrow keys go through them.

class Viewer {
  constructor(name, detail) {
    this.name = name;
    this.detail = detail;
    this.frames = detail.frames;
    this.count = this.frames.count;
    this.boxOpacity = 1;
    this.chosen = null;
    this.onFrame = [];
    this.makeLayers();
    this.makeStage();
    this.makeControls();
    this.element = el('div', { class: 'viewer' }, el('div', { class: 'seen' }, this.stage, this.scroller), this.panel);
    this.follow();
  }

  makeLayers() {
    const { width, height, sheet } = this.frames;
    const asked = address.read();
    const on = (name) => (asked.has(name) ? asked.get(name) !== '0' : preferences[name]);
    const heat = asked.has('heat') ? asked.getAll('heat') : preferences.heat;
    const alone = !this.detail.mask && !this.detail.boxes.length && !heat.length;
    this.base = sheet ? new Layer('scan', sheet, width, height, { on: true, opacity: 1 }) : null;
    this.mask = this.detail.mask ? new MaskLayer(this.detail.mask, width, height, this.detail.painted, { on: on('mask'), opacity: 0.8 }) : null;
    this.showBoxes = on('boxes');
    this.showBelow = asked.has('below') ? asked.get('below') === '1' : preferences.below;
    this.heat = this.detail.heatmaps.map((map, n) => new HeatLayer(map, { on: heat.includes(map.name) || (alone && n === 0), opacity: 0.75 }));
    this.layers = [this.base, ...this.heat, this.mask].filter(Boolean);
    Promise.all(this.layers.map((layer) => layer.ready)).then(() => this.draw());
  }

  makeStage() {
    const { width, height, edges } = this.frames;
    this.boxes = el('div', { class: 'boxes' });
    this.stage = el('div', {
      class: 'stage', tabindex: '0', role: 'group', 'aria-label': 'Slices of the scan; arrow keys go through them',
      style: { 'aspect-ratio': `${width} / ${height}`, 'max-width': `calc(72vh * ${width} / ${height})` },
      keydown: (event) => this.key(event),
    },
    this.layers.map((layer) => layer.canvas), this.boxes,
    Object.entries(edges).map(([side, letter]) => el('span', { class: `mark ${side}`, 'aria-hidden': 'true' }, letter)));
    this.stage.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
    this.slider = el('input', {
      type: 'range', min: '1', max: String(this.count), step: '1', 'aria-label': 'Slice',
      input: () => this.go(Number(this.slider.value) - 1),
    });
    this.place = el('output', { class: 'place' });
    const strip = el('canvas', { class: 'strip', width: this.count, height: 1, 'aria-hidden': 'true' });
    const context = strip.getContext('2d');
    this.detail.strip.forEach((label, n) => {
      if (!label) return;
      context.fillStyle = rgb(this.detail.painted[label - 1].colour);
      context.fillRect(n, 0, 1, 1);
    });
    for (const box of this.detail.boxes.filter((one) => one.counts)) {
      context.fillStyle = rgb(box.colour);
      this.frames.slices.forEach((at, n) => {
        if (this.crosses(box, n)) context.fillRect(n, 0, 1, 1);
      });
    }
    this.scroller = el('div', { class: 'scroller' }, this.count > 1 ? [this.slider, strip] : null, this.place, this.described());
  }

  // How slices lie on the screen, in words.
  described() {
    const { left, right, top } = this.frames.edges;
    const sides = { L: 'left', R: 'right', A: 'front', P: 'back', S: 'head', I: 'feet' };
    if (!right) return el('p', { class: 'small' }, 'The picture as it is stored.');
    const words = `Screen: the patient’s ${sides[left]} on the left (${left}), ${sides[right]} on the right (${right}), ${sides[top]} up (${top}).`;
    const few = this.count < this.frames.depth ? ` ${this.count} of ${this.frames.depth} slices are kept for viewing.` : '';
    return el('p', { class: 'small' }, words + few);
  }

  makeControls() {
    const rows = [];
    if (this.base) {
      const light = { brightness: 1, contrast: 1 };
      const slide = (name, label) => el('label', { class: 'row slim' }, el('span', {}, label), el('input', {
        type: 'range', min: '0.3', max: name === 'contrast' ? '5' : '2.5', step: '0.05', value: '1',
        input: (event) => {
          light[name] = event.target.value;
          this.base.canvas.style.filter = `brightness(${light.brightness}) contrast(${light.contrast})`;
        },
      }));
      rows.push(el('fieldset', {}, el('legend', {}, 'Scan'), slide('brightness', 'Brightness'), slide('contrast', 'Contrast')));
    }
    if (this.mask) rows.push(el('fieldset', { class: 'masks' }, el('legend', {}, 'Mask'), this.switch(this.mask, 'Labels', 'mask'), this.labels()));
    if (this.detail.boxes.length) rows.push(el('fieldset', {}, el('legend', {}, 'Boxes'), this.boxSwitch(), this.belowSwitch()));
    if (this.heat.length) {
      rows.push(el('fieldset', { class: 'heat' }, el('legend', {}, `Heat maps${this.detail.method ? `, ${heading(this.detail.method)}` : ''}`),
        flagsOf(this.detail.method).map((flag) => el('p', { class: 'note bad' }, el('b', {}, 'Do not trust: '), flag)),
        this.heat.map((layer) => el('div', {}, this.switch(layer, layer.name), layer.legend()))));
    }
    this.panel = el('div', { class: 'panel' }, rows);
  }

  switch(layer, title) {
    return this.row(title, layer.on, layer.opacity, (on, opacity) => {
      layer.on = on;
      layer.opacity = opacity;
      this.remember(layer === this.mask ? { mask: on } : { heat: this.heat.filter((one) => one.on).map((one) => one.name) });
      layer.draw(this.frame);
    });
  }

  // Writes into the address what is not as it would be anyway.
  remember(changes) {
    Object.assign(preferences, changes);
    const plain = (name, value) => (typeof value !== 'boolean' ? value : value === (name !== 'below') ? null : String(Number(value)));
    const written = Object.entries(changes).map(([name, value]) => [name, plain(name, value)]);
    address.set({ section: null, case: this.name, ...Object.fromEntries(written) });
  }

  boxSwitch() {
    return this.row('Findings', this.showBoxes, 1, (on, opacity) => {
      this.showBoxes = on;
      this.boxOpacity = opacity;
      this.remember({ boxes: on });
      this.drawBoxes();
    });
  }

  // Boxes that the model does not stand by, where they are listed.
  belowSwitch() {
    const count = this.detail.boxes.filter((box) => !box.counts).length;
    if (!count) return null;
    const box = el('input', {
      type: 'checkbox', checked: this.showBelow,
      change: () => {
        this.showBelow = box.checked;
        this.remember({ below: box.checked });
        this.drawBoxes();
      },
    });
    return el('label', { class: 'wrap' }, box, ` ${count} below the working point`);
  }

  row(title, on, opacity, changed) {
    const box = el('input', { type: 'checkbox', checked: on, change: () => changed(box.checked, Number(range.value)) });
    const range = el('input', {
      type: 'range', min: '0', max: '1', step: '0.05', value: String(opacity), 'aria-label': `Opacity of ${title}`,
      input: () => changed(box.checked, Number(range.value)),
    });
    return el('div', { class: 'row' }, el('label', {}, box, ` ${title}`), range);
  }

  labels() {
    const sizes = Object.fromEntries(this.detail.volumes.map((volume) => [volume.name, volume]));
    return el('ul', { class: 'labels' }, this.mask.labels.map((label) => {
      const size = sizes[label.name];
      const box = el('input', {
        type: 'checkbox', checked: true,
        change: () => { label.on = box.checked; this.mask.draw(this.frame); },
      });
      return el('li', {}, el('label', {}, box, swatch(label.colour), el('span', { class: 'name' }, label.name)),
        size ? el('span', { class: 'size' }, `${figure(size.size)} ${UNITS[size.unit]}`) : null);
    }));
  }

  crosses(box, frame) {
    const at = this.frames.slices[frame];
    return frame === box.frame || (box.place[4] < at + 1 && box.place[5] > at);
  }

  // Goes where the address says, else where there is most to see.
  follow() {
    const asked = Number(address.read().get('slice'));
    this.go(asked >= 1 ? asked - 1 : this.frames.start, { quiet: true });
  }

  go(frame, { quiet = false } = {}) {
    this.frame = Math.max(0, Math.min(this.count - 1, Math.round(frame)));
    this.slider.value = String(this.frame + 1);
    const [index, where] = this.frames.captions[this.frame];
    this.place.textContent = this.count > 1 || where ? `Slice ${this.frame + 1} of ${this.count} · voxel ${index} · ${where}` : '';
    this.stage.dataset.slice = String(this.frame + 1);
    if (!quiet) address.set({ section: null, case: this.name, slice: String(this.frame + 1) });
    this.draw();
    this.onFrame.forEach((tell) => tell(this.frame));
  }

  draw() {
    for (const layer of this.layers) layer.draw(this.frame);
    this.drawBoxes();
    this.stage.dataset.drawn = String(this.layers.every((layer) => layer.image));
  }

  drawBoxes() {
    const shown = (box) => this.showBoxes && (box.counts || this.showBelow) && this.crosses(box, this.frame);
    const seen = this.detail.boxes.filter(shown);
    this.boxes.style.opacity = this.boxOpacity;
    this.boxes.replaceChildren(...seen.map((box) => {
      const [left, top, right, bottom] = box.place.map((share) => 100 * share);
      const text = box.score === null ? String(box.id) : `${box.id} · ${box.score.toFixed(2)}`;
      return el('div', {
        class: `box${box.counts ? '' : ' below'}${this.chosen === box.id ? ' chosen' : ''}${top < 8 ? ' low' : ''}`,
        title: `${box.label} ${text}`,
        style: { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%`, color: rgb(box.colour) },
      }, el('span', {}, text));
    }));
    this.stage.dataset.boxes = String(seen.length);
  }

  key(event) {
    const steps = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, PageUp: -5, PageDown: 5, Home: -this.count, End: this.count };
    if (!(event.key in steps) || this.count < 2) return;
    event.preventDefault();
    this.go(this.frame + steps[event.key]);
  }

  // The page scrolls on where the slices end.
  wheel(event) {
    const next = this.frame + Math.sign(event.deltaY);
    if (event.ctrlKey || !event.deltaY || next < 0 || next >= this.count) return;
    event.preventDefault();
    this.go(next);
  }
}
