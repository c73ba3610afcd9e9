// Pictures of the status page: node screenshots.mjs [folder]
// ARGON_PAGE_URL is the engine to look at, ARGON_PAGE_TOKEN its token, ARGON_PAGE_WAIT how many seconds the plots grow before the pictures are
// taken (130), ARGON_PAGE_FULL=1 takes the page down to its end. They go to docs/images; those of the mock, whose figures are made up, only to
// a folder that is named.

import { mkdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { launch } from './browser.mjs';
import { Mock } from './mock.mjs';

const folder = process.argv[2] ?? (process.env.ARGON_PAGE_URL ? fileURLToPath(new URL('../../docs/images', import.meta.url)) : null);
if (!folder) throw new Error('set ARGON_PAGE_URL, or name a folder for pictures of the mock');
const wait = Number(process.env.ARGON_PAGE_WAIT ?? 130) * 1000;
const mock = process.env.ARGON_PAGE_URL ? null : await new Mock({ branches: 46, dead: 3 }).listen();
const url = process.env.ARGON_PAGE_URL ?? mock.url;
const shots = [
  { name: 'status-light', colorScheme: 'light', viewport: { width: 1360, height: 1000 } },
  { name: 'status-dark', colorScheme: 'dark', viewport: { width: 1360, height: 1000 } },
  { name: 'status-lists', colorScheme: 'light', viewport: { width: 1360, height: 1000 }, at: '#queue' },
  { name: 'status-phone', colorScheme: 'light', viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true },
];
mkdirSync(folder, { recursive: true });
const browser = await launch();
try {
  const pages = await Promise.all(shots.map(async ({ name, at, ...options }) => {
    const context = await browser.newContext({ ...options, reducedMotion: 'reduce' });
    if (process.env.ARGON_PAGE_TOKEN) await context.addInitScript(token => sessionStorage.setItem('argon-token', token), process.env.ARGON_PAGE_TOKEN);
    const page = await context.newPage();
    await page.goto(url);
    return [name, at, page];
  }));
  await new Promise(done => setTimeout(done, wait));
  for (const [name, at, page] of pages) {
    if (at) await page.locator(at).evaluate(node => node.scrollIntoView());
    await new Promise(done => setTimeout(done, 1500));
    await page.screenshot({ path: `${folder}/${name}.png`, fullPage: process.env.ARGON_PAGE_FULL === '1' });
    console.log(`${folder}/${name}.png`);
  }
} finally {
  await browser.close();
  await mock?.close();
}
