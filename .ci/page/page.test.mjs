// The status page in a real browser. Against the mock, or, with ARGON_PAGE_URL (and ARGON_PAGE_TOKEN), the tests that every engine must pass
// against that engine.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
import { launch } from './browser.mjs';
import { headersOf, Mock, PAGE, problem } from './mock.mjs';

const REAL = process.env.ARGON_PAGE_URL;
const TOKEN = process.env.ARGON_PAGE_TOKEN;
const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const mockOnly = { skip: REAL ? 'needs the mock' : false };
const pause = ms => new Promise(done => setTimeout(done, ms));

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser?.close(); });

/** Asks `look` until it is true or the time is over; then what it says last. */
const until = async (what, look, seconds = 15) => {
  const end = Date.now() + seconds * 1000;
  let last;
  do {
    last = await look();
    if (last === true) return;
    await pause(100);
  } while (Date.now() < end);
  assert.fail(`${what}: ${JSON.stringify(last)}`);
};

/** A page with a record of everything that went wrong on it. */
const open = async (t, url, { token = TOKEN, ...options } = {}) => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  t.after(() => context.close());
  if (token) await context.addInitScript(value => { if (!window.name) sessionStorage.setItem('argon-token', value); }, token);
  await context.addInitScript(() => {
    window.violations = [];
    document.addEventListener('securitypolicyviolation', event => window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
  });
  const page = await context.newPage();
  page.errors = [];
  page.asked = [];
  page.on('console', message => { if (['error', 'warning'].includes(message.type())) page.errors.push(message.text()); });
  page.on('pageerror', error => page.errors.push(error.stack));
  page.on('request', request => page.asked.push(new URL(request.url())));
  await page.goto(url);
  return page;
};
const live = page => until('the stream', async () => (await page.locator('#stream').textContent()) === 'Live' || page.locator('#stream').textContent());
const wrongs = async page => [...page.errors, ...await page.evaluate(() => window.violations)];
const textOf = (page, selector) => page.locator(selector).innerText();
const axe = async page => {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  return violations.map(one => `${one.id} (${one.impact}): ${one.nodes.slice(0, 3).map(node => `${node.target} ${node.failureSummary}`).join(' | ')}`);
};
const started = async (t, options) => {
  const mock = await new Mock(options).listen();
  t.after(() => mock.close());
  return mock;
};
/** The engine under test. */
const target = async (t, options) => REAL ? { url: REAL } : started(t, options);
const api = async (url, path, options = {}) => {
  const response = await fetch(new URL(path, url), { ...options, headers: { ...(TOKEN ? { Authorization: `Bearer ${TOKEN}` } : {}), ...(options.body ? { 'Content-Type': 'application/json' } : {}) } });
  return response.json();
};

// ---- every engine -----------------------------------------------------------------------------------------------------------------

test('it is one file whose policy allows exactly its script and its style', async t => {
  const html = readFileSync(PAGE, 'utf8');
  const markup = html.replace(/<script>[\s\S]*<\/script>|<style>[\s\S]*<\/style>/g, '');
  assert.doesNotMatch(markup, /\son[a-z]+=|\sstyle=|javascript:|https?:\/\/(?!www\.w3\.org)/);
  const { url } = await target(t);
  const response = await fetch(url);
  assert.equal(response.status, 200);
  for (const [name, value] of Object.entries(headersOf(await response.text()))) if (name !== 'Cache-Control') assert.equal(response.headers.get(name), value, name);
});

test('it loads without an error and asks nobody but the engine', async t => {
  const { url } = await target(t);
  const page = await open(t, url);
  await live(page);
  await pause(3000);
  assert.deepEqual(await wrongs(page), []);
  for (const asked of page.asked) assert.match(asked.href, new RegExp(`^(data:|${url}(health|api/v1/[a-z/]+.*)?$)`));
  assert.equal(await page.title(), `${(await textOf(page, '#health')) === 'OK' ? '' : '⚠ '}Argon: ${(await textOf(page, '#health')).toLowerCase()}`);
});

