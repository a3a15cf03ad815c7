// Bundles the extension, the page in its side view, and its tests: node build.mjs [--watch]
import { context } from 'esbuild';

const common = { bundle: true, target: 'es2022', logLevel: 'info', minify: true, legalComments: 'none' };
const node = { ...common, external: ['vscode'], format: 'cjs', platform: 'node', target: 'node20' };
const builds = [
  { ...node, entryPoints: ['src/extension.ts'], outfile: 'dist/extension.js' },
  { ...common, entryPoints: ['src/page/page.ts'], outfile: 'dist/page.js', format: 'iife', platform: 'browser' },
  { ...node, entryPoints: ['test/index.ts'], outfile: 'dist/test/index.js', minify: false },
];
for (const build of await Promise.all(builds.map((each) => context(each)))) {
  if (process.argv.includes('--watch')) {
    await build.watch();
  } else {
    await build.rebuild();
    await build.dispose();
  }
}
