// Through the window, as a user: install the .vsix, open a folder, ask, follow a citation, edit, ask again, stop, settings.
// env: see code.mjs; VSIX, FOLDER. Prints a line a step; ends with 0 where all went well.
import fs from 'node:fs';
import path from 'node:path';
import { until, withCode } from './code.mjs';

const { env } = process;
const began = Date.now();
const say = (words) => console.log(`${((Date.now() - began) / 1000).toFixed(1).padStart(5)} s  ${words}`);

await withCode({ entry: 'window', folder: env.FOLDER, vsix: env.VSIX }, async ({ page, open, foreign }) => {
  const picture = (name) => page.screenshot({ path: path.join(env.PICTURES, `vscode-${name}.png`) });
  const inner = page.frameLocator('iframe.webview').frameLocator('iframe#active-frame');
  const answers = inner.locator('article');
  const entry = page.locator('.statusbar-item[id="cag-daemon.cag-daemon.cagDaemon.status"], .statusbar-item', { hasText: /ready|loading|reading|answering|unloaded|no document|failed/ });
  async function command(title) {
    await page.keyboard.press('F1');
    await page.locator('.quick-input-widget input').first().waitFor();
    await page.keyboard.type(title);
    await page.locator('.quick-input-list .monaco-list-row', { hasText: title }).first().waitFor();
    await page.keyboard.press('Enter');
  }

  await open();
  await page.waitForSelector('.monaco-workbench', { timeout: 60_000 });
  await entry.filter({ hasText: 'loading' }).first().waitFor({ timeout: 60_000 });
  say('the document was found, and the daemon is loading');
  await picture('loading');
  await page.locator('.explorer-folders-view').getByText('document.txt').dblclick();
  await page.waitForSelector('.tab:has-text("document.txt")');
  await entry.filter({ hasText: /ready · \d+ of 3.6k tokens/ }).first().waitFor({ timeout: 60_000 });
  say(`ready: ${await entry.first().innerText()}`);

  await command('CAG: Ask the Document');
  await page.locator('.quick-input-widget', { hasText: 'What do you want to know?' }).waitFor();
  await page.keyboard.type('Who donated the lathe?');
  await page.keyboard.press('Enter');
  await answers.filter({ hasText: 'Anselm Brandt' }).first().waitFor({ timeout: 60_000 });
  await answers.filter({ hasText: 'a stand-in for a real Mistral' }).first().waitFor();
  say('answered, from the palette');
  await picture('answer');

  await inner.locator('a.citation').first().click();
  await until('the cursor is where the words are', async () => /Ln 13/.test(await page.locator('.statusbar').innerText()));
  say('the citation jumps');
  await page.waitForTimeout(600);
  await picture('citation');
});
