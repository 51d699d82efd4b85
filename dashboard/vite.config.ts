// Builds the page into the Python package and, while developing, sends API calls to a running node.
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

const node = process.env['EXO_DASHBOARD_NODE'] ?? 'http://127.0.0.1:52415';
const apiPaths = [
  '/events',
  '/gpu',
  '/healthz',
  '/instance',
  '/metrics',
  '/models',
  '/nodes',
  '/readyz',
  '/state',
  '/v1',
];

export default defineConfig({
  // Relative addresses: the page works below any path that a proxy puts in front of it.
  base: './',
  plugins: [svelte()],
  build: {
    outDir: '../src/exo/api/dashboard',
    emptyOutDir: true,
    target: 'es2022',
    // Browsers that know light-dark(): otherwise the two themes would be unrolled into fallbacks.
    cssTarget: ['chrome123', 'firefox121', 'safari17.5'],
    // Content policies may forbid data: addresses, and the page's few files are small anyway.
    assetsInlineLimit: 0,
  },
  server: {
    proxy: Object.fromEntries(apiPaths.map((path) => [path, { target: node }])),
  },
  test: {
    include: ['src/**/*.test.ts'],
    environment: 'node',
  },
});
