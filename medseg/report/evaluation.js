// An evaluation: how good, where worst, how well calibrated, for whom, and whether its heat maps deserve trust.

const card = (title, ...children) => el('section', { class: 'card' }, el('h3', {}, title), children);

function stateNotes(state) {
  const { request = {}, complete, failed = [] } = state;
  const seen = { fit: 'The model was trained on these cases.', tune: 'Checkpoint and post-processing were chosen on these cases.' };
  const facts = [request.split ? `split ${request.split}` : '', (request.folds || []).filter(Boolean).length ? `fold ${request.folds.filter(Boolean).join(', ')}` : ''];
  return [
    facts.some(Boolean) ? el('p', { class: 'lead' }, facts.filter(Boolean).join(' · ')) : null,
    request.split in seen ? el('p', { class: 'note bad' }, el('b', {}, 'Not to be reported. '), seen[request.split]) : null,
    complete === false ? el('p', { class: 'note bad' }, el('b', {}, 'This evaluation is not finished. '), 'Run the same command again; it goes on.') : null,
    failed.length ? el('p', { class: 'note bad' }, el('b', {}, `${plural(failed.length, 'case')} not scored: `), failed.join(', ')) : null,
  ];
}

function metricsCard(entries) {
  const metrics = [...new Set(entries.map((entry) => entry.metric))];
  const labels = [...new Set(entries.map((entry) => entry.label))];
  const only = labels.length === 2 && labels.includes('mean') ? labels.filter((label) => label !== 'mean') : labels;
  const at = new Map(entries.map((entry) => [`${entry.metric}\n${entry.label}`, entry]));
  const rows = metrics.map((metric) => {
    const own = only.map((label) => at.get(`${metric}\n${label}`) || null);
    return el('tr', {}, el('th', { scope: 'row' }, heading(metric), noteOf(own.filter(Boolean))), own.map(estimate),
      el('td', { class: 'number' }, figure(own.reduce((most, entry) => Math.max(most, entry?.n ?? 0), 0))));
  });
  return card('Metrics', el('p', { class: 'small' }, 'Value and 95 % interval over patients; n is what a figure rests on.'),
    table('Metrics', ['', ...only, 'n'], rows, { class: 'metrics' }));
}

// What a figure needs a word for: once where it holds for all labels, else label by label.
function noteOf(entries) {
  const noted = entries.filter((entry) => entry.note);
  if (!noted.length) return null;
  const same = noted.length === entries.length && noted.every((entry) => entry.note === noted[0].note);
  return el('span', { class: 'small' }, same ? noted[0].note : noted.map((entry) => `${entry.label}: ${entry.note}`).join('; '));
}

function baselinesCard(own, baselines) {
  const names = Object.keys(baselines).filter((name) => baselines[name].length);
  const of = (entries, metric) => entries.find((entry) => entry.metric === metric && entry.label === 'mean');
  const metrics = [...new Set(own.map((entry) => entry.metric))].filter((metric) => names.some((name) => of(baselines[name], metric)));
  if (!metrics.length) return null;
  const rows = metrics.slice(0, 12).map((metric) => el('tr', {}, el('th', { scope: 'row' }, heading(metric)), estimate(of(own, metric) || null),
    names.map((name) => estimate(of(baselines[name], metric) || null))));
  return card('Beside what needs no model', table('Baselines', ['', 'this', ...names.map(heading)], rows, { class: 'metrics' }));
}

function worstCard(worst, cases, pictures) {
  const keys = new Map(cases.map((entry) => [entry.key, entry]));
  const rows = worst.rows.map((row) => {
    const entry = keys.get(`fold_${row.fold}/${row.id}`) || keys.get(row.id);
    return el('tr', {}, el('td', { class: 'thumb' }, entry?.thumb ? el('img', { src: entry.thumb, alt: '', loading: 'lazy', decoding: 'async' }) : null),
      el('th', { scope: 'row' }, entry ? el('a', { href: linkTo({ case: entry.key }) }, row.id) : row.id),
      row.values.map((value) => el('td', { class: 'number' }, typeof value === 'string' ? value : figure(value))));
  });
  return card('Worst cases first', el('p', { class: 'small' }, `${worst.by}; ${worst.rows.length} of ${plural(worst.of, 'case')}`),
    table('Worst cases', ['', 'case', ...worst.columns], rows), pictures.map(pictured));
}

const figuresCard = (title, figures) => card(title, el('div', { class: 'figures' }, figures.map(pictured)));

function pictured({ name, sheet }) {
  const text = heading(name.replaceAll('-', '_'));
  return el('figure', {}, el('img', { src: sheet, alt: text, decoding: 'async' }), el('figcaption', { class: 'small' }, text));
}

function calibrationCard(rows) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row.figures)))];
  return card('Calibration', el('p', { class: 'small' }, 'Expected calibration error (ECE) beside that of a perfectly calibrated model of as many cases.'),
    table('Calibration', ['', ...names.map(heading)], rows.map((row) => el('tr', {},
      el('th', { scope: 'row' }, row.label, row.note ? el('span', { class: 'small' }, row.note) : null),
      names.map((name) => estimate(row.figures[name] ?? null)))), { class: 'metrics' }),
    rows.filter((row) => row.conformal).map((row) => conformal(row.conformal)));
}

