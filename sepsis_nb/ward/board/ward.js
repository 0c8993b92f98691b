// The list of beds. Events change `lines`; what can be seen of them is painted once a frame. The order follows at once where an
// alert is new, else every third second: a thousand rows that move cost more than all else, and nobody reads a list that jumps.
'use strict';
(() => {
  const VITALS = [...document.querySelectorAll('.row.head .vital')].map(h => h.firstChild.textContent.trim());
  const lines = new Map(), rows = new Map(), dirty = new Set(), seen = new Set();
  const list = $('rows'), wanted = new Set();
  let unsorted = false, painting = false, complete = false;

  function make(key) {
    const cell = (name, ...kids) => el('div', { class: name, role: 'cell' }, ...kids);
    const r = { key, mark: el('span', { class: 'mark', 'aria-hidden': 'true' }), word: el('span', { class: 'word' }), since: el('small'),
      link: el('a', { href: `/bed?key=${encodeURIComponent(key)}`, title: key }, key), unit: el('small'), risk: el('b'), why: el('small', { class: 'why' }),
      svg: document.createElementNS(SVG, 'svg'), last: cell('last'), button: el('button', { type: 'button' }, 'Answer'),
      vitals: VITALS.map(n => ({ value: el('span'), age: el('small'), name: n })), course: '', news: -Infinity };
    r.svg.setAttribute('viewBox', '0 0 100 40'); r.svg.setAttribute('preserveAspectRatio', 'none'); r.svg.setAttribute('aria-hidden', 'true');
    r.el = el('div', { class: 'row', role: 'row' }, cell('state', r.mark, r.word, r.since), el('div', { class: 'who', role: 'rowheader' }, r.link, r.unit),
      cell('risk', r.risk, r.why), cell('course', r.svg),
      el('div', { class: 'vitals', role: 'none' }, ...r.vitals.map(v => el('div', { class: 'vital', role: 'cell', 'data-label': v.name }, v.value, ' ', v.age))),
      r.last, cell('do', r.button));
    r.el.dataset.key = key;
    r.button.addEventListener('click', () => ask(lines.get(key)));
    rows.set(key, r);
    list.append(r.el);
    visible.observe(r.el);
    unsorted = true;
  }
  const visible = new IntersectionObserver(entries => {
    for (const e of entries) {
      const key = e.target.dataset.key;
      if (e.isIntersecting) { seen.add(key); dirty.add(key); } else seen.delete(key);
    }
    plan();
  }, { rootMargin: '200px' });

  function paint(r, l) {
    const [mark, word] = STATES[l.state], quiet = l.quiet, a = l.alert;
    r.el.dataset.at = l.at;
    if (r.el.dataset.state !== l.state) r.el.dataset.state = l.state;
    r.el.classList.toggle('quiet', quiet);
    put(r.mark, mark); put(r.word, word);
    put(r.why, l.why || (l.threshold === null ? '' : `alerts at ${percent(l.threshold)}`));
    if (r.why.title !== l.why) r.why.title = l.why;
    put(r.unit, l.unit);
    const course = JSON.stringify([l.course, l.threshold]);
    if (course !== r.course) { r.course = course; draw(r.svg, l.course, l.threshold ?? 0); }
    const can = Boolean(a) && !['below', 'above', 'indeterminate'].includes(l.state), text = ['alert', 'missed'].includes(l.state) ? 'Answer' : 'Change';
    if (r.button.hidden === can) r.button.hidden = !can;
    put(r.button, text);
    if (can) r.button.setAttribute('aria-label', `${text}: alert of ${l.key}`);
    tick(r, l);
  }
  function tick(r, l) { // what changes with time alone
    const t = now(), a = l.alert, past = t - l.at, old = l.quiet || isStale();
    r.el.classList.toggle('fresh', performance.now() - r.news < 3000); // an outline: an animation would paint the page at each frame
    put(r.risk, l.risk === null ? '–' : `${old ? 'was ' : ''}${percent(l.risk)}`);
    const since = l.state === 'snoozed' ? `until ${time(a.answer.until)}, ${a.answer.by}` : l.state === 'acknowledged' ? `${a.answer.by}, ${time(a.answer.time)}`
      : l.state === 'missed' ? `${time(a.at)}; risk fell` : l.state === 'alert' ? `${a.answer ? 'snooze ended' : age(t - a.at)}, since ${time(a.at)}` : '';
    put(r.since, since);
    put(r.last, l.at ? `${age(past)} ago${old ? ', not current' : ''}` : 'none yet');
    l.vitals.forEach((v, i) => {
      put(r.vitals[i].value, v ? number(v[0]) : '–');
      const h = v ? v[1] * 3.6e6 + past : 0;
      put(r.vitals[i].age, v && v[1] > 1 / 12 ? age(h) : ''); // as old as the row itself: that stands beside it
    });
  }
  function plan() {
    if (painting) return;
    painting = true;
    requestAnimationFrame(() => {
      painting = false;
      for (const key of dirty) if (seen.has(key) && rows.has(key)) paint(rows.get(key), lines.get(key));
      dirty.clear();
    });
  }
  const before = (a, b) => a.order[0] - b.order[0] || a.order[1] - b.order[1] || (a.key < b.key ? -1 : 1);
  function sort() {
    const held = list.contains(document.activeElement) && document.activeElement.matches(':focus-visible') || dialog.open;
    $('held').hidden = !(unsorted && held);
    if (!unsorted || held) return;
    unsorted = false;
    let at = list.firstElementChild;
    for (const l of [...lines.values()].sort(before)) {
      const e = rows.get(l.key).el;
      if (e === at) at = at.nextElementSibling; else list.insertBefore(e, at);
    }
  }

  // Find, filter, count
  const chips = {};
  for (const [state, [mark, word]] of Object.entries(STATES)) {
    const n = el('b', {}, '0'), b = el('button', { type: 'button', 'aria-pressed': 'false' }, `${mark} ${word} `, n);
    b.addEventListener('click', () => {
      wanted.has(state) ? wanted.delete(state) : wanted.add(state);
      b.setAttribute('aria-pressed', wanted.has(state)); filter();
    });
    chips[state] = { n, b };
    $('states').append(b);
  }
  function shows(l, find, unit) {
    return (!wanted.size || wanted.has(l.state)) && (!unit || l.unit === unit) && (!find || `${l.key} ${l.unit}`.toLowerCase().includes(find));
  }
  function filter() {
    const find = $('find').value.trim().toLowerCase(), unit = $('unit').value;
    let n = 0;
    for (const [key, l] of lines) {
      const hide = !shows(l, find, unit), e = rows.get(key).el;
      if (e.hidden !== hide) e.hidden = hide;
      n += !hide;
    }
    put($('count'), `${n === lines.size ? '' : `${n} of `}${lines.size} bed${lines.size === 1 ? '' : 's'}`);
    $('empty').hidden = n > 0;
    put($('empty'), lines.size ? 'No bed fits the search, the unit and the states that are chosen.' : 'No rows have come yet. Beds appear here as soon as the worker scores their rows.');
  }
  function count() {
    const n = Object.fromEntries(Object.keys(STATES).map(s => [s, 0])), units = new Set();
    for (const l of lines.values()) { n[l.state]++; if (l.unit) units.add(l.unit); }
    for (const [s, c] of Object.entries(chips)) { put(c.n, String(n[s])); c.b.hidden = !n[s] && !wanted.has(s) && s !== 'alert'; }
    const waiting = n.alert + n.missed;
    document.title = waiting ? `(${waiting}) Ward board` : 'Ward board';
    const select = $('unit'), known = [...select.options].slice(1).map(o => o.value);
    if (units.size && [...units].sort().join('\n') !== known.join('\n')) {
      const chosen = select.value;
      select.replaceChildren(select.options[0], ...[...units].sort().map(u => el('option', {}, u)));
      select.value = units.has(chosen) ? chosen : '';
      $('units').hidden = false;
    }
  }
  $('find').addEventListener('input', filter);
  $('unit').addEventListener('change', filter);

  function take(found) {
    const news = [];
    for (const l of found) {
      const old = lines.get(l.key);
      lines.set(l.key, l);
      if (!old) make(l.key);
      if (!old || before(old, l) && String(old.order) !== String(l.order)) unsorted = true;
      if (complete && l.state === 'alert' && (!old || old.state !== 'alert' || old.alert.at !== l.alert.at)) {
        news.push(`${l.key}, risk ${percent(l.alert.risk)}`);
        rows.get(l.key).news = performance.now();
      }
      dirty.add(l.key);
    }
    if (news.length) { $('said').textContent = `New alert: ${news.slice(0, 5).join('; ')}${news.length > 5 ? `; and ${news.length - 5} more` : ''}`; unsorted = true; settle(); }
    plan();
  }
  function drop(keys) {
    for (const key of keys) {
      const r = rows.get(key);
      if (!r) continue;
      visible.unobserve(r.el); r.el.remove(); rows.delete(key); lines.delete(key); seen.delete(key); dirty.delete(key);
    }
  }
  function settle() { count(); filter(); sort(); }
  connect('/events', {
    all: d => {
      const there = new Set(d.beds.map(l => l.key));
      drop([...lines.keys()].filter(k => !there.has(k)));
      take(d.beds); settle();
      complete = true;
    },
    some: d => { drop(d.gone); take(d.beds); },
  });
  let beat = 0;
  setInterval(() => {
    count(); filter();
    if (++beat % 3 === 0) sort();
    for (const key of seen) if (rows.has(key)) tick(rows.get(key), lines.get(key));
  }, 1000);
  window.addEventListener('beforeprint', () => { for (const [key, r] of rows) paint(r, lines.get(key)); });
})();