test('it shows the numbers of the API', async t => {
  const { url } = await target(t);
  const page = await open(t, url);
  await live(page);
  const squeezed = text => text.replace(/[\s,]+/g, ' ');
  for (let tries = 0; ; tries += 1) {
    const [health, stats, queue, captures, branches] = await Promise.all(['health', 'api/v1/workers/stats', 'api/v1/workers/queue', 'api/v1/captures', 'api/v1/branches?limit=50'].map(path => api(url, path)));
    await pause(1500);
    try {
      assert.equal(await textOf(page, '#version'), health.version);
      assert.equal(await textOf(page, '#engine'), stats.engines.find(one => one.this).engine);
      const checks = await textOf(page, '#checks');
      for (const [name, check] of Object.entries(health.checks)) assert.match(checks.toLowerCase(), new RegExp(`${name}: ${check.status}`));
      const workers = await page.locator('#workers tbody tr:not(.group) th').allInnerTexts();
      assert.deepEqual(workers.sort(), [...stats.workers, ...stats.slots].map(one => one.worker_id).sort());
      const states = Object.fromEntries((await page.locator('#queue table').first().locator('tbody tr').allInnerTexts()).map(row => row.split('\t')).map(([state, jobs]) => [state.trim(), Number(jobs.replace(/\D/g, ''))]));
      assert.equal(states.dead, queue.failed_jobs);
      assert.equal(states.scheduled, queue.scheduled_jobs);
      assert.ok(states.done >= queue.completed_jobs && states.done < queue.completed_jobs * 1.1 + 5000, `${states.done} done, ${queue.completed_jobs}`);
      assert.match(await textOf(page, '#tiles'), new RegExp(`Dead jobs\\s+${queue.failed_jobs.toLocaleString('en-US')}`));
      for (const capture of captures.captures) assert.ok((await textOf(page, '#captures')).includes(capture.branch), capture.branch);
      const shown = squeezed(await page.locator('#branches').textContent());
      for (const branch of branches.branches) assert.ok(shown.includes(branch.name) && (!branch.parent || shown.includes(branch.parent)), branch.name);
      return;
    } catch (error) {
      if (tries > 6) throw error; // figures move while they are compared
    }
  }
});

test('it is live: figures and plots move by themselves', async t => {
  const { url } = await target(t);
  const page = await open(t, url);
  await live(page);
  const seen = new Set(), up = new Set();
  for (let i = 0; i < 6; i += 1) {
    await pause(1000);
    seen.add(await page.locator('#plots .curve').nth(0).getAttribute('d'));
    up.add(await page.evaluate(() => performance.now() | 0));
  }
  assert.ok(seen.size >= 4, `${seen.size} different curves in 6 s`);
  assert.match(await textOf(page, '#bottleneck'), /blocked/);
});

test('a dead job is retried by its button', async t => {
  const { url } = await target(t, { dead: 3 });
  let id;
  if (REAL) {
    const made = await api(url, 'api/v1/jobs', { method: 'POST', body: JSON.stringify({ kind: 'noop', failure_rate: 1, retries: 0 }) });
    id = made.ids[0];
    await until('the job dies', async () => (await api(url, `api/v1/jobs/${id}`)).state === 'dead', 60);
  } else id = (await api(url, 'api/v1/jobs?state=dead')).jobs[0].id;
  const before = await api(url, `api/v1/jobs/${id}`);
  const page = await open(t, url);
  await live(page);
  if (REAL) await page.selectOption('#dead-kind', 'noop');
  const row = page.locator('#dead tr', { hasText: id });
  await row.getByRole('button', { name: 'Retry' }).click();
  await until('the notice', async () => (await textOf(page, '#notices')).includes(`Job ${id} runs again.`) || textOf(page, '#notices'));
  await until('the job runs again', async () => {
    const job = await api(url, `api/v1/jobs/${id}`);
    return job.state !== 'dead' || (job.finished_ms ?? 0) > (before.finished_ms ?? 0) || job;
  });
  if (REAL) { // it fails again; then it is given up by the page, which asks first
    await until('the job dies again', async () => (await api(url, `api/v1/jobs/${id}`)).state === 'dead', 60);
    await row.getByRole('button', { name: 'Discard' }).click({ timeout: 30_000 });
    assert.match(await textOf(page, '#confirm-dialog'), /No captured change is lost/);
    assert.equal((await api(url, `api/v1/jobs/${id}`)).state, 'dead');
    await page.locator('#confirm-go').click();
    await until('the job is cancelled', async () => (await api(url, `api/v1/jobs/${id}`)).state === 'cancelled');
  }
  assert.deepEqual(await wrongs(page), []);
});

test('no sideways scrolling on a phone', async t => {
  const { url } = await target(t, { hostile: true, branches: 60, dead: 30 });
  for (const width of [320, 360, 768]) {
    const page = await open(t, url, { viewport: { width, height: 780 } });
    await live(page);
    await until('the lists', async () => await page.locator('#branches tbody tr, #branches .empty:visible').count() > 0);
    for (const details of await page.locator('details > summary').all()) await details.click();
    await pause(1500);
    const wide = await page.evaluate(() => ({
      page: document.documentElement.scrollWidth, window: window.innerWidth,
      over: [...document.querySelectorAll('main *, header *')].filter(node => node.getBoundingClientRect().right > innerWidth + 1 && !node.closest('.scroll, nav, .sr, svg')).slice(0, 5).map(node => `${node.tagName}.${node.className}`),
    }));
    assert.ok(wide.page <= width && wide.over.length === 0, `${width} px: ${JSON.stringify(wide)}`);
    assert.equal(await page.evaluate(() => { window.scrollTo(200, 0); return window.scrollX; }), 0);
  }
});

