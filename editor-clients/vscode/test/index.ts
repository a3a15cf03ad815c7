/** Runs inside the real extension host, in order: each case goes on from where the one before left the window. */

import { cases as asking } from './asking';
import { cases as asleep } from './asleep';
import { cases as find } from './find';
import { extension } from './help';
import { cases as life, leaveAnswering } from './life';

export async function run(): Promise<void> {
  const failed: string[] = [];
  const all = [...find, ...asleep, ...asking, ...life];
  const only = process.env.TEST_ONLY; // a part of a name, for those who look for a mistake
  await extension().activate();
  for (const [name, body] of all.filter(([each]) => !only || each.includes(only))) {
    const began = Date.now();
    try {
      await body();
      console.log(`ok - ${name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
    } catch (error) {
      failed.push(name);
      console.log(`not ok - ${name}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    }
  }
  console.log(`${all.length - failed.length} passed, ${failed.length} failed`);
  if (failed.length > 0) {
    throw new Error(`${failed.length} failed`);
  }
  await leaveAnswering();
  // The driver kills this process now; nothing more comes of it.
  console.log('kill me');
  await new Promise(() => undefined);
}
