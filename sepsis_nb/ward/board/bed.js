// One bed: risk over the stay with threshold and alerts, vital signs on the same axis, each alert explained and answered.
'use strict';
(() => {
  const key = document.querySelector('main').dataset.key;
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let view = null, plots = [], shape = '', waiting = false, again = false, opened = new Set(), last = '';

  const hourText = h => view.dated ? time(h * 3.6e6) : `hour ${Math.round(h * 10) / 10}`;
  const axisX = () => ({ stroke: () => css('--soft'), grid: { stroke: () => css('--line'), width: 1 }, ticks: { show: false }, size: 28,
    values: (u, ticks) => ticks.map(v => view.dated ? new Date(v * 3.6e6).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' }) : v) });
  const axisY = () => ({ stroke: () => css('--soft'), grid: { stroke: () => css('--line'), width: 1 }, ticks: { show: false }, size: 46, space: 22 });
  const line = (label, colour, more) => ({ label, stroke: () => css(colour), width: 1.8, points: { size: 4, show: true }, spanGaps: false,
    value: (u, v) => v === null ? '–' : number(v), ...more });
  function marks(u) { // a vertical line and a number for each alert
    const c = u.ctx, r = devicePixelRatio;
    c.save(); c.strokeStyle = c.fillStyle = css('--threshold'); c.lineWidth = 1.5 * r; c.setLineDash([5 * r, 4 * r]); c.font = `${11 * r}px sans-serif`;
    view.alerts.forEach((a, i) => {
      const x = u.valToPos(a.hour, 'x', true);
      if (x < u.bbox.left - 1 || x > u.bbox.left + u.bbox.width + 1) return;
      c.beginPath(); c.moveTo(x, u.bbox.top); c.lineTo(x, u.bbox.top + u.bbox.height); c.stroke();
      if (u.isRisk) c.fillText(`▲${view.alerts.length - i}`, Math.min(x + 3 * r, u.bbox.left + u.bbox.width - 22 * r), u.bbox.top + 11 * r);
    });
    c.restore();
  }
  const GROUPS = [['HR', 'Pulse'], ['Resp'], ['SBP', 'MAP', 'DBP'], ['O2Sat'], ['Temp']];
  const COLOURS = ['--risk', '--missed', '--soft'], DASHES = [[], [6, 4], [2, 3]];
  function build(width) {
    $('plots').replaceChildren(); plots = [];
    const sync = uPlot.sync('bed'), xs = { time: false };
    function add(title, series, height, scale, hooks) {
      const box = el('div', { class: 'plot', role: 'img', 'aria-label': `${title}, a plot over the stay; numbers stand in the tables below` }, el('h3', {}, title));
      $('plots').append(box);
      const u = new uPlot({ width, height, cursor: { sync: { key: sync.key }, y: false, drag: { x: true, y: false } }, scales: { x: xs, y: scale }, hooks,
        series: [{ label: 'Time', value: (u, v) => v === null ? '–' : hourText(v) }, ...series], axes: [axisX(), axisY()], padding: [6, 12, 0, 0] }, [[]], box);
      plots.push(u);
      return u;
    }
    const risk = add('Risk, with the alert threshold (dashed), the clear threshold (dotted) and alerts (▲)', [
      line('Risk %', '--risk', { width: 2.2 }), line('Alerts at %', '--threshold', { dash: [7, 5], width: 1.4, points: { show: false } }),
      line('Clears below %', '--threshold', { dash: [2, 4], width: 1.4, points: { show: false } })], 210, { range: (u, lo, hi) => [0, Math.max(5, hi * 1.12)] }, { draw: [marks] });
    risk.isRisk = true;
    risk.fill = () => {
      const clears = view.alerts.find(a => a.clears !== null)?.clears ?? null, all = v => view.hours.map(() => v === null ? null : 100 * v);
      return [view.hours, view.risks.map(p => p === null ? null : 100 * p), all(view.threshold), all(clears)];
    };
    for (const names of GROUPS) {
      const found = view.plots.filter(p => names.includes(p.name));
      if (!found.length) continue;
      const title = found.map((p, i) => p.label + (found.length > 1 ? [' (solid)', ' (dashed)', ' (dotted)'][i] : '')).join(', ');
      const u = add(`${title[0].toUpperCase()}${title.slice(1)}, ${found[0].unit}`,
        found.map((p, i) => line(p.name, COLOURS[i], { dash: DASHES[i], spanGaps: true })), 112, { range: (u, lo, hi) => lo === null ? [0, 1] : [lo - (hi - lo || 2) * .12, hi + (hi - lo || 2) * .12] }, { draw: [marks] });
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
    const body = a.explanation.map(o => {
      const bar = el('span', { class: o.effect < 0 ? 'bar down' : 'bar', 'aria-hidden': 'true' });
      bar.style.width = `${Math.round(100 * Math.abs(o.effect ?? 0) / most)}%`;
      return el('tr', {}, el('th', { scope: 'row' }, o.text ?? o.signal ?? ''), el('td', { class: 'n' }, o.value === null ? 'unknown' : `${number(o.value)} ${o.unit ?? ''}`),
        el('td', {}, o.hours === null ? '' : age(o.hours * 3.6e6)), el('td', {}, o.effect === null ? '' : o.effect < 0 ? '↓ lowers' : '↑ raises'), el('td', { class: 'bars' }, bar));
    });
    return el('table', {}, el('thead', {}, el('tr', {}, ...['What moved the risk most', 'Value', 'Measured before', 'Risk', ''].map((t, i) => el('th', { scope: 'col', class: i === 1 ? 'n' : null }, t)))),
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
    const rows = view.last.map(o => el('tr', {}, el('th', { scope: 'row' }, o.label), el('td', { class: 'n' }, number(o.value)), el('td', {}, o.unit === '0/1' ? '' : o.unit),
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