test('light and dark follow the system until the operator chooses', async t => {
  const { url } = await target(t);
  const page = await open(t, url, { colorScheme: 'dark' });
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const dark = await background();
  await page.emulateMedia({ colorScheme: 'light' });
  const light = await background();
  assert.notEqual(dark, light);
  await page.emulateMedia({ colorScheme: 'dark' });
  await page.locator('#theme').click();
  assert.equal(await page.locator('#theme').getAttribute('aria-label'), 'Theme: light');
  assert.equal(await background(), light);
  await page.reload();
  assert.equal(await background(), light);
  await page.locator('#theme').click();
  await page.emulateMedia({ colorScheme: 'light' });
  assert.equal(await background(), dark);
  await page.locator('#theme').click();
  assert.equal(await background(), light);
});

test('axe finds nothing, in either theme, on a phone, with dialogs and details open', async t => {
  const { url } = await target(t, { hostile: true, branches: 60, dead: 25 });
  for (const options of [{ colorScheme: 'light' }, { colorScheme: 'dark' }, { colorScheme: 'light', viewport: { width: 360, height: 780 } }]) {
    const page = await open(t, url, options);
    await live(page);
    await until('the lists', async () => await page.locator('#branches tbody tr, #branches .empty:visible').count() > 0);
    for (const details of await page.locator('details > summary').all()) await details.click();
    await pause(1200);
    assert.deepEqual(await axe(page), [], JSON.stringify(options));
    if (REAL) continue;
    await page.locator('#dead tbody').getByRole('button', { name: 'All 4 errors' }).first().click();
    await page.locator('#dead tbody').getByRole('button', { name: 'Discard' }).first().click();
    assert.deepEqual(await axe(page), [], `dialog, ${JSON.stringify(options)}`);
  }
});

test('nothing moves for those who asked for that', async t => {
  const { url } = await target(t);
  const page = await open(t, url, { reducedMotion: 'reduce' });
  await live(page);
  await pause(2500);
  assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
  assert.equal(await page.evaluate(() => getComputedStyle(document.documentElement).scrollBehavior), 'auto');
});

// ---- the mock: what an engine does not do on demand ---------------------------------------------------------------------------------

test('rates are those of the cumulative figures, and the bottleneck is named', mockOnly, async t => {
  const mock = await started(t, { dead: 0 });
  mock.load.fixed = 9000;
  const page = await open(t, mock.url);
  await live(page);
  await pause(6000); // longer than a rate looks back
  const number = async selector => Number((await textOf(page, selector)).replace(/[^\d.k]/g, '').replace(/(.*)k/, (_, n) => n * 1000));
  await until('changes a second', async () => { const n = await number('#tiles .tile:nth-child(1) .value'); return Math.abs(n - 9000) < 900 || n; });
  await page.locator('#flow-details summary').click();
  const row = async name => (await page.locator(`#flow-details tr:has(th:text-is("${name}"))`).innerText()).split('\t');
  await until('upload in figures', async () => { const [, changes, bytes, , busy] = await row('upload'); return Math.abs(Number(changes.replace(',', '')) - 9000) < 900 && /33\d|3[0-6]\d kB/.test(bytes) && /5\d|6\d %/.test(busy) || [changes, bytes, busy]; });
  assert.equal(await textOf(page, '#bottleneck'), 'No link is blocked.');
  mock.load.fixed = 95e3; // more than 20 workers do
  await until('the bottleneck', async () => /^Bottleneck: workers\. Link claimed is blocked [23]\d % of the time\.$/.test(await textOf(page, '#bottleneck')) || textOf(page, '#bottleneck'), 25);
  assert.equal(await page.locator('.flow .box.bad, .flow .box.warn').count(), 1);
  assert.match(await page.locator('#flow svg desc').textContent(), /ingest: [\d.k,]+ changes a second/);
});

test('an engine that starts anew shows neither wrong rates nor leaps', mockOnly, async t => {
  const mock = await started(t);
  mock.load.fixed = 5000;
  const page = await open(t, mock.url);
  await live(page);
  await pause(4000);
  for (const stage of Object.values(mock.stages)) Object.assign(stage, { units: 0, changes: 0, bytes: 0, busy_seconds: 0 });
  mock.started = Date.now();
  const rates = [];
  for (let i = 0; i < 40; i += 1) { rates.push(await textOf(page, '#tiles .tile:nth-child(1) .value')); await pause(150); }
  assert.ok(rates.every(rate => Math.abs(Number(rate.replace(',', '')) - 5000) < 2500), rates.join(' '));
});

