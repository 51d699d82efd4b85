import { describe, expect, it } from 'vitest';
import knownAnswer from '../../../../tests/browser/fixtures/known.json';
import plannedAnswer from '../../../../tests/browser/fixtures/planned.json';
import type { KnownDevice, Planned, Remedy } from '../types';
import {
  addedWords,
  asksOtherwise,
  choosable,
  findKnown,
  imaginedNodes,
  isChanged,
  knownFacts,
  machineWish,
  machineWords,
  planWish,
  withoutWords,
} from './whatif';

const known = knownAnswer.devices as KnownDevice[];
const planned = plannedAnswer as unknown as Planned;
const { request } = planned.answer;
const none = { without: [], instead: [], machines: [] };

function named(text: string): KnownDevice {
  const found = findKnown(text, known);
  if (!found) throw new Error(`${text} is not known`);
  return found;
}

describe('choosing a device by its name', () => {
  it.each([
    ['GeForce RTX 3090', 'GeForce RTX 3090'],
    ['rtx3090', 'GeForce RTX 3090'],
    ['3090 ti', 'GeForce RTX 3090 Ti'],
    ['M2 Max', 'Apple M2 Max'],
    ['RTX', undefined],
    ['RTX 3095', undefined],
    [' ', undefined],
  ])('takes %j as %s', (text, name) => {
    expect(findKnown(text, known)?.name).toBe(name);
  });

  it('offers no processors', () => {
    expect(known.some((device) => device.kind === 'processor')).toBe(true);
    expect(choosable(known).every((device) => device.kind === 'gpu')).toBe(true);
  });

  it('says what is known of it', () => {
    expect(knownFacts(named('RTX 3090'))).toBe('24 GiB · 936 GB/s');
    expect(knownFacts(named('4060 Ti'))).toBe('8 or 16 GiB · 288 GB/s');
    expect(knownFacts(named('M2 Max'))).toBe('memory of its machine · 400 GB/s');
    expect(knownFacts({ ...named('RTX 3090'), memory_bandwidth_bytes_per_s: null })).toBe('24 GiB');
  });
});

describe('a machine that is not there', () => {
  it('is named by what it holds, and connected as chosen', () => {
    const two = machineWish(
      { device: 'rtx 3090', count: 2, memoryGib: null, linkGbitPerS: 2.5 },
      named('RTX 3090'),
    );
    expect(two).toEqual({
      name: '2 × GeForce RTX 3090',
      devices: [
        { name: 'GeForce RTX 3090', kind: 'gpu' },
        { name: 'GeForce RTX 3090', kind: 'gpu' },
      ],
      zone: '',
      link_mbps: 2500,
    });
    expect(machineWords(two)).toBe('2 × GeForce RTX 3090, 2.5 Gbit/s');
  });

  it('says its memory where the name does not', () => {
    const mac = machineWish(
      { device: 'M2 Max', count: 1, memoryGib: 64, linkGbitPerS: null },
      named('M2 Max'),
    );
    expect(mac.name).toBe('Apple M2 Max with 64 GiB');
    expect(mac.devices[0]?.memory_total_bytes).toBe(64 * 2 ** 30);
    expect('link_mbps' in mac).toBe(false);
    expect(machineWords(mac)).toBe('Apple M2 Max with 64 GiB');
  });

  it('is asked for as it was written where the names are not there', () => {
    const written = machineWish(
      { device: ' RTX 9999 ', count: 1, memoryGib: null, linkGbitPerS: null },
      null,
    );
    expect(written).toMatchObject({ name: 'RTX 9999', devices: [{ name: 'RTX 9999' }] });
  });

  it('stands behind the nodes of the cluster, and is told as what it is', () => {
    const oak = { node_id: 'a', name: 'oak', is_connected: true, devices: [] };
    expect(imaginedNodes([oak], planned).map((node) => node.name)).toEqual([
      'oak',
      '2 × GeForce RTX 3090 (not there)',
    ]);
    expect(addedWords(planned)).toHaveLength(1);
    expect(addedWords(planned)[0]).toContain('22.8 of 24 GiB taken as free, 936 GB/s (NVIDIA');
  });
});

describe('a change', () => {
  it('is asked beside what is asked for', () => {
    expect(isChanged(none)).toBe(false);
    const change = { ...none, without: ['a'] };
    expect(isChanged(change)).toBe(true);
    expect(planWish(request, change)).toEqual({ ...request, ...change });
  });

  it('can be placed where nodes alone are left out', () => {
    const names = new Map([
      ['a', 'oak'],
      ['b', 'pine'],
    ]);
    expect(withoutWords({ ...none, without: ['a'] }, names)).toBe('without oak');
    expect(withoutWords({ ...none, without: ['a', 'b'] }, names)).toBe('without oak and pine');
    expect(withoutWords({ ...none, without: ['a', 'b', 'c'] }, names)).toBe('without 3 nodes');
    expect(withoutWords(none, names)).toBeNull();
    expect(withoutWords({ ...none, without: ['a'], instead: ['i'] }, names)).toBeNull();
  });

  it('knows whether a remedy asks for something else', () => {
    const remedy: Remedy = { words: 'x', request, without: [], instead: [] };
    expect(asksOtherwise(remedy, request)).toBe(false);
    expect(asksOtherwise({ ...remedy, request: { ...request, min_nodes: 2 } }, request)).toBe(true);
  });
});
