// The list of cases, and the one that is open.

const STATUS = { done: 'done', failed: 'failed', unfinished: 'unfinished', damaged: 'damaged' };

class Cases {
  constructor(entries) {
    this.entries = entries;
    this.details = new Map([...document.querySelectorAll('script.case-data')].map((block) => [block.dataset.key, block]));
    this.sortable = [...new Set(entries.flatMap((entry) => Object.keys(entry.figures || {})))];
    this.list = el('ul', { class: 'list' });
    this.counted = el('p', { class: 'small', role: 'status' });
    this.search = el('input', { type: 'search', placeholder: 'Search cases', 'aria-label': 'Search cases', input: () => this.refresh() });
    this.filter = this.chooser('Status', [['', `all ${entries.length}`], ...this.statuses()]);
    this.order = this.chooser('Sort', [['', 'by name'], ['status', 'by status'], ...this.sortable.map((name) => [`figure:${name}`, `by ${name}`])]);
    this.rows = new Map(entries.map((entry) => [entry.key, this.row(entry)]));
    this.open = el('article', { class: 'case' });
    this.element = el('section', { class: 'cases', 'aria-label': 'Cases' },
      el('aside', { class: 'side' }, el('div', { class: 'controls' }, this.search, this.filter, this.order), this.counted, this.list), this.open);
    this.refresh();
  }

  statuses() {
    return Object.keys(STATUS).map((status) => [status, this.entries.filter((entry) => entry.status === status).length])
      .filter(([, count]) => count).map(([status, count]) => [status, `${STATUS[status]} ${count}`]);
  }

  chooser(label, options) {
    return el('select', { 'aria-label': label, change: () => this.refresh() }, options.map(([value, text]) => el('option', { value }, text)));
  }

  row(entry) {
    const thumb = entry.thumb ? el('img', { src: entry.thumb, alt: '', loading: 'lazy', decoding: 'async' }) : el('span', { class: 'blank' });
    this.summaries = this.summaries || new Map();
    const summary = el('span', { class: 'small' });
    this.summaries.set(entry.key, summary);
    return el('li', {}, el('a', { href: linkTo({ case: entry.key }) }, thumb,
      el('span', { class: 'who' }, el('span', { class: 'name' }, entry.key), summary), badge(entry.status)));
  }

  // The figure that is sorted by, else the first two.
  summary(entry, name) {
    if (entry.status === 'failed' || entry.status === 'unfinished') return entry.reason;
    const figures = entry.figures || {};
    const names = name ? [name] : Object.keys(figures).filter((one) => !/_(components|top_score|uncertainty|in_set)$/.test(one)).slice(0, 2);
    return names.filter((one) => one in figures).map((one) => saying(one, figures[one])).join(' · ');
  }

  refresh() {
    const wanted = this.search.value.trim().toLowerCase();
    const name = this.order.value.startsWith('figure:') ? this.order.value.slice(7) : '';
    const shown = this.entries.filter((entry) => entry.key.toLowerCase().includes(wanted) && (!this.filter.value || entry.status === this.filter.value));
    if (this.order.value === 'status') shown.sort((a, b) => Object.keys(STATUS).indexOf(b.status) - Object.keys(STATUS).indexOf(a.status));
    if (name) shown.sort((a, b) => (b.figures?.[name] ?? -Infinity) - (a.figures?.[name] ?? -Infinity));
    for (const entry of shown) this.summaries.get(entry.key).textContent = this.summary(entry, name);
    this.list.replaceChildren(...shown.map((entry) => this.rows.get(entry.key)));
    this.counted.textContent = shown.length === this.entries.length ? plural(shown.length, 'case') : `${shown.length} of ${plural(this.entries.length, 'case')}`;
    this.shown = shown;
  }

  show(key) {
    const entry = this.entries.find((one) => one.key === key);
    for (const [name, row] of this.rows) row.firstChild.toggleAttribute('aria-current', name === key);
    if (!entry) {
      this.open.replaceChildren(el('p', { class: 'note bad' }, `There is no case ${key} on this page.`));
      return;
    }
    if (this.key === key) {
      this.viewer?.follow();
      return;
    }
    this.key = key;
    const detail = JSON.parse(this.details.get(key).textContent);
    this.viewer = detail.frames ? new Viewer(key, detail) : null;
    const below = [
      detail.classes?.length ? classBars(detail.classes) : null,
      detail.findings?.length ? findingsTable(detail, this.viewer) : null,
      detail.volumes?.length ? volumesTable(detail.volumes) : null,
    ];
    this.open.replaceChildren(this.head(entry, detail), ...remarks(entry, detail).filter(Boolean),
      this.viewer ? this.viewer.element : '', el('div', { class: 'cards' }, below));
    this.viewer?.onFrame.forEach((tell) => tell(this.viewer.frame));
    this.rows.get(key).scrollIntoView({ block: 'nearest' });
  }

  head(entry, detail) {
    const at = this.shown.indexOf(entry);
    const step = (by, text, label) => {
      const other = at < 0 ? null : this.shown[at + by];
      return el('a', { class: 'step', href: other ? linkTo({ case: other.key }) : null, 'aria-label': label, 'aria-disabled': other ? null : 'true' }, text);
    };
    return el('header', { class: 'head' }, el('a', { class: 'back', href: linkTo({ section: 'cases' }) }, '← all cases'),
      el('h2', {}, entry.key), badge(entry.status),
      detail.seconds ? el('span', { class: 'small' }, `${figure(detail.seconds, 1)} s`) : null,
      el('span', { class: 'steps' }, step(-1, '‹', 'Previous case'), step(1, '›', 'Next case')));
  }
}

const badge = (status) => el('span', { class: `badge ${status}` }, STATUS[status]);

// "liver_ml", 145.2 → "liver 145.2 ml"; a class and its probability stay as they are.
function saying(name, value) {
  const [, what, ending] = name.match(/^(.*)_(ml|mm2|px|components|lesions|top_score)$/) || [null, name, ''];
  const last = { ml: ' ml', mm2: ' mm²', px: ' px', components: value === 1 ? ' part' : ' parts', lesions: value === 1 ? ' finding' : ' findings' };
  return ending === 'top_score' ? `surest ${what} ${figure(value)}` : `${what} ${figure(value)}${last[ending] || ''}`;
}