test('health is told once, with its reason, and ticks are not announced', mockOnly, async t => {
  const mock = await started(t, { dead: 0 });
  const page = await open(t, mock.url);
  await live(page);
  await pause(1500);
  await page.evaluate(() => {
    window.told = [];
    for (const node of document.querySelectorAll('[aria-live]')) new MutationObserver(() => window.told.push(node.textContent)).observe(node, { childList: true, characterData: true, subtree: true });
  });
  await pause(5000);
  assert.deepEqual(await page.evaluate(() => window.told), []);
  assert.ok(await page.locator('#attention').isHidden());
  mock.health.store = { status: 'degraded', reason: 'the store has not answered for 10s' };
  await until('the reason', async () => (await page.locator('#attention').textContent()).includes('store: the store has not answered for 10s'));
  assert.equal(await textOf(page, '#health'), 'Degraded');
  mock.health.runtime = { status: 'unhealthy', reason: 'tasks have not run for 6.0 s' };
  await until('unhealthy', async () => (await textOf(page, '#health')) === 'Unhealthy');
  assert.deepEqual(await page.evaluate(() => window.told), ['Health: Degraded', 'Health: Unhealthy']);
  assert.equal(await page.title(), '⚠ Argon: unhealthy');
});

test('the page asks for a token, keeps it in the tab, and does what was asked after a right was missing', mockOnly, async t => {
  const mock = await started(t, { dead: 5, tokens: { 'only-reads-1234': 'read', 'may-operate-1234': 'operate', 'may-all-1234567': 'admin' } });
  const page = await open(t, mock.url, { token: null });
  const dialog = page.locator('#token-dialog'), enter = async token => { await page.locator('#token-field').fill(token); await page.keyboard.press('Enter'); };
  await until('the dialog', async () => dialog.isVisible());
  assert.ok(await page.evaluate(() => document.activeElement.id === 'token-field'));
  await page.keyboard.press('Escape');
  await until('it closes', async () => dialog.isHidden());
  // What anyone may see is there, and nothing asks again and again.
  await until('health', async () => (await textOf(page, '#health')) === 'OK');
  assert.equal(await textOf(page, '#stream'), 'Token needed');
  const asked = mock.log.length;
  await pause(6500);
  assert.ok(mock.log.length - asked <= 3 && mock.log.slice(asked).every(one => one.path === '/health'), JSON.stringify(mock.log.slice(asked).map(one => one.path)));
  assert.ok(await dialog.isHidden());

  await page.locator('#token').click();
  await enter('a-wrong-one-1234');
  await until('it is asked again', async () => (await textOf(page, '#token-why')).includes('not accepted') && await dialog.isVisible());
  await enter('only-reads-1234');
  await live(page);
  // A list that was refused once is read again when it is looked at.
  await page.locator('#dead').scrollIntoViewIfNeeded();
  await until('dead jobs', async () => await page.locator('#dead tbody tr').count() === 5);

  const id = mock.jobId(0);
  await page.locator('#dead tr', { hasText: id }).getByRole('button', { name: 'Retry' }).click();
  await until('the right is asked for', async () => (await page.locator('#token-why').textContent()).includes('takes the scope operate, and the token has read') && await dialog.isVisible());
  await enter('may-operate-1234');
  await until('it is done', async () => mock.dead.gone.get(0) === 'ready');
  await until('the row is gone', async () => await page.locator('#dead tr', { hasText: id }).count() === 0);

  // An operator may not lose history.
  await page.locator('#dead tr', { hasText: mock.jobId(1) }).getByRole('button', { name: 'Discard' }).click();
  await page.locator('#confirm-check').check();
  await page.locator('#confirm-go').click();
  await until('admin is asked for', async () => (await page.locator('#token-why').textContent()).includes('scope admin') && await dialog.isVisible());
  assert.equal(mock.dead.gone.has(1), false);
  await enter('may-all-1234567');
  await until('it is discarded', async () => mock.dead.gone.get(1) === 'cancelled');

  const kept = await page.evaluate(() => ({ session: { ...sessionStorage }, local: { ...localStorage }, cookie: document.cookie, html: document.documentElement.outerHTML, url: location.href }));
  assert.deepEqual(kept.session, { 'argon-token': 'may-all-1234567' });
  assert.ok(!JSON.stringify({ ...kept, session: null }).includes('may-all'));
  assert.ok(mock.log.every(one => !one.query.includes('1234')));
  await page.locator('#token').click();
  assert.deepEqual(await page.evaluate(() => ({ ...sessionStorage })), {});
  await until('it is asked for again', async () => (await textOf(page, '#stream')) === 'Token needed');
  assert.deepEqual((await wrongs(page)).filter(one => !/status of 40[13]/.test(one)), []);
});

