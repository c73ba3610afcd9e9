// A stand-in for the engine's API, for the tests of the status page: the same paths, fields, limits and refusals, figures made up.
// As a program: node mock.mjs [--port N] [--branches N] [--dead N] [--token ADMIN] [--hostile] serves the page and prints its address.

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { fileURLToPath } from 'node:url';

export const PAGE = fileURLToPath(new URL('../../src/http/page/index.html', import.meta.url));

const hash = text => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

/** The headers that the engine sends with the page: its one script and its one style, and nothing else. */
export const headersOf = html => {
  const inside = tag => {
    const found = [...html.matchAll(new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`, 'g'))];
    if (found.length !== 1) throw new Error(`${found.length} elements <${tag}>, expected one`);
    return found[0][1];
  };
  return {
    'Content-Type': 'text/html; charset=utf-8',
    'Content-Security-Policy': `default-src 'none'; script-src ${hash(inside('script'))}; style-src ${hash(inside('style'))}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-cache',
  };
};

const SCOPES = { public: 0, read: 1, operate: 2, admin: 3 };
const KINDS = ['sync', 'compression', 'notification', 'cleanup', 'snapshot', 'drill', 'noop'];
const STATES = ['scheduled', 'ready', 'running', 'done', 'dead', 'cancelled'];
const ENGINE = 'db-1.example-4711-9f3a1c';
const OTHER = 'db-2.example-812-02be77';
const HOSTILE = [
  '<img src=x onerror="window.pwned=1">/main', '<script>window.pwned=2</script>/main', '"><svg onload=window.pwned=3>/x', "javascript:window.pwned=4/'--", '\u202egnp.exe/\u2066main', '{{constructor.constructor("window.pwned=5")()}}/main',
  `long/${'n'.repeat(200)}`, '__proto__/constructor',
];

class Problem extends Error {
  constructor(status, code, message, headers = {}) {
    super(message);
    Object.assign(this, { status, code, headers });
  }
}

class Unwell { constructor(health) { this.health = health; } }

const iso = ms => new Date(ms).toISOString().replace(/\.\d+Z$/, 'Z');

export class Mock {
  /** `tokens`: `{ token: scope }`, or null for an open listener. */
  constructor({ branches = 40, dead = 12, captures = 4, engines = 2, tokens = null, hostile = false, pageFile = PAGE } = {}) {
    Object.assign(this, { tokens, hostile, pageFile, log: [], streams: new Set(), clock: 0, health: {}, paused: [], frozen: false, refuse: null });
    this.started = Date.now() - 3 * 3600e3 - 754e3;
    this.engines = engines;
    this.makeBranches(branches);
    this.makeCaptures(captures);
    this.dead = { count: dead, gone: new Map() };
    this.stages = Object.fromEntries(['ingest', 'assemble', 'checkpoint', 'claim', 'encode', 'upload', 'commit'].map(stage => [stage, { stage, units: 0, changes: 0, bytes: 0, busy_seconds: 0 }]));
    this.links = Object.fromEntries([['replies', 2], ['batches', 2], ['claimed', 20], ['cpu', 8], ['commits', 64], ['marks', 64], ['finishes', 1024]].map(([link, capacity]) => [link, { link, depth: 0, capacity, blocked_seconds: 0 }]));
    this.load = { rate: 12e3, backlog: 4, workers: 5, target: 5, busy: 3, completed: 184_210, used: 38e6, fixed: null };
    this.decisions = [];
    for (let i = 0; i < 240; i += 1) this.step(Date.now() - (240 - i) * 1000);
  }

  async listen(port = 0) {
    this.server = createServer((request, response) => this.serve(request, response));
    await new Promise(done => this.server.listen(port, '127.0.0.1', done));
    this.url = `http://127.0.0.1:${this.server.address().port}/`;
    this.timer = setInterval(() => {
      this.step(Date.now());
      if (!this.frozen) this.emit('status', this.status());
    }, 1000);
    return this;
  }

  async close() {
    clearInterval(this.timer);
    this.dropStreams();
    this.server.closeAllConnections();
    await new Promise(done => this.server.close(done));
  }

  dropStreams() { for (const stream of this.streams) stream.destroy(); this.streams.clear(); }

  emit(name, data) {
    const text = `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`;
    for (const stream of this.streams) { stream.write(text); stream.entry.bytes += text.length; }
  }

  // ---- figures ----------------------------------------------------------------------------------------------------------------

  makeBranches(count) {
    this.branches = [];
    const add = (name, parent = null) => {
      const i = this.branches.length;
      this.branches.push({ id: `b${String(i).padStart(6, '0')}`, name, parent });
    };
    const projects = ['shop', 'crm', 'billing', 'analytics', 'inventory', 'support', 'telemetry', 'auth'];
    if (this.hostile) for (const name of HOSTILE) add(name);
    if (this.hostile) this.branches[1].parent = `${HOSTILE[0]}@seq:17`;
    for (let i = 0; this.branches.length < count; i += 1) {
      const project = projects[i % projects.length], n = Math.floor(i / projects.length);
      const tail = ['main', 'staging', 'before-migration', 'release-42', 'try-index', 'try-index-2'][n] ?? `dev-${String(n).padStart(5, '0')}`;
      const parents = [null, 'main', 'main', 'main', 'staging', 'try-index'];
      const parent = n < parents.length ? parents[n] : 'main';
      add(`${project}/${tail}`, parent && `${project}/${parent}@seq:${81_000 + i}`);
    }
    this.branches.sort((a, b) => (Buffer.compare(Buffer.from(a.name), Buffer.from(b.name))));
    this.byId = new Map(this.branches.flatMap(one => [[one.id, one], [one.name, one]]));
  }

  makeCaptures(count) {
    const roots = this.branches.filter(one => one.parent === null && !one.name.includes('long/')).slice(0, count);
    this.captures = roots.map((branch, i) => ({
      id: `c${i}`, branch: branch.name, branch_id: branch.id,
      source: { uri: i % 2 ? 'env:CRM_URI' : null, db: branch.name.split('/')[0], identity: 'rs0', include: [], exclude: [] },
      state: 'running', reason: null, queued_seq: 81_234 + i, engine: i % 3 === 2 && this.engines > 1 ? OTHER : ENGINE, checkpoint_ms: Date.now(), delay_seconds: 0.2, oplog_window_seconds: 86_400 * (1 + i % 3),
    }));
  }

  /** A second of the engine's life. */
  step(time) {
    const t = this.clock += 1, l = this.load, s = this.stages, k = this.links;
    const wave = 12e3 + 5e3 * Math.sin(t / 23) + 1500 * Math.sin(t / 3.1), burst = t % 180 > 120 && t % 180 < 150 ? 26e3 : 0;
    l.rate = l.fixed ?? Math.max(0, wave + burst);
    const most = l.workers * 3600, jobs = l.rate / 450, done = Math.min(most / 450, jobs + l.backlog);
    l.backlog = Math.max(0, l.backlog + jobs - done);
    l.busy = Math.min(l.workers, Math.round(done * 450 / 3600));
    l.completed += Math.round(done);
    const raw = 410;
    const add = (stage, units, changes, bytes, busy) => { const x = s[stage]; x.units += Math.round(units); x.changes += Math.round(changes); x.bytes += Math.round(bytes); x.busy_seconds += busy; };
    add('ingest', l.rate / 100, l.rate, l.rate * raw, Math.min(1, l.rate / 90e3));
    add('assemble', jobs, l.rate, l.rate * raw, Math.min(1, l.rate / 300e3));
    add('checkpoint', jobs, l.rate, l.rate * raw * 0.14, Math.min(0.98, jobs * 0.009));
    const out = done * 450;
    add('claim', done / 4, out, out * raw * 0.14, Math.min(1, done * 0.002));
    add('encode', done, out, out * raw, out / 60e3);
    add('upload', done, out, out * raw * 0.09, done * 0.03);
    add('commit', done, out, out * raw * 0.09, Math.min(1, done * 0.008));
    const tight = l.backlog > 20;
    Object.assign(k.replies, { depth: t % 3 ? 0 : 1 });
    Object.assign(k.batches, { depth: burst ? 2 : t % 2 });
    k.batches.blocked_seconds += burst ? 0.12 : 0;
    Object.assign(k.claimed, { depth: tight ? 17 : Math.min(9, Math.round(l.backlog)) });
    k.claimed.blocked_seconds += tight ? 0.31 : 0.002;
    Object.assign(k.cpu, { depth: Math.min(8, Math.round(out / 9000)) });
    k.cpu.blocked_seconds += out > 30e3 ? 0.02 : 0;
    Object.assign(k.commits, { depth: Math.round(done / 12) });
    l.used = 22e6 + l.busy * 7e6 + Math.min(60e6, l.backlog * 4e5);
    const wanted = Math.min(20, Math.max(5, Math.ceil((l.rate + l.backlog * 450 / 15) / 3000)));
    if (wanted > l.target ? t % 2 === 0 : wanted < l.target - 1 && t % 20 === 0) {
      const up = wanted > l.target, from = l.target;
      l.target = up ? wanted : Math.max(wanted, l.target - 3);
      this.decide(time, from, up ? (l.backlog > 30 ? 'backlog' : 'load') : 'idle', up ? 'up' : 'down', jobs, done);
    } else this.decide(time, l.target, 'steady', 'hold', jobs, done);
    l.workers += Math.sign(l.target - l.workers) * Math.min(3, Math.abs(l.target - l.workers));
    this.captures.forEach((c, i) => {
      if (c.state !== 'running') return;
      c.queued_seq += Math.round(l.rate / this.captures.length);
      c.delay_seconds = Math.round((0.12 + 0.03 * i + l.backlog / 60 + 0.05 * Math.abs(Math.sin(t / 5))) * 1000) / 1000;
      c.checkpoint_ms = time;
    });
  }

  decide(time, actual, reason, direction, arrivals, done) {
    const decision = {
      time: iso(time), at_ms: time - this.started, target: this.load.target, actual, changed: direction !== 'hold', direction, reason, limited_by: direction === 'hold' ? null : this.load.target === 20 ? 'max' : null,
      inputs: { arrival_rate: arrivals, forecast_rate: arrivals, throughput: done, service_time_ms: 118, utilisation: this.load.busy / Math.max(1, this.load.workers), backlog: Math.round(this.load.backlog), drain_target_ms: 15_000, error_share: 0, wanted: this.load.target, congestion_cap: null }, dry_run: false,
    };
    this.decisions.push(decision);
    if (this.decisions.length > 256) this.decisions.shift();
    if (decision.changed && this.server) this.emit('decision', decision);
  }

  deadCount() { return this.dead.count - this.dead.gone.size; }

  queue() {
    const l = this.load, failed = this.deadCount(), running = l.busy, ready = Math.round(l.backlog), scheduled = 7, cancelled = 31 + [...this.dead.gone.values()].filter(s => s === 'cancelled').length;
    return {
      total_jobs: scheduled + ready + running + l.completed + failed + cancelled, pending_jobs: scheduled + ready, running_jobs: running, completed_jobs: l.completed, failed_jobs: failed,
      jobs_by_type: { cleanup: 118, compression: 2310, noop: 31, notification: 46, snapshot: 960, sync: l.completed + failed + ready + running + scheduled - 3400 },
      avg_wait_time: 0.034, scheduled_jobs: scheduled, ready_jobs: ready, cancelled_jobs: cancelled, oldest_ready_seconds: Math.round((ready / 45) * 1000) / 1000, as_of: null, at_least: false,
    };
  }

  checks() {
    const names = ['mongodb', 'store', 'captures', 'workers', 'runtime'];
    return Object.fromEntries(names.map(name => [name, this.health[name] ?? { status: 'ok', reason: null }]));
  }

  overall() {
    const levels = ['ok', 'degraded', 'unhealthy'];
    return levels[Math.max(...Object.values(this.checks()).map(check => levels.indexOf(check.status)))];
  }

  uptime() { return Math.floor((Date.now() - this.started) / 1000); }

  pool() { return { target: this.load.target, current: this.load.workers, min: 1, max: 20, pin: null }; }

  status() {
    return {
      engine: ENGINE, health: this.overall(), pool: this.pool(), busy_workers: this.load.busy, attempts: { succeeded: this.load.completed, failed: 12 }, captures: this.captures.length, queue: this.queue(),
      pipeline: { stages: Object.values(this.stages), links: Object.values(this.links), memory: { used: Math.round(this.load.used), limit: 256 << 20 } },
      uptime_seconds: this.uptime(), version: '0.5.0', health_checks: this.checks(),
    };
  }

  workers() {
    const row = (engine, kind, i, busy) => ({
      worker_id: `${kind}-worker-${i}`, jobs_processed: 9000 + 31 * i, jobs_succeeded: 9000 + 30 * i, jobs_failed: i, avg_process_time: 11.2 + i / 10, last_active_at: iso(Date.now()), is_active: true, busy, engine, kind: kind === 'sync' ? null : kind, p50_process_time: 8.11, p99_process_time: 41.5,
      job: busy ? this.jobId(i + 5_000_000) : null,
    });
    const engines = [ENGINE, OTHER, ...Array.from({ length: Math.max(0, this.engines - 2) }, (_, i) => `db-${i + 3}.example-9-aa`)].slice(0, this.engines);
    const workers = [], slots = [];
    for (const [n, engine] of engines.entries()) {
      const size = n === 0 ? this.load.workers : 5;
      for (let i = 0; i < size; i += 1) workers.push(row(engine, 'sync', i, n === 0 ? i < this.load.busy : i < 2));
      for (const [kind, of] of [['compression', 2], ['notification', 1], ['cleanup', 1]]) for (let i = 0; i < of; i += 1) slots.push(row(engine, kind, i, false));
    }
    const sum = key => workers.reduce((n, w) => n + w[key], 0);
    return {
      workers, slots, partial: false,
      summary: { total_workers: workers.length, active_workers: workers.length, total_processed: sum('jobs_processed'), total_succeeded: sum('jobs_succeeded'), total_failed: sum('jobs_failed'), success_rate: 99.87, busy_workers: workers.filter(w => w.busy).length },
      engines: engines.map((engine, n) => ({ engine, host: engine.split('-').slice(0, 2).join('-'), pid: 4711 + n, version: '0.5.0', started_at: iso(this.started), this: n === 0, alive: true, draining: false, pool: n === 0 ? this.pool() : { target: 5, current: 5, min: 1, max: 20, pin: null }, captures: this.captures.filter(c => c.engine === engine).length })),
    };
  }

  branch(one) {
    const i = Number(one.id.slice(1)), capture = this.captures.find(c => c.branch_id === one.id);
    const head = capture ? capture.queued_seq - 40 : 81_000 + i, isStalled = i % 37 === 9, isGap = i % 53 === 21;
    const view = {
      id: one.id, name: one.name, status: isStalled ? 'stalled' : isGap ? 'gap' : i % 29 === 25 ? 'archived' : 'active', parent: one.parent, fidelity: 'exact',
      head: { seq: head, cluster_time: { t: 1795467772, i: 11 }, time: iso(Date.now() - (capture ? 400 : 9e6)) }, captured_until: { t: 1795467790, i: 1 }, restorable: { from: `seq:${isGap ? 412 : 1}`, to: `seq:${head}` }, created: iso(this.started - 9e8),
      totals: { changes: head, raw_bytes: head * 631, stored_bytes: head * 41, segments: Math.ceil(head / 840) },
    };
    if (isStalled) view.reason = `job ${this.jobId(0)} is dead and holds the head at seq:${head + 1}: retry it, or discard it and lose its changes`;
    if (isGap) { view.earlier = [{ from: 'seq:1', to: 'seq:400' }]; view.reason = 'points before seq:412 are behind the gap at seq:401 to seq:411: restoring one needs --across-gap'; }
    if (i % 11 === 3) view.proven = { seq: head - 900, time: { t: 1795467000, i: 1 }, at_ms: Date.now() - 7.2e6, with: 'fold', documents: 190_000 };
    if (/dev-|try/.test(one.name)) view.expires = iso(Date.now() + 86_400e3);
    return view;
  }

  jobId(i) { return `0193a${(0x40000000 + i).toString(16).slice(-3)}-${(i % 65536).toString(16).padStart(4, '0')}-7000-8000-${(0x100000000000 + i).toString(16)}`; }

  job(i, all = false) {
    const kind = this.hostile && i < 8 ? 'sync' : ['sync', 'sync', 'snapshot', 'notification', 'noop'][i % 5];
    const branch = kind === 'sync' || kind === 'snapshot' ? this.branches[i % Math.min(this.branches.length, 15)] : null;
    const first = 81_235 + 450 * i;
    const texts = ['s3://argon-prod/history: PutObject: AccessDenied: the key may not write to this prefix', 'the payload part 1 of 2 is missing', 'webhook https://hooks.example/argon answered 410 Gone', 'decoding what was encoded gives other bytes: block 3, offset 88,120', '(noop) failed as asked'];
    const error = n => ({ attempt: n, at_ms: Date.now() - 3.6e6 - i * 1000 + n * 30e3, engine: ENGINE, error: this.hostile && i === 0 ? `<b>not bold</b> <img src=x onerror="window.pwned=6"> \u202edesrever ${'x'.repeat(3000)}` : texts[i % texts.length] });
    const gone = this.dead.gone.get(i);
    return {
      id: this.jobId(i), kind, state: gone ?? 'dead', priority: 'normal', branch: branch?.id ?? null, created_ms: Date.now() - 4e6 - i, run_at_ms: Date.now() - 3.7e6, finished_ms: Date.now() - 3.6e6 + i, attempt: gone === 'ready' ? 0 : 4, crashes: i % 9 === 5 ? 3 : 0,
      error_count: 4, errors: all ? [1, 2, 3, 4].map(error) : [error(4)], engine: null, unique_key: null, retries: 3, cancel_requested: false, parked: false, sync: kind === 'sync' ? { first_seq: first, last_seq: first + 449, raw_bytes: 184_500, payload_bytes: 26_110 } : null, params: null,
    };
  }

  indexOfJob(id) {
    for (let i = 0; i < this.dead.count; i += 1) if (this.jobId(i) === id) return i;
    throw new Problem(404, 'not_found', `there is no job ${JSON.stringify(id)}: finished ones are removed after JOB_CLEANUP_INTERVAL`);
  }

  // ---- requests -----------------------------------------------------------------------------------------------------------------

  async serve(request, response) {
    const url = new URL(request.url, this.url), entry = { method: request.method, path: url.pathname, query: url.search, at: Date.now(), bytes: 0, status: 0, body: '' };
    this.log.push(entry);
    for await (const chunk of request) entry.body += chunk;
    const send = (status, headers, body) => {
      entry.status = status;
      entry.bytes = Buffer.byteLength(body) + 200;
      response.writeHead(status, headers);
      response.end(body);
    };
    try {
      if (url.pathname === '/') {
        const html = readFileSync(this.pageFile, 'utf8');
        send(200, headersOf(html), html);
        return;
      }
      if (this.refuse) await this.refuse(url, request);
      const answer = this.route(request, url, entry);
      if (answer === 'stream') {
        entry.status = 200;
        response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' });
        response.write(': argon\n\n');
        response.entry = entry;
        this.streams.add(response);
        response.on('close', () => this.streams.delete(response));
        return;
      }
      const [code, body] = answer instanceof Unwell ? [503, answer.health] : [200, answer];
      send(code, { 'Content-Type': 'application/json', 'Cache-Control': 'no-store' }, JSON.stringify(body));
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      const extra = error.status === 401 ? { 'WWW-Authenticate': 'Bearer realm="argon"' } : error.status === 503 || error.status === 429 ? { 'Retry-After': '1' } : {};
      send(error.status, { 'Content-Type': 'application/json', ...extra, ...error.headers }, JSON.stringify({ error: { code: error.code, message: error.message } }));
    }
  }

  allow(request, needed) {
    if (!this.tokens) return;
    const header = request.headers.authorization;
    const scope = header?.startsWith('Bearer ') ? this.tokens[header.slice(7)] ?? 'public' : 'public';
    if (SCOPES[scope] >= SCOPES[needed]) return;
    if (scope === 'public') throw new Problem(401, 'unauthorized', `this takes a token of scope ${needed}, and none was sent, or one that is not ours: send Authorization: Bearer TOKEN`);
    throw new Problem(403, 'forbidden', `this takes the scope ${needed}, and the token has ${scope}`);
  }

  /** The query, of these parameters only: the engine refuses others. */
  query(url, known) {
    for (const key of url.searchParams.keys()) if (!known.includes(key)) throw new Problem(400, 'bad_request', `query: unknown field \`${key}\``);
    return Object.fromEntries(url.searchParams);
  }

  limit(query, usual, most) {
    const limit = query.limit === undefined ? usual : Number(query.limit);
    if (!Number.isInteger(limit) || limit < 1 || limit > most) throw new Problem(400, 'bad_request', `limit: ${query.limit} is not in 1 to ${most}`);
    return limit;
  }

  page(url, all, view) {
    const query = this.query(url, ['after', 'limit']), limit = this.limit(query, 50, 200);
    const after = query.after === undefined ? null : Buffer.from(query.after);
    const rest = after ? all.filter(one => Buffer.compare(Buffer.from(one.name ?? one.branch), after) > 0) : all;
    const page = rest.slice(0, limit);
    return [page.map(view), rest.length > limit ? page.at(-1).name ?? page.at(-1).branch : null];
  }

  route(request, url, entry) {
    const { method } = request, path = url.pathname, job = path.match(/^\/api\/v1\/jobs\/([^/]+)(\/retry)?$/);
    const get = method === 'GET';
    if (get && path === '/health') {
      const status = this.overall();
      const health = { status, version: '0.5.0', uptime_seconds: this.uptime(), checks: this.checks() };
      return status === 'unhealthy' ? new Unwell(health) : health;
    }
    if (!path.startsWith('/api/v1/')) throw new Problem(404, 'not_found', `there is no ${path}; see /api/v1/openapi.json`);
    if (get && path === '/api/v1/events') { this.allow(request, 'read'); return 'stream'; }
    if (get && path === '/api/v1/workers/stats') { this.allow(request, 'read'); return this.workers(); }
    if (get && path === '/api/v1/workers/queue') { this.allow(request, 'read'); return this.queue(); }
    if (get && path === '/api/v1/queue') { this.allow(request, 'read'); return { pauses: this.paused }; }
    if (get && path === '/api/v1/scaler') {
      this.allow(request, 'read');
      const query = this.query(url, ['limit', 'changed']), limit = this.limit(query, 60, 256);
      return { engine: ENGINE, pool: this.pool(), decisions: [...this.decisions].reverse().filter(d => d.changed || query.changed !== 'true').slice(0, limit) };
    }
    if (get && path === '/api/v1/captures') {
      this.allow(request, 'read');
      const [captures, next] = this.page(url, this.captures, c => c);
      return { captures, next };
    }
    if (get && path === '/api/v1/branches') {
      this.allow(request, 'read');
      const [branches, next] = this.page(url, this.branches, one => this.branch(one));
      return { branches, next };
    }
    if (get && path.startsWith('/api/v1/branches/')) {
      this.allow(request, 'read');
      const found = this.byId.get(decodeURIComponent(path.slice(17)));
      if (!found) throw new Problem(404, 'missing', 'there is no such branch');
      return this.branch(found);
    }
    if (get && path === '/api/v1/jobs') {
      this.allow(request, 'read');
      const query = this.query(url, ['state', 'kind', 'branch', 'engine', 'error', 'after', 'limit']), limit = this.limit(query, 100, 1000);
      if (query.state && !STATES.includes(query.state) || query.kind && !KINDS.includes(query.kind)) throw new Problem(400, 'bad_request', 'query: unknown variant');
      const jobs = [];
      let from = query.after ? this.indexOfJob(query.after) + 1 : 0;
      for (; jobs.length < limit && from < this.dead.count; from += 1) {
        if (this.dead.gone.has(from)) continue;
        const one = this.job(from);
        if ((!query.kind || one.kind === query.kind) && (!query.error || one.errors[0].error.includes(query.error))) jobs.push(one);
      }
      return { jobs, next: jobs.length === limit ? jobs.at(-1).id : null };
    }
    if (method === 'POST' && path === '/api/v1/jobs/retry') {
      this.allow(request, 'operate');
      if (request.headers['content-type'] !== 'application/json') throw new Problem(415, 'unsupported_media_type', 'send the body with Content-Type: application/json');
      const asked = JSON.parse(entry.body), most = asked.limit ?? 10_000, matched = Math.min(this.deadCount(), most);
      let changed = 0;
      for (let i = 0; !asked.dry_run && changed < matched; i += 1) if (!this.dead.gone.has(i)) { this.dead.gone.set(i, 'ready'); changed += 1; }
      return { dry_run: Boolean(asked.dry_run), matched, changed, requested: 0, hindered: 0, sample: [], discard: [], more: matched === most };
    }
    if (job && get) { this.allow(request, 'read'); return this.job(this.indexOfJob(decodeURIComponent(job[1])), true); }
    if (job && method === 'POST' && job[2]) {
      this.allow(request, 'operate');
      return this.change(decodeURIComponent(job[1]), 'ready', 'retried');
    }
    if (job && method === 'DELETE') {
      this.allow(request, 'operate');
      const i = this.indexOfJob(decodeURIComponent(job[1])), view = this.job(i);
      if (view.kind !== 'sync') return this.change(view.id, 'cancelled', 'cancelled');
      this.allow(request, 'admin');
      if (this.query(url, ['confirm']).confirm !== 'discard') throw new Problem(409, 'confirmation_needed', `discarding job ${view.id} loses its changes: repeat with ?confirm=discard`);
      return this.change(view.id, 'cancelled', 'discarded');
    }
    throw new Problem(404, 'not_found', `there is no ${path}; see /api/v1/openapi.json`);
  }

  change(id, state, outcome) {
    const i = this.indexOfJob(id);
    if (this.dead.gone.has(i)) throw new Problem(409, 'conflict', `job ${id} is ${this.dead.gone.get(i)}: only dead and scheduled jobs can be retried`);
    this.dead.gone.set(i, state);
    this.emit('job', { job: id, outcome, by: 'anonymous' });
    return { outcome, job: this.job(i) };
  }
}

/** A fault for `Mock.refuse`. */
export const problem = (status, code, message) => new Problem(status, code, message);

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const given = name => { const at = process.argv.indexOf(`--${name}`); return at < 0 ? undefined : process.argv[at + 1]; };
  const token = given('token');
  const mock = await new Mock({
    branches: Number(given('branches') ?? 40), dead: Number(given('dead') ?? 12), captures: Number(given('captures') ?? 4), hostile: process.argv.includes('--hostile'), tokens: token ? { [token]: 'admin' } : null,
  }).listen(Number(given('port') ?? 0));
  console.log(mock.url);
}
