// What was found in a case beside its slices: classes, findings, volumes, and what went wrong.

function remarks(entry, detail) {
  const words = {
    failed: 'This case failed.',
    unfinished: 'This case is not finished.',
    damaged: 'Not all of this case can be shown.',
  };
  return [
    entry.status === 'done' ? null : el('p', { class: 'note bad' }, el('b', {}, `${words[entry.status]} `), entry.reason),
    detail.mended && detail.mended.length
      ? el('div', { class: 'note' }, el('b', {}, 'Mended, and remarks'), el('ul', {}, detail.mended.map((text) => el('li', {}, text)))) : null,
    detail.word ? el('p', { class: 'note' }, detail.word) : null,
  ];
}

function classBars(classes) {
  const sorted = [...classes].sort((a, b) => b.p - a.p);
  const possible = classes.some((one) => typeof one.in_set === 'number')
    ? el('p', { class: 'small' }, `Cannot be excluded: ${sorted.filter((one) => one.in_set).map((one) => one.name).join(', ') || 'none of them'}.`) : null;
  return el('section', { class: 'card' }, el('h3', {}, 'Classes'), possible,
    el('ul', { class: 'bars' }, sorted.map((one) => el('li', {},
      el('span', { class: 'name' }, one.name),
      el('span', { class: 'bar', 'aria-hidden': 'true' }, el('i', { style: { width: `${100 * one.p}%` } })),
      el('span', { class: 'number' }, one.p.toFixed(3))))));
}

function findingsTable(detail, viewer) {
  const { findings, unit, dimensions } = detail;
  const sizeUnit = unit === 'px' ? 'px' : dimensions === 3 ? 'ml' : 'mm²';
  const size = (value) => (value === null ? '–' : figure(sizeUnit === 'ml' ? value / 1000 : value));
  const scored = findings.some((one) => one.score !== null);
  const heat = (one) => viewer.heat.findIndex((layer) => [`lesion ${one.id}`, `box ${one.id}`].includes(layer.name));
  const explained = findings.some((one) => heat(one) >= 0);
  const head = ['#', 'label', ...(scored ? ['score'] : []), `longest ${unit}`, `size ${sizeUnit}`, 'slice', ...(explained ? ['heat map'] : [])];
  const rows = findings.map((one) => {
    const go = () => {
      viewer.chosen = one.is_box ? one.id : null;
      viewer.go(one.frame);
      viewer.stage.scrollIntoView({ block: 'nearest' });
    };
    return el('tr', { class: 'goes', click: go },
      el('td', {}, el('button', { type: 'button', class: 'link', 'aria-label': `Show finding ${one.id}` }, String(one.id))),
      el('td', {}, swatch(one.colour), one.label),
      scored ? el('td', { class: 'number' }, one.score === null ? '–' : one.score.toFixed(3), spreadOf(detail, one)) : null,
      el('td', { class: 'number' }, figure(one.diameter, 1)),
      el('td', { class: 'number' }, size(one.size)),
      el('td', { class: 'number' }, String(one.frame + 1)),
      explained ? el('td', {}, heat(one) >= 0 ? el('button', { type: 'button', class: 'link', click: () => onlyHeat(viewer, heat(one)) }, 'show') : null) : null);
  });
  viewer.onFrame.push((frame) => rows.forEach((row, n) => row.classList.toggle('here', viewer.crosses(findings[n], frame))));
  const more = detail.more_findings ? el('p', { class: 'small' }, `and ${detail.more_findings} more`) : null;
  return el('section', { class: 'card' }, el('h3', {}, plural(findings.length + detail.more_findings, 'finding')),
    table('Findings', head, rows, { class: 'findings' }), more);
}

// How far the views of the model disagree about a box.
function spreadOf(detail, finding) {
  const spread = finding.is_box ? detail.boxes.find((box) => box.id === finding.id)?.spread : null;
  return typeof spread === 'number' ? el('span', { class: 'interval' }, ` ± ${spread.toFixed(2)}`) : null;
}

function onlyHeat(viewer, chosen) {
  const boxes = viewer.panel.querySelectorAll('.heat input[type=checkbox]');
  boxes.forEach((box, n) => {
    if (box.checked === (n === chosen)) return;
    box.checked = n === chosen;
    box.dispatchEvent(new Event('change'));
  });
}

function volumesTable(volumes) {
  const unsure = volumes.some((one) => typeof one.uncertainty === 'number');
  return el('section', { class: 'card' }, el('h3', {}, volumes[0].unit === 'ml' ? 'Volumes' : 'Areas'),
    table('Volumes', ['label', UNITS[volumes[0].unit], ...(unsure ? ['uncertainty'] : [])],
      volumes.map((one) => el('tr', {}, el('td', {}, swatch(one.colour), one.name), el('td', { class: 'number' }, figure(one.size)),
        unsure ? el('td', { class: 'number' }, figure(one.uncertainty)) : null))));
}