test('discarding says what is lost, and does nothing until it is confirmed', mockOnly, async t => {
  const mock = await started(t, { dead: 5 });
  const page = await open(t, mock.url);
  await live(page);
  const button = i => page.locator('#dead tr', { hasText: mock.jobId(i) }).getByRole('button', { name: 'Discard' });
  const dialog = page.locator('#confirm-dialog'), deletes = () => mock.log.filter(one => one.method === 'DELETE');
  await until('names of branches', async () => (await page.locator('#dead').textContent()).includes('analytics/'));
  await button(0).click();
  const said = await textOf(page, '#confirm-dialog'), name = mock.branches[0].name;
  for (const part of [`Lose 450 changes of ${name}?`, 'seq:81235 to seq:81684', '185 kB', 'cannot be brought back', 'A gap with these bounds is recorded', 'A new base is copied', 'live database is not touched', 'Retrying loses nothing']) assert.ok(said.includes(part), `${part} in ${said}`);
  assert.ok(await page.evaluate(() => document.activeElement.id === 'confirm-cancel'));
  await page.keyboard.press('Escape');
  await until('it closes', async () => dialog.isHidden());
  assert.ok(await button(0).evaluate(node => node === document.activeElement), 'the focus is back');
  await page.keyboard.press('Enter');
  await page.locator('#confirm-go').click({ force: true });
  assert.ok(await dialog.isVisible(), 'the box is not checked');
  await page.locator('#confirm-cancel').click();
  assert.equal(deletes().length, 0);

  await button(0).click();
  await page.locator('#confirm-check').check();
  await page.locator('#confirm-go').click();
  await until('it is discarded', async () => mock.dead.gone.has(0));
  assert.deepEqual(deletes().map(one => one.query), ['?confirm=discard']);
  await until('the notice', async () => (await textOf(page, '#notices')).includes('is a gap now'));

  await button(3).click(); // a notification
  assert.match(await textOf(page, '#confirm-dialog'), /No captured change is lost/);
  assert.ok(await page.locator('#confirm-check').isHidden());
  await page.locator('#confirm-go').click();
  await until('it is cancelled', async () => mock.dead.gone.has(3));
  assert.equal(deletes().at(-1).query, '');

  await page.locator('#retry-all').click();
  await until('the question', async () => (await textOf(page, '#confirm-dialog')).includes('Retry 3 dead jobs?'));
  assert.equal(mock.deadCount(), 3);
  await page.locator('#confirm-go').click();
  await until('all are retried', async () => mock.deadCount() === 0);
  await until('none is left', async () => page.locator('#dead .empty').isVisible());
  assert.deepEqual(await wrongs(page), []);
});

test('everything is reached and done by keyboard, and the focus stays where it is', mockOnly, async t => {
  const mock = await started(t, { dead: 8, branches: 120 });
  const page = await open(t, mock.url);
  await live(page);
  await until('the lists', async () => await page.locator('#branches tbody tr').count() > 40 && await page.locator('#dead tbody tr').count() === 8);
  const focused = () => page.evaluate(() => { const node = document.activeElement, style = getComputedStyle(node); return { text: node.getAttribute('aria-label') ?? node.textContent.trim().slice(0, 40), id: node.id, tag: node.tagName, outline: style.outlineStyle, width: parseFloat(style.outlineWidth), visible: node.getBoundingClientRect().width > 0 }; });
  await page.keyboard.press('Tab');
  assert.deepEqual((await focused()).text, 'Skip to content');
  assert.ok(await page.locator('.skip').evaluate(node => node.getBoundingClientRect().top >= 0));
  await page.keyboard.press('Enter');
  assert.equal((await focused()).id, 'main');
  await page.keyboard.press('Shift+Tab');
  const stops = [];
  for (let i = 0; i < 400; i += 1) {
    await page.keyboard.press('Tab');
    const at = await focused();
    if (at.tag === 'BODY') break;
    assert.ok(at.outline !== 'none' && at.width >= 2 && at.visible, JSON.stringify(at));
    stops.push(at.id || at.text);
  }
  const order = ['Pipeline as tables', 'Plots as a table', 'dead-kind', 'dead-error', 'retry-all', `Retry job ${mock.jobId(0)}`, `Discard job ${mock.jobId(0)}`, `Retry job ${mock.jobId(7)}`, 'branch-prefix', 'Next page of branches'];
  assert.deepEqual(stops.filter(stop => order.includes(stop)), order, stops.join(', '));

  const third = page.getByRole('button', { name: `Retry job ${mock.jobId(2)}` });
  await third.focus();
  mock.emit('job', { job: 'x', outcome: 'retried', by: 'y' });
  const reads = () => mock.log.filter(one => one.path === '/api/v1/jobs').length, had = reads();
  await until('the list is read again', async () => reads() > had);
  await pause(500);
  assert.ok(await third.evaluate(node => node === document.activeElement), 'a reading takes no focus away');
  await page.keyboard.press('Enter');
  await until('the row is gone', async () => await third.count() === 0);
  assert.equal((await focused()).text, `Retry job ${mock.jobId(3)}`);

  await page.locator('#theme').focus();
  await page.keyboard.press('Space');
  assert.equal((await focused()).text, 'Theme: light');
  await page.getByRole('button', { name: 'Next page of branches' }).focus();
  await page.keyboard.press('Enter');
  await until('the next page', async () => (await textOf(page, '#branches .foot')).includes('51 to 100'));
  assert.equal((await focused()).text, 'Next page of branches');
  assert.equal(await page.locator('#announcer').textContent(), '51 to 100');
});

