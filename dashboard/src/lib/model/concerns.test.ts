// What is wrong anywhere is said first, and said aloud when it is new.
import { describe, expect, it } from 'vitest';
import stateAnswer from '../../../../tests/browser/fixtures/state.json';
import type { ClusterState, DeviceState } from '../types';
import { concerns, newsOf, type Concern } from './concerns';
import { nodeCards } from './nodes';

const state = stateAnswer as unknown as ClusterState;
const [oak, pine] = state.topology.nodes as [
  ClusterState['topology']['nodes'][0],
  ClusterState['topology']['nodes'][0],
];
const [processor, gpu] = oak.devices.map(({ device_id }) => device_id) as [string, string];
const other = pine.devices[0]?.device_id as string;

function concernsOf(changes: Record<string, Partial<DeviceState>>): Concern[] {
  const states = Object.entries(changes).map(([id, change]) => [
    id,
    { ...state.gpu_device_state[id], ...change },
  ]);
  const told = {
    ...state.gpu_device_state,
    ...Object.fromEntries(states),
  } as ClusterState['gpu_device_state'];
  return concerns(nodeCards({ ...state, gpu_device_state: told }));
}

describe('concerns', () => {
  it('are none while all is well or ordinary', () => {
    expect(concernsOf({})).toEqual([]);
    expect(concernsOf({ [gpu]: { throttle_reasons: ['power'], thermal_temperature_c: 82 } })).toEqual([]);
  });

  it('name the device and what is wrong with it, the failed first', () => {
    const found = concernsOf({
      [processor]: { health: 'degraded', health_reason: 'one wrong answer', is_thermal_throttling: true },
      [other]: { health: 'failed', health_reason: 'it is gone' },
    });
    expect(found.map(({ tone, place, words }) => [tone, place, words])).toEqual([
      ['bad', 'pine cpu:0', 'failed: it is gone'],
      ['warn', 'oak cpu:0', 'degraded: one wrong answer; slowed by heat'],
    ]);
  });

  it('leave out a node that is away: its devices are not known', () => {
    const away = { ...state.topology, nodes: [{ ...oak, is_connected: false }] };
    const told = {
      [gpu]: { ...state.gpu_device_state[gpu], health: 'failed' },
    } as ClusterState['gpu_device_state'];
    expect(concerns(nodeCards({ ...state, topology: away, gpu_device_state: told }))).toEqual([]);
  });
});

describe('what is said aloud', () => {
  const failed = concernsOf({ [gpu]: { health: 'failed', health_reason: 'it is gone' } });

  it('is what got worse, once', () => {
    expect(newsOf([], failed)).toBe('oak cuda:0 failed: it is gone.');
    expect(newsOf(failed, failed)).toBe('');
    expect(newsOf(failed, concernsOf({ [gpu]: { health: 'failed', health_reason: 'on trial' } }))).toBe('');
    const degraded = concernsOf({ [gpu]: { health: 'degraded', health_reason: 'one wrong answer' } });
    expect(newsOf(degraded, failed)).toBe('oak cuda:0 failed: it is gone.');
    expect(newsOf(failed, [])).toBe('');
  });

  it('is no heat, which comes and goes', () => {
    const slowed = concernsOf({ [gpu]: { is_thermal_throttling: true } });
    expect(slowed).toHaveLength(1);
    expect(newsOf([], slowed)).toBe('');
  });

  it('is short when much fails at once', () => {
    const [one] = failed as [Concern];
    const many = Array.from({ length: 8 }, (_, place) => ({ ...one, deviceId: `${place}` }));
    expect(newsOf([], many)).toMatch(/^(oak cuda:0 failed: it is gone(\. )?){3}, and 5 more\.$/);
  });
});
