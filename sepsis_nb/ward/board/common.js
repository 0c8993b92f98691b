// What both pages share: small helpers, the connection, the banner, the dialog in which an alert is answered.
'use strict';
const STATES = { alert: ['▲', 'ALERT'], missed: ['◆', 'Alert not seen'], acknowledged: ['✓', 'Seen, still high'],
  snoozed: ['◔', 'Snoozed'], above: ['△', 'Above threshold'], indeterminate: ['?', 'Indeterminate'], below: ['·', 'Below threshold'] };
const $ = id => document.getElementById(id);
function el(tag, attrs, ...kids) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attrs || {})) if (v !== null && v !== false) e.setAttribute(k, v === true ? '' : v);
  e.append(...kids.filter(k => k !== null));
  return e;
}
function put(node, text) { if (node.textContent !== text) node.textContent = text; } // a write of the same text costs a layout

// Times are the server's: its `now` comes with every event, so that a wrong clock of this machine makes no age.
const clock = { server: Date.now(), here: performance.now() };
const now = () => clock.server + performance.now() - clock.here;
function age(ms) {
  const s = Math.max(0, ms / 1000);
  if (s < 60) return `${Math.floor(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(s < 36000 ? 1 : 0)} h` : `${Math.floor(s / 86400)} d`;
}
const sameDay = (a, b) => new Date(a).toDateString() === new Date(b).toDateString();
function time(ms) {
  const t = new Date(ms).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' });
  return sameDay(ms, now()) ? t : `${new Date(ms).toLocaleDateString([], { month: 'short', day: 'numeric' })} ${t}`;
}
const percent = p => p === null ? '–' : `${(100 * p).toFixed(p < .0995 ? 1 : 0)} %`;
const number = (v, scale = 10) => v === null ? '–' : String(Math.round(v * scale) / scale);
function answerText(k) {
  const until = k.kind === 'snooze' ? ` until ${time(k.until)}` : '';
  return `${k.kind === 'snooze' ? 'Snoozed' : 'Acknowledged'}${until} by ${k.by}, ${time(k.time)}: ${k.reason}`;
}

// Why what is shown is not current, worst first. Without a word from the server for 5 s the connection counts as lost.
const link = { heard: performance.now(), lost: null, status: { stale: 'reading' } };
const WHY = {
  reading: () => 'Reading the records of the last hours … what is shown is not complete yet.',
  away: s => `NOT CURRENT: Kafka has not answered since ${time(s.since)}. The board tries again by itself.`,
  missing: s => `NOT CURRENT: topic ${s.topic} is not there any more, or may not be read. It is looked for again by itself.`,
  silent: s => `NOT CURRENT: the worker is silent. ${s.waiting} rows wait, and none has been answered since ${time(s.since)}.`,
};
function banner() {
  const s = link.status, lines = [];
  if (link.lost !== null) lines.push(`NOT CURRENT: the connection to the board was lost at ${time(link.lost)}. It is tried again by itself.`);
  else if (s.stale) lines.push(WHY[s.stale](s));
  if (s.unreadable) lines.push(`${s.unreadable} records could not be read, and are not shown; see the log of the board.`);
  if (s.full) lines.push(`There are more beds than the board takes; ${s.full} without a row for the longest time were taken off.`);
  document.body.classList.toggle('stale', Boolean(link.lost !== null || s.stale));
  $('banner').hidden = !lines.length;
  put($('banner'), lines.join(' '));
  put($('clock'), new Date(now()).toLocaleString([], { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' }));
}
const isStale = () => document.body.classList.contains('stale');
function connect(url, on) {
  let source;
  function heard(e) {
    const data = JSON.parse(e.data);
    clock.server = data.now; clock.here = link.heard = performance.now();
    if (link.lost !== null) { link.lost = null; banner(); }
    return data;
  }
  async function lose() {
    if (link.lost === null) { link.lost = now(); banner(); }
    if (source.readyState !== EventSource.CLOSED) return; // else the browser tries again
    source.close();
    try {
      const r = await fetch('/session.json');
      if (r.status === 401) { location.assign('/sign-in'); return; }
    } catch { /* not there yet */ }
    setTimeout(open, 2000);
  }
  function open() {
    source = new EventSource(url);
    source.onerror = lose;
    source.addEventListener('status', e => {
      link.status = heard(e);
      if (link.status.version !== document.querySelector('meta[name=board]').dataset.version) location.reload();
      banner();
    });
    for (const [name, f] of Object.entries(on)) source.addEventListener(name, e => f(heard(e)));
  }
  open();
  setInterval(() => {
    if (performance.now() - link.heard > 5000 && link.lost === null) link.lost = now() - (performance.now() - link.heard);
    banner();
  }, 1000);
}

function post(path, body) {
  const csrf = document.querySelector('meta[name=board]').dataset.csrf;
  return fetch(path, { method: 'POST', body: JSON.stringify(body), headers: { 'Content-Type': 'application/json', 'X-CSRF-Token': csrf } });
}
$('sign-out')?.addEventListener('click', async () => { await post('/sign-out', {}); location.assign('/sign-in'); });

// Answer an alert
const dialog = $('answer'), form = $('answer-form');
let asked = null;
function ask(line) {
  asked = line;
  form.reset();
  put($('answer-error'), '');
  put($('answer-of'), `${line.key}${line.unit ? `, ${line.unit}` : ''}: alert of ${time(line.alert.at)} at a risk of ${percent(line.alert.risk)}`);
  dialog.showModal();
  form.elements.by.focus();
}
$('answer-cancel').addEventListener('click', () => dialog.close());
form.elements.minutes.addEventListener('change', () => { form.elements.kind.value = 'snooze'; });
form.addEventListener('submit', async e => {
  e.preventDefault();
  const f = form.elements, button = form.querySelector('[type=submit]');
  const body = { key: asked.key, alert: asked.alert.source, kind: f.kind.value, by: f.by.value, reason: f.reason.value };
  if (body.kind === 'snooze') body.minutes = Number(f.minutes.value);
  button.disabled = true;
  put($('answer-error'), '');
  try {
    const r = await post('/answer', body);
    if (r.ok) dialog.close();
    else put($('answer-error'), `Not sent: ${(await r.text()).slice(0, 300)}`);
  } catch { put($('answer-error'), 'Not sent: the board does not answer. Try again when it does.'); }
  button.disabled = false;
});

// A course as a line of SVG
const SVG = 'http://www.w3.org/2000/svg';
function draw(svg, course, threshold) {
  const top = 1000 * Math.min(1, Math.max(2 * threshold, .05, Math.max(...course.map(v => v ?? 0)) / 1000 * 1.1)), n = Math.max(course.length - 1, 1);
  const y = v => (38 - 36 * v / top).toFixed(1), parts = [];
  let part = [];
  course.forEach((v, i) => {
    if (v === null) { if (part.length) parts.push(part); part = []; } else part.push(`${(100 * i / n).toFixed(1)},${y(v)}`);
  });
  if (part.length) parts.push(part);
  const lines = parts.map(p => {
    const e = document.createElementNS(SVG, 'polyline');
    const [x, y] = p[0].split(',').map(Number); // a single point is a short dash
    e.setAttribute('points', p.length > 1 ? p.join(' ') : `${Math.max(0, x - 2)},${y} ${Math.min(100, x + 2)},${y}`);
    return e;
  });
  const t = document.createElementNS(SVG, 'line');
  for (const [k, v] of Object.entries({ x1: 0, x2: 100, y1: y(1000 * threshold), y2: y(1000 * threshold) })) t.setAttribute(k, v);
  svg.replaceChildren(t, ...lines);
}