test('names and errors of the server are text, whatever they say', mockOnly, async t => {
  const mock = await started(t, { hostile: true, branches: 60, dead: 30, captures: 8 });
  mock.health.captures = { status: 'degraded', reason: '<img src=x onerror="window.pwned=7">' };
  mock.captures[0].reason = '<script>window.pwned=8</script>';
  mock.paused = [{ all: false, kind: null, branch: '<img src=x onerror="window.pwned=9">', by: '<b>me</b>', at_ms: Date.now() }];
  const page = await open(t, mock.url);
  await live(page);
  await until('the lists', async () => await page.locator('#branches tbody tr').count() > 40 && await page.locator('#dead tbody tr').count() >= 20);
  mock.emit('decision', { ...mock.decisions.at(-1), changed: true, time: new Date().toISOString(), reason: '<img src=x onerror="window.pwned=10">' });
  await page.locator('#dead tbody').getByRole('button', { name: 'All 4 errors' }).first().click();
  await page.locator('#dead tbody').getByRole('button', { name: 'Discard' }).first().click();
  await pause(1500);
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  assert.equal(await page.locator('img, iframe, main script, main b:has-text("not bold"), dialog svg').count(), 0);
  const all = await page.evaluate(() => document.body.textContent);
  for (const part of ['<img src=x onerror="window.pwned=1">/main', '<script>window.pwned=2</script>/main', '<b>not bold</b>', '__proto__/constructor']) assert.ok(all.includes(part), part);
  assert.doesNotMatch(all, /[\u202a-\u202e\u2066-\u2069]/, 'no direction is turned around');
  assert.deepEqual(await wrongs(page), []);
});

test('branches: pages, a search by prefix, children below their parents', mockOnly, async t => {
  const mock = await started(t, { branches: 1000, dead: 0 });
  const page = await open(t, mock.url);
  await live(page);
  const names = () => page.locator('#branches tbody .tree > div > bdi').allInnerTexts();
  await until('the first page', async () => (await names()).length === 50);
  const first = await names();
  assert.deepEqual([...first].sort(), mock.branches.slice(0, 50).map(one => one.name).sort());
  await page.getByRole('button', { name: 'Next page of branches' }).click();
  await until('the second page', async () => (await names()).includes(mock.branches[50].name));
  assert.ok((await names()).every(name => !first.includes(name)));
  assert.match(await textOf(page, '#branches'), /from analytics\/main@seq:\d+ Show parent/);
  await page.getByRole('button', { name: /^Show parent of/ }).first().click();
  await until('the parent', async () => JSON.stringify(await names()) === '["analytics/main"]' || names());
  await page.locator('#branch-prefix').fill('shop/');
  const shop = mock.branches.filter(one => one.name.startsWith('shop/')).map(one => one.name);
  await until('the project', async () => (await names()).length === 50 && (await names()).every(name => shop.includes(name)));
  assert.ok(mock.log.some(one => one.path === '/api/v1/branches' && one.query.includes('after=shop.%F4%8F%BF%BF')), 'the list begins at the prefix');
  await page.locator('#branch-prefix').fill('shop/try');
  await until('three of them', async () => (await names()).length === 2);
  assert.match((await page.locator('#branches tbody tr').nth(1).innerText()), /from shop\/try-index@seq/);
  assert.match((await page.locator('#branches tbody tr').nth(1).locator('th').textContent()), /level 2/);
  await page.locator('#branch-prefix').fill('no-such');
  await until('none', async () => (await textOf(page, '#branches')).includes('No branch has a name that begins so.'));
});