function conformal({ coverage, set_size: size, over_splits: splits }) {
  const own = coverage === undefined ? null : `Conformal sets hold the truth in ${figure(coverage)} of these cases, with ${figure(size, 2)} classes each on average.`;
  const over = splits ? ` Over ${splits.splits} random splits: ${figure(splits.value)} ± ${figure(splits.spread)}, where ${figure(1 - splits.alpha, 2)} was promised.` : '';
  return el('p', {}, own, over);
}

function evaluationSection(evaluation, cases) {
  const { state, metrics, baselines, worst, calibration, figures } = evaluation;
  const named = (word) => figures.filter((one) => one.name.startsWith(word));
  const elsewhere = ['audit', 'trust', ...(worst?.rows.length ? ['worst'] : [])];
  const other = figures.filter((one) => !elsewhere.some((word) => one.name.startsWith(word)));
  const parts = [
    ...stateNotes(state),
    metrics.length ? metricsCard(metrics) : null,
    baselinesCard(metrics, baselines),
    other.length ? figuresCard('Curves and pictures', other) : null,
    worst?.rows.length ? worstCard(worst, cases, named('worst')) : null,
    calibration.length ? calibrationCard(calibration) : null,
  ].filter(Boolean);
  return parts.length ? el('section', { class: 'wide', 'aria-label': 'Evaluation' }, parts) : null;
}

function trustSection({ trust, figures }) {
  if (!trust) return null;
  const { methods, verdict } = trust;
  const arrows = { deletion: 'deletion ↓', insertion: 'insertion ↑', shuffled_rank: 'shuffled |ρ| ↓', shuffled_ssim: 'shuffled SSIM ↓', shuffled_floor: 'shuffled with shuffled |ρ|' };
  const measures = [...new Set(methods.flatMap((method) => Object.keys(method.measures)))];
  const own = measures.filter((name) => !/_(small|medium|large)$/.test(name));
  const rest = measures.filter((name) => !own.includes(name));
  const rows = (names) => methods.map((method) => el('tr', { class: method.blind ? 'blind' : null }, el('th', { scope: 'row' }, heading(method.name),
    method.flags.map((flag) => el('span', { class: 'badge failed' }, flag))), names.map((name) => estimate(method.measures[name] ?? null))));
  const words = { true: 'yes', false: 'no', null: 'not judged' };
  const flagged = methods.filter((method) => method.flags.length);
  const pictures = figures.filter((one) => one.name.startsWith('trust'));
  return el('section', { class: 'wide', 'aria-label': 'Trust in heat maps' },
    flagged.length ? el('div', { class: 'note bad' }, el('b', {}, 'Do not trust'),
      el('ul', {}, flagged.map((method) => el('li', {}, `${heading(method.name)}: ${method.flags.join('; ')}`)))) : null,
    card('Do the heat maps deserve trust?', el('p', { class: 'small' }, 'Pale rows know nothing of the network: what a map must beat.'),
      table('Trust in heat maps', ['method', ...own.map((name) => arrows[name] || heading(name))], rows(own), { class: 'metrics' })),
    verdict ? card(`The aim of ${heading(verdict.method)}: ${verdict.passed === true ? 'reached' : verdict.passed === false ? 'missed' : 'not judged'}`,
      table('Checks', ['claim', 'figure', 'holds'], verdict.checks.map((check) => el('tr', {}, el('td', {}, check.claim), estimate(check),
        el('td', {}, el('span', { class: `badge ${check.passed === true ? 'done' : check.passed === false ? 'failed' : ''}` }, words[check.passed])))))) : null,
    rest.length ? el('details', { class: 'card' }, el('summary', {}, 'By size of the lesion'),
      table('More on trust', ['method', ...rest.map(heading)], rows(rest), { class: 'metrics' })) : null,
    pictures.length ? figuresCard('Curves', pictures) : null);
}

// What speaks against the maps of a method, by the trust table of the same page.
function flagsOf(method) {
  const known = overview.evaluation?.trust?.methods.find((one) => one.name === method);
  return known ? known.flags : [];
}

const MOST_ROWS = 1000;

function auditSection({ audit, figures }) {
  if (!audit) return null;
  const { groups, words } = audit;
  const pictures = figures.filter((one) => one.name.startsWith('audit'));
  const rows = groups.slice(0, MOST_ROWS).map((row) => el('tr', { class: row.judged ? null : 'blind' },
    el('td', {}, row.column), el('th', { scope: 'row' }, row.group, row.differs ? el('span', { class: 'badge failed' }, 'differs') : null,
      row.judged ? null : el('span', { class: 'badge' }, 'too small')),
    el('td', {}, `${heading(row.metric)}${row.label === 'mean' ? '' : ` · ${row.label}`}`), estimate(row.figure), el('td', { class: 'number' }, row.patients)));
  return el('section', { class: 'wide', 'aria-label': 'Audit' },
    words.length ? card('For whom is it wrong?', el('ul', { class: 'words' }, words.map((text) => el('li', {}, text)))) : null,
    pictures.length ? figuresCard('Groups', pictures) : null,
    groups.length ? card('Every group',
      groups.length > MOST_ROWS ? el('p', { class: 'small' }, `The first ${MOST_ROWS} of ${groups.length} rows; all are in audit.csv.`) : null,
      table('Audit', ['column', 'group', 'figure', 'value', 'patients'], rows, { class: 'metrics' })) : null);
}
