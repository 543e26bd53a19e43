// Puts the page together and shows what the address asks for.

const overview = JSON.parse(document.querySelector('script.overview-data').textContent);

function aboutSection() {
  const plain = (value) => (value !== null && typeof value === 'object' ? JSON.stringify(value) : String(value));
  const list = (values) => el('dl', {}, Object.entries(values || {}).flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, plain(value))]));
  const models = (made) => Object.entries(made.models || {}).map(([name, model]) => el('div', {},
    el('p', {}, name ? `${name}: ` : '', el('code', {}, model.sha256)),
    (model.members || []).length > 1 ? el('p', { class: 'small' }, `an ensemble of ${model.members.length}`) : null));
  return el('section', { class: 'wide', 'aria-label': 'About' },
    overview.made.map((made) => el('div', { class: 'cards' },
      card(made.group ? `Models, ${made.group}` : 'Model', el('p', { class: 'small' }, 'SHA-256'), models(made)),
      card('Options', list(made.options)), card('Versions', list(made.versions)),
      Object.values(made.runtimes || {}).map((runtime) => card('Runtime', list(runtime))))),
    card('This page', el('p', {}, `Written by medseg ${overview.version}. It holds everything that it shows and asks no network. `,
      'Slices and heat maps are compressed for viewing: measure in the files beside it.'),
    el('p', {}, 'Slices: mouse wheel, slider, or arrow keys when the picture has the focus; Page up and down, Home and End go farther.')));
}

function start() {
  const { cases, evaluation } = overview;
  const list = cases.length ? new Cases(cases) : null;
  const sections = [
    ['cases', `Cases ${cases.length}`, list?.element],
    ['evaluation', 'Evaluation', evaluation && evaluationSection(evaluation, cases)],
    ['trust', 'Trust', evaluation && trustSection(evaluation)],
    ['audit', 'Audit', evaluation && auditSection(evaluation)],
    ['about', 'About', aboutSection()],
  ].filter(([, , element]) => element);
  const links = sections.map(([name, title]) => el('a', { href: linkTo({ section: name }) }, title));
  document.getElementById('sections').replaceChildren(...links);
  document.getElementById('main').replaceChildren(...sections.map(([, , element]) => element));

  function route() {
    const asked = address.read();
    const first = evaluation && sections.some(([name]) => name === 'evaluation') ? 'evaluation' : sections[0][0];
    const wanted = asked.has('case') && list ? 'cases' : asked.get('section');
    const current = sections.some(([name]) => name === wanted) ? wanted : first;
    sections.forEach(([name, , element], n) => {
      element.hidden = name !== current;
      links[n].toggleAttribute('aria-current', name === current);
    });
    const wide = matchMedia('(min-width: 52rem)').matches;
    const key = asked.get('case') ?? (current === 'cases' && wide ? list.shown[0]?.key : undefined);
    document.body.toggleAttribute('data-open', key !== undefined);
    if (list && current === 'cases' && key !== undefined) list.show(key);
  }

  window.addEventListener('hashchange', route);
  route();
}

start();