test('dead jobs: pages, filters, errors in full', mockOnly, async t => {
  const mock = await started(t, { dead: 50 });
  const page = await open(t, mock.url);
  await live(page);
  const foot = () => textOf(page, '#dead .foot'), rows = page.locator('#dead tbody tr');
  await until('the first page', async () => (await foot()).includes('1 to 20 of 50') || foot());
  await page.getByRole('button', { name: 'Next page of dead jobs' }).click();
  await until('the second page', async () => (await foot()).includes('21 to 40 of 50'));
  await page.getByRole('button', { name: 'Next page of dead jobs' }).click();
  await until('the last page', async () => (await foot()).includes('41 to 50 of 50'));
  assert.equal(await page.getByRole('button', { name: 'Next page of dead jobs' }).getAttribute('aria-disabled'), 'true');
  await page.selectOption('#dead-kind', 'noop');
  await until('one kind', async () => await rows.count() === 10);
  await page.selectOption('#dead-kind', '');
  await page.locator('#dead-error').fill('AccessDenied');
  await until('one error', async () => await rows.count() === 10 && (await textOf(page, '#dead')).includes('AccessDenied'));
  await page.getByRole('button', { name: `All 4 errors of job ${mock.jobId(0)}` }).click();
  await until('all its errors', async () => await page.locator('#dead .errors li').count() === 4);
  mock.emit('job', {});
  await pause(6000);
  assert.equal(await page.locator('#dead .errors li').count(), 4, 'they stay open while the list is read again');
});

