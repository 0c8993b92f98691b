// One bed: risk over the stay with threshold and alerts, vital signs on the same axis, each alert explained and answered.
'use strict';
(() => {
  const key = new URLSearchParams(location.search).get('key'); // HTML would change a line break or a NUL in it
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let view = null, plots = [], shape = '', waiting = false, again = false, opened = new Set(), last = '';

  const hourText = h => view.dated ? time(h * 3.6e6) : `hour ${Math.round(h * 10) / 10}`;
  const STEPS = [1 / 60, 5 / 60, .25, .5, 1, 2, 3, 6, 12, 24, 48, 96, 192, 384];
  const axisX = named => ({ stroke: () => css('--soft'), grid: { stroke: () => css('--line'), width: 1 }, ticks: { show: false }, incrs: STEPS, space: 60,
    size: named ? 24 : 6, values: (u, ticks) => ticks.map(v => !named ? '' : view.dated ? time(v * 3.6e6) : `${Math.round(v * 100) / 100} h`) });
  const axisY = () => ({ stroke: () => css('--soft'), grid: { stroke: () => css('--line'), width: 1 }, ticks: { show: false }, size: 46, space: 22 });
  const line = (label, colour, more) => ({ label, stroke: () => css(colour), width: 1.8, points: { size: 4, show: true }, spanGaps: false,
    value: (u, v) => v === null ? '–' : number(v), ...more });
  function marks(u) { // the thresholds, and a vertical line and a number for each alert
    const c = u.ctx, r = devicePixelRatio;
    c.save(); c.strokeStyle = c.fillStyle = css('--threshold'); c.lineWidth = 1.4 * r; c.font = `${11 * r}px sans-serif`; c.textAlign = 'left'; // the axes leave theirs
    if (u.isRisk) for (const [p, dash] of [[view.threshold, [8, 5]], [clears(), [2, 4]]]) {
      if (p === null) continue;
      const y = u.valToPos(100 * p, 'y', true);
      c.setLineDash(dash.map(o => o * r)); c.beginPath(); c.moveTo(u.bbox.left, y); c.lineTo(u.bbox.left + u.bbox.width, y); c.stroke();
    }
    c.setLineDash([4 * r, 3 * r]);
    let free = Infinity; // alerts come newest first
    view.alerts.forEach((a, i) => {
      const x = u.valToPos(a.hour, 'x', true);
      if (x < u.bbox.left - 1 || x > u.bbox.left + u.bbox.width + 1) return;
      c.beginPath(); c.moveTo(x, u.bbox.top); c.lineTo(x, u.bbox.top + u.bbox.height); c.stroke();
      if (u.isRisk && x < free) { c.fillText(`▲${view.alerts.length - i}`, Math.max(x - 24 * r, u.bbox.left), u.bbox.top + 11 * r); free = x - 28 * r; }
    });
    c.restore();
  }
  const clears = () => view.alerts.find(a => a.clears !== null)?.clears ?? null;
  const GROUPS = [['HR', 'Pulse'], ['Resp'], ['SBP', 'MAP', 'DBP'], ['O2Sat'], ['Temp']];
  const COLOURS = ['--risk', '--missed', '--soft'], DASHES = [[], [6, 4], [2, 3]];
  function build(width) {
    $('plots').replaceChildren(); plots = [];
    const sync = uPlot.sync('bed'), xs = { time: false, range: (u, lo, hi) => lo === null ? [0, 1] : [lo - Math.max(0, .5 - (hi - lo)) , hi + Math.max(.015 * (hi - lo), .5 - (hi - lo))] };
    const rest = u => { if (u.cursor.idx == null && u.data[0].length) u.setLegend({ idx: u.data[0].length - 1 }, false); };
    function add(title, series, height, scale, named) {
      const box = el('div', { class: 'plot', role: 'img', 'aria-label': `${title}, a plot over the stay; numbers stand in the tables below` }, el('h3', {}, title));
      $('plots').append(box);
      const u = new uPlot({ width, height, cursor: { sync: { key: sync.key }, y: false, drag: { x: true, y: false } }, scales: { x: xs, y: scale },
        hooks: { draw: [marks], setCursor: [rest], setData: [rest] },
        series: [{ label: 'Time', value: (u, v) => v === null ? '–' : hourText(v) }, ...series], axes: [axisX(named), axisY()], padding: [6, 12, 0, 0] }, [[]], box);
      plots.push(u);
      return u;
    }
    const risk = add('Risk in %, with alerts (▲), the alert threshold (dashed) and the clear threshold (dotted)', [line('Risk %', '--risk', { width: 2.2 })], 190,
      { range: (u, lo, hi) => [0, Math.max(1, 150 * (view.threshold ?? 0), 1.12 * (hi ?? 0))] }, true);
    risk.isRisk = true;
    risk.fill = () => [view.hours, view.risks.map(p => p === null ? null : 100 * p)];
    const there = GROUPS.filter(names => view.plots.some(p => names.includes(p.name)));
    for (const names of there) {
      const found = view.plots.filter(p => names.includes(p.name));
      const title = found.map((p, i) => p.label + (found.length > 1 ? [' (solid)', ' (dashed)', ' (dotted)'][i] : '')).join(', ');
      const u = add(`${title[0].toUpperCase()}${title.slice(1)}, ${found[0].unit}`,
        found.map((p, i) => line(p.name, COLOURS[i], { dash: DASHES[i], spanGaps: true })), names === there.at(-1) ? 124 : 106,
        { range: (u, lo, hi) => lo === null ? [0, 1] : [lo - (hi - lo || 4) * .15, hi + (hi - lo || 4) * .15] }, names === there.at(-1));
      u.fill = () => [view.hours, ...found.map(f => view.plots.find(p => p.name === f.name).values)];
    }
  }
  function fill() {
    const next = view.plots.map(p => p.name).join(), width = Math.max(260, $('plots').clientWidth);
    if (next !== shape || !plots.length) { shape = next; build(width); }
    for (const u of plots) u.setData(u.fill());
  }
  addEventListener('resize', () => { for (const u of plots) u.setSize({ width: Math.max(260, $('plots').clientWidth), height: u.height }); });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { for (const u of plots) u.redraw(false, true); });

  function explanation(a) {
    if (a.explanation === 'none') return el('p', { class: 'note' }, 'This kind of model has no exact explanation of a single risk.');
    if (!a.explanation) return el('p', { class: 'note' }, 'No explanation came with this alert.');
    const most = Math.max(...a.explanation.map(o => Math.abs(o.effect ?? 0)), 1e-9);
    const timed = a.explanation.some(o => o.hours !== null);
    const body = a.explanation.map(o => {
      const bar = el('span', { class: o.effect < 0 ? 'bar down' : 'bar', 'aria-hidden': 'true' });
      bar.style.width = `${Math.round(100 * Math.abs(o.effect ?? 0) / most)}%`;
      return el('tr', {}, el('th', { scope: 'row' }, o.text ?? o.signal ?? ''), el('td', { class: 'n' }, o.value === null ? 'unknown' : `${number(o.value)} ${o.unit ?? ''}`),
        timed ? el('td', {}, o.hours === null ? '' : age(o.hours * 3.6e6)) : null, el('td', {}, o.effect === null ? '' : o.effect < 0 ? '↓ lowers' : '↑ raises'), el('td', { class: 'bars' }, bar));
    });
    return el('table', {}, el('thead', {}, el('tr', {}, ...['What moved the risk most', 'Value', timed ? 'Age at alert' : null, 'Risk', ''].map((t, i) => t === null ? null : el('th', { scope: 'col', class: ['', 'n', '', '', 'bars'][i] || null }, t)).filter(Boolean))),
      el('tbody', {}, ...body));
  }
  function alertBox(a, i) {
    const n = view.alerts.length - i;
    const head = el('h3', {}, `▲${n}  ${hourText(a.hour)}${view.dated ? '' : `, ${time(a.at)}`}: risk ${percent(a.risk)}`);
    const facts = el('p', { class: 'note' }, `alerts at ${percent(a.threshold)}${a.clears === null ? '' : `, clears below ${percent(a.clears)}`}, model version ${a.version}. ${a.over ? 'The risk has fallen since.' : i ? '' : 'The risk has not fallen below the clear threshold since.'}`);
    const answers = el('ul', { class: 'answers' }, ...(a.answers.length ? a.answers.map(k => el('li', {}, answerText(k))) : [el('li', {}, 'Nobody has answered it.')]));
    return el('div', { class: 'alertbox' }, head, facts, explanation(a), answers);
  }
  function tables() {
    const boxes = view.alerts.map(alertBox), more = boxes.splice(3);
    const old = $('alerts').querySelector('details');
    if (!boxes.length) boxes.push(el('p', { class: 'note' }, 'No alert in the hours that the board has read.'));
    if (more.length) boxes.push(el('details', { open: Boolean(old && old.open) }, el('summary', {}, `${more.length} earlier`), ...more));
    $('alerts').replaceChildren(...boxes);
    const rows = view.last.map(o => el('tr', {}, el('th', { scope: 'row' }, o.name === 'Gender' ? 'sex' : o.label),
      el('td', { class: 'n' }, o.name === 'Gender' ? (o.value === 1 ? 'male' : 'female') : number(o.value, 100)), el('td', {}, ['0/1', '1'].includes(o.unit) ? '' : o.unit),
      el('td', { class: 'age', 'data-age': o.age }, '')));
    $('last').replaceChildren(rows.length ? el('table', {}, el('thead', {}, el('tr', {}, ...['Signal', 'Value', 'Unit', 'Age'].map((t, i) => el('th', { scope: 'col', class: i === 1 ? 'n' : null }, t)))), el('tbody', {}, ...rows))
      : el('p', { class: 'note' }, 'The rows carry no signal that the board knows.'));
  }
  function head() {
    if (!view) return;
    const [mark, word] = STATES[view.state], old = view.quiet || isStale(), a = view.alert;
    const key = JSON.stringify([view.state, view.risk, old, view.why, a]);
    if (key !== last) {
      last = key;
      const can = a && !['below', 'above', 'indeterminate'].includes(view.state);
      const button = can ? el('button', { type: 'button', class: 'main' }, ['alert', 'missed'].includes(view.state) ? 'Answer' : 'Change') : null;
      if (button) button.addEventListener('click', () => ask(view));
      const focused = $('now').contains(document.activeElement);
      $('now').replaceChildren(...[el('span', { class: 'badge', 'data-state': view.state }, `${mark} ${word}`),
        el('span', { class: 'big' }, view.risk === null ? '–' : `${old ? 'was ' : ''}${percent(view.risk)}`), el('span', {}, `alerts at ${percent(view.threshold)}`),
        view.why ? el('span', {}, view.why) : null, a && a.answer ? el('span', {}, answerText(a.answer)) : null, el('span', { class: 'since' }), button].filter(Boolean));
      if (focused && button) button.focus();
    }
    put($('now').querySelector('.since'), view.at ? `last row ${age(now() - view.at)} ago${old ? ', NOT CURRENT' : ''}` : 'no row yet');
    for (const td of document.querySelectorAll('.age')) put(td, td.dataset.age === undefined ? '' : age(td.dataset.age * 3.6e6 + now() - view.at));
  }
  async function load() {
    if (waiting) { again = true; return; }
    waiting = true; again = false;
    try {
      const r = await fetch(`/bed.json?key=${encodeURIComponent(key)}`);
      if (r.ok) {
        const next = await r.json();
        const changed = JSON.stringify(view && [view.alerts, view.last]) !== JSON.stringify([next.alerts, next.last]);
        view = next;
        put($('unit'), [view.unit, `model version ${view.version}`].filter(Boolean).join(' · '));
        const step = Math.round(view.step_h * 60);
        put($('span'), `${view.hours.length ? `From ${hourText(view.hours[0])} to ${hourText(view.hours.at(-1))}` : 'No rows'}, as far as the board has read. A point is the highest risk in ${step > 1 ? `${step} minutes` : 'a minute'}; indeterminate rows have none. Drag over a plot to look closer, click twice to go back.`);
        if (changed) tables();
        fill(); last = ''; head();
      } else if (r.status === 404) { view = null; put($('now'), 'This bed is not on the board any more: no record of it came for too long.'); }
    } catch { /* the banner says that the connection is lost */ }
    setTimeout(() => { waiting = false; if (again) load(); }, 1000);
  }
  connect(`/events?key=${encodeURIComponent(key)}`, { all: load, some: load });
  setInterval(head, 1000);
})();
