// Elements and texts. Whatever comes from data becomes a text node, never markup.

const errors = document.getElementById('errors');

function complain(message) {
  errors.hidden = false;
  errors.append(el('span', {}, `${message} `));
}

window.addEventListener('error', (event) => complain(event.message));
window.addEventListener('unhandledrejection', (event) => complain(String(event.reason)));
document.addEventListener('securitypolicyviolation', (event) => complain(`blocked: ${event.violatedDirective}`));

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (name === 'style') for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ''));
  return element;
}

const rgb = (colour) => `rgb(${colour.join(' ')})`;
const swatch = (colour) => el('i', { class: 'swatch', style: { background: rgb(colour) } });
const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`;

function figure(value, digits = 3) {
  if (value === null || value === undefined) return '–';
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1000) return value.toFixed(0);
  if (size >= 100) return value.toFixed(1);
  if (size >= 10) return value.toFixed(Math.min(digits, 2));
  return size >= 0.001 ? value.toFixed(digits) : Number(value.toPrecision(2)).toString();
}

const UNITS = { ml: 'ml', mm2: 'mm²', px: 'px' };

// "hd95_mm" → "HD95 mm", "sensitivity_at_1_fp" → "Sensitivity at 1 fp"
function heading(name) {
  const methods = { grad_cam: 'Grad-CAM', grad_cam_plus_plus: 'Grad-CAM++', layer_cam: 'LayerCAM', hires_cam: 'HiResCAM', depth_cam: 'HiResCAM over depths', smooth_grad: 'SmoothGrad' };
  if (name in methods) return methods[name];
  const known = { iou: 'IoU', nsd: 'NSD', ap: 'AP', auroc: 'AUROC', auprc: 'AUPRC', ece: 'ECE', cpm: 'CPM', froc: 'FROC', roc: 'ROC', ppv: 'PPV', npv: 'NPV', nll: 'NLL', f1: 'F1', ml: 'ml', mm2: 'mm²' };
  const words = name.split('_').map((word) => known[word] || (/^(hd|assd)\d*$/.test(word) ? word.toUpperCase() : word));
  const text = words.join(' ');
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function table(caption, head, rows, attributes = {}) {
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
    el('table', attributes,
      el('caption', { class: 'hidden' }, caption),
      el('thead', {}, el('tr', {}, head.map((cell) => el('th', { scope: 'col' }, cell)))),
      el('tbody', {}, rows)));
}

// A figure with its interval, and where it lies between 0 and 1.
function estimate(entry) {
  if (entry === null || entry === undefined || typeof entry === 'number') return el('td', { class: 'number' }, figure(entry));
  const bounded = entry.low !== null && entry.low !== undefined;
  const share = bounded && [entry.value, entry.low, entry.high].every((value) => value >= 0 && value <= 1);
  const text = (value) => (share ? value.toFixed(3) : figure(value));
  return el('td', { class: 'number' },
    el('span', { class: 'value' }, text(entry.value)),
    bounded ? el('span', { class: 'interval' }, ` ${text(entry.low)}–${text(entry.high)}`) : null,
    share ? el('span', { class: 'span', 'aria-hidden': 'true' },
      el('i', { style: { left: `${100 * entry.low}%`, width: `${100 * (entry.high - entry.low)}%` } }),
      el('b', { style: { left: `${100 * entry.value}%` } })) : null);
}