test('traffic and document are bounded with 10,000 branches and 100,000 dead jobs', mockOnly, async t => {
  const mock = await started(t, { branches: 10_000, dead: 100_000, captures: 300, engines: 12 });
  const page = await open(t, mock.url);
  await live(page);
  await until('the lists', async () => await page.locator('#branches tbody tr').count() >= 50 && await page.locator('#dead tbody tr').count() >= 20);
  assert.match(await textOf(page, '#tiles'), /Dead jobs\s+100,000/);
  const spent = since => {
    const some = mock.log.filter(one => one.at >= since), count = {};
    for (const one of some) count[one.path.replace(/branches\/.*/, 'branches/ID')] = (count[one.path.replace(/branches\/.*/, 'branches/ID')] ?? 0) + 1;
    return { requests: some.length, bytes: some.reduce((sum, one) => sum + one.bytes, 0), count };
  };
  const stream = () => [...mock.streams].reduce((sum, one) => sum + one.entry.bytes, 0);
  for (const place of ['#dead-title', '#branches .foot', '#workers']) {
    await page.locator(place).scrollIntoViewIfNeeded();
    await pause(1500);
    const since = Date.now(), had = stream();
    for (let i = 0; i < 100; i += 1) { // everybody talks all the time
      mock.emit('job', { job: 'x', outcome: 'retried', by: 'y' });
      mock.emit('branch', { branch: 'x', id: 'y', what: 'created' });
      mock.emit('capture', {});
      await pause(100);
    }
    const used = spent(since);
    t.diagnostic(`${place}: ${JSON.stringify(used)}, stream ${Math.round((stream() - had) / 10)} bytes a second with these events`);
    assert.ok(used.requests <= 12, JSON.stringify(used));
    for (const [path, n] of Object.entries(used.count)) assert.ok(n <= 3, `${path}: ${n} in 10 s`);
    assert.ok(used.bytes < 400_000, `${used.bytes} bytes in 10 s`);
  }
  assert.equal(mock.streams.size, 1);
  for (const one of mock.log) {
    const limit = new URLSearchParams(one.query).get('limit');
    if (limit) assert.ok(Number(limit) <= (one.path.endsWith('scaler') ? 256 : 50), `${one.path}${one.query}`);
  }
  const nodes = await page.evaluate(() => document.querySelectorAll('*').length);
  assert.ok(nodes < 6000, `${nodes} elements`);

  // Nobody looks: nothing is asked.
  const look = hidden => page.evaluate(value => {
    for (const [name, of] of [['hidden', value], ['visibilityState', value ? 'hidden' : 'visible']]) Object.defineProperty(document, name, { value: of, configurable: true });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
  await look(true);
  await until('the stream ends', async () => mock.streams.size === 0);
  await pause(1500);
  const quiet = mock.log.length;
  await pause(8000);
  assert.equal(mock.log.length, quiet);
  assert.equal(await textOf(page, '#stream'), 'Paused');
  await look(false);
  await live(page);
  assert.deepEqual(await wrongs(page), []);
});

test('memory is bounded however much happens', mockOnly, async t => {
  const mock = await started(t, { branches: 200, dead: 200 });
  const page = await open(t, mock.url);
  await live(page);
  for (const details of await page.locator('details > summary').all()) await details.click();
  const session = await page.context().newCDPSession(page);
  await session.send('Performance.enable');
  const measure = async () => {
    for (let i = 0; i < 3; i += 1) { await session.send('HeapProfiler.collectGarbage'); await pause(150); }
    const { metrics } = await session.send('Performance.getMetrics'), of = name => metrics.find(one => one.name === name).value;
    return { heap: (await session.send('Runtime.getHeapUsage')).usedSize, nodes: of('Nodes'), listeners: of('JSEventListeners') };
  };
  const events = async count => {
    for (let i = 0; i < count; i += 1) {
      mock.step(Date.now());
      mock.emit('status', mock.status());
      mock.emit('decision', { ...mock.decisions.at(-1), changed: true, time: new Date(Date.now() + i).toISOString() });
      if (i % 50 === 0) { mock.emit('job', { job: 'x' }); mock.emit('branch', {}); mock.emit('pauses', { pauses: [] }); mock.health.store = i % 100 ? null : { status: 'degraded', reason: `reason ${i}` }; }
      if (i % 10 === 0) await pause(4);
    }
    mock.health.store = null;
    await pause(1500);
  };
  await events(1500);
  for (let i = 0; i < 3; i += 1) await page.getByRole('button', { name: 'Next page of branches' }).click().then(() => pause(600));
  const before = await measure();
  await events(6000);
  const after = await measure();
  t.diagnostic(`after 1,500 events ${JSON.stringify(before)}, after 7,500 ${JSON.stringify(after)}`);
  assert.ok(after.heap < before.heap + 1.5e6, `heap from ${before.heap} to ${after.heap}`);
  assert.ok(after.heap < 20e6, `heap of ${after.heap}`);
  assert.ok(after.nodes < before.nodes * 1.3 + 500 && after.listeners < before.listeners + 100, JSON.stringify([before, after]));
  assert.deepEqual(await wrongs(page), []);
});

test('a broken stream comes back, more slowly the longer it stays away', mockOnly, async t => {
  const mock = await started(t);
  const page = await open(t, mock.url);
  await live(page);
  mock.dropStreams();
  await live(page);
  const tries = () => mock.log.filter(one => one.path === '/api/v1/events').length, had = tries();
  mock.refuse = url => { if (url.pathname.endsWith('/events')) throw problem(503, 'busy', 'as many streams of events are open as this engine serves: close one, or poll'); };
  mock.dropStreams();
  await until('it is said', async () => (await textOf(page, '#stream')) === 'Waiting for a place');
  await pause(10_000);
  const made = tries() - had;
  t.diagnostic(`${made} tries in 10 s`);
  assert.ok(made >= 3 && made <= 7, `${made} tries in 10 s`);
  await until('health without a stream', async () => mock.log.filter(one => one.path === '/health').length >= 2);
  mock.refuse = null;
  await until('it is back', async () => (await textOf(page, '#stream')) === 'Live', 30);
  // A stream without news is not taken for life.
  mock.frozen = true;
  await until('no news', async () => (await textOf(page, '#stream')) === 'No news', 12);
  mock.frozen = false;
  await live(page);
});

test('a list that cannot be read says so and stays as it was', mockOnly, async t => {
  const mock = await started(t);
  const page = await open(t, mock.url);
  await live(page);
  await until('captures', async () => await page.locator('#captures tbody tr').count() === 4);
  mock.refuse = url => { if (url.pathname.endsWith('/captures')) throw problem(503, 'transient', 'MongoDB does not answer: <i>connection refused</i>'); };
  await until('the reason', async () => (await textOf(page, '#captures .failed')).includes('Not up to date: MongoDB does not answer: <i>connection refused</i>'), 20).catch(error => { throw error; });
  assert.equal(await page.locator('#captures tbody tr').count(), 4);
  mock.refuse = null;
  await until('it is read again', async () => page.locator('#captures .failed').isHidden(), 30);
});

test('captures that fall behind their oplog stand out', mockOnly, async t => {
  const mock = await started(t, { dead: 0 });
  mock.step = () => {};
  Object.assign(mock.captures[0], { delay_seconds: 100, oplog_window_seconds: 250 });
  Object.assign(mock.captures[1], { delay_seconds: 100, oplog_window_seconds: 50 });
  Object.assign(mock.captures[2], { state: 'failed', reason: 'the oplog has rolled past the checkpoint', delay_seconds: null, oplog_window_seconds: null });
  const page = await open(t, mock.url);
  await live(page);
  await until('the captures', async () => await page.locator('#captures tbody tr:not(.note)').count() === 4);
  const text = await textOf(page, '#captures');
  assert.match(text, /4 min, under 3 × delay/);
  assert.match(text, /50 s, shorter than the delay/);
  assert.match(text, /failed/);
  await until('what needs attention', async () => await page.locator('#attention li').count() === 3);
  assert.match(await textOf(page, '#tiles .tile:nth-child(2)'), /100 s/);
});
