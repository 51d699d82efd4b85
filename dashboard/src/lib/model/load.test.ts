// What the page remembers of loads: as long as the window, with holes where nobody looked.
import { describe, expect, it } from 'vitest';
import stateAnswer from '../../../../tests/browser/fixtures/state.json';
import type { ClusterState } from '../types';
import { extended, GAP_MS, loadWords, paths, recorded, WINDOW_MS, type LoadHistory } from './load';

const state = stateAnswer as unknown as ClusterState;
const GPU = '1f0c9a52d7e84b36/cuda:0';

/** Looks at the given times, in seconds. */
function looked(...looks: [number, number | null][]): LoadHistory | undefined {
  return looks.reduce<LoadHistory | undefined>(
    (history, [second, load]) => extended(history, load, second * 1000),
    undefined,
  );
}

describe('a history of loads', () => {
  it('keeps changes only: a value holds until the next', () => {
    expect(looked([0, 10], [4, 10], [8, 30], [12, 30])).toEqual({
      steps: [
        { sinceMs: 0, percent: 10 },
        { sinceMs: 8000, percent: 30 },
      ],
      seenMs: 12_000,
    });
  });

  it('has a hole where nobody looked, from the last look on', () => {
    const away = GAP_MS / 1000 + 6;
    expect(looked([0, 10], [5, 10], [5 + away, 10])?.steps).toEqual([
      { sinceMs: 0, percent: 10 },
      { sinceMs: 5000, percent: null },
      { sinceMs: (5 + away) * 1000, percent: 10 },
    ]);
    expect(looked([0, 10], [GAP_MS / 1000, 10])?.steps).toHaveLength(1);
  });

  it('never grows beyond its window, and still knows how the window begins', () => {
    let history: LoadHistory | undefined;
    for (let second = 0; second < 3000; second += 2) history = extended(history, second % 100, second * 1000);
    expect(history?.steps.length).toBeLessThanOrEqual(WINDOW_MS / 2000 + 2);
    expect(history?.steps[0]?.sinceMs).toBeLessThanOrEqual((history?.seenMs ?? 0) - WINDOW_MS);
    expect(history?.steps[1]?.sinceMs).toBeGreaterThan((history?.seenMs ?? 0) - WINDOW_MS);
  });

  it('is kept for each device of the state, and not for those that are gone', () => {
    const first = recorded(new Map(), state, 0);
    expect(first.get(GPU)?.steps).toEqual([{ sinceMs: 0, percent: 63 }]);
    expect(first.get('c4d81e6f02a74c95/metal:0')?.steps).toEqual([{ sinceMs: 0, percent: null }]);
    const nodes = state.topology.nodes.filter((node) => node.name !== 'oak');
    const later = recorded(first, { ...state, topology: { ...state.topology, nodes } }, 1000);
    expect([...later.keys()]).toEqual(['5b7e21c0f94d4a18/cpu:0', 'c4d81e6f02a74c95/metal:0']);
  });

  it('has a hole while its node is away, whatever was told last', () => {
    const nodes = state.topology.nodes.map((node) => ({ ...node, is_connected: false }));
    const away = { ...state, topology: { ...state.topology, nodes } };
    const history = recorded(recorded(new Map(), state, 0), away, 1000).get(GPU);
    expect(history?.steps.at(-1)).toEqual({ sinceMs: 1000, percent: null });
  });
});

describe('its picture', () => {
  it('ends at the right with now, and goes in steps', () => {
    const [stretch, ...others] = paths(looked([0, 0], [15, 100], [30, 100]), 100, 10);
    expect(others).toEqual([]);
    expect(stretch?.line).toBe('M90 10L95 10L95 0L100 0');
    expect(stretch?.area).toBe('M90 10L95 10L95 0L100 0L100 10L90 10Z');
  });

  it('draws a line for each stretch, and none for what is not known', () => {
    expect(paths(looked([0, 50], [10, null], [20, 60], [22, 60]), 100, 10)).toHaveLength(2);
    expect(paths(looked([0, null], [10, null]), 100, 10)).toEqual([]);
    expect(paths(undefined, 100, 10)).toEqual([]);
  });

  it('begins at the left edge with what was before the window', () => {
    let history: LoadHistory | undefined;
    for (let second = 0; second <= 400; second += 10) history = extended(history, 50, second * 1000);
    expect(paths(history, 100, 10)[0]?.line).toBe('M0 5L100 5');
  });

  it('stays inside its frame', () => {
    expect(paths(looked([0, 140], [15, -3], [30, -3]), 100, 10)[0]?.line).toBe('M90 0L95 0L95 10L100 10');
  });
});

describe('its words', () => {
  it('weigh each load by how long it held', () => {
    expect(loadWords(looked([0, 20], [10, 80], [15, 0], [20, 0]))).toBe(
      'in the last 20 s: 0 % to 80 %, 30 % on average',
    );
  });

  it('leave out what is not known', () => {
    expect(loadWords(looked([0, 20], [10, null], [20, 40], [30, 40]))).toBe(
      'in the last 30 s: 20 % to 40 %, 30 % on average',
    );
    expect(loadWords(looked([0, null], [10, null]))).toBe('over time –');
    expect(loadWords(undefined)).toBe('over time –');
  });

  it('say nothing of a range where there is none', () => {
    expect(loadWords(looked([0, 55]))).toBe('just now: 55 %');
    expect(loadWords(looked([0, 55], [130, 55]))).toBe('in the last 2 min: 55 % whenever it was told');
    expect(loadWords(looked([0, 55], [0.5, 60]))).toBe('just now: 60 %');
    expect(loadWords(looked([0, 55], [20, 55.2], [24, 55.2]))).toBe('in the last 24 s: 55 % throughout');
  });

  it('know no average of moments between holes', () => {
    expect(loadWords(looked([0, 10], [60, 30], [120, 70]))).toBe('in the last 2 min: 10 % to 70 %');
  });
});
