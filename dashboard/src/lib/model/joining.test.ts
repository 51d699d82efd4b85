import { describe, expect, it } from 'vitest';
import nodesAnswer from '../../../../tests/browser/fixtures/nodes.json';
import type { NodeList } from '../types';
import { fingerprintGroups, memberOf, moment, newWishes, shortFingerprint, wishCards } from './joining';

const list = nodesAnswer as NodeList;
const [birch, nameless] = wishCards(list) as [
  ReturnType<typeof wishCards>[0],
  ReturnType<typeof wishCards>[0],
];

describe('wishes', () => {
  it('keeps the whole key for the approval, and shows half of it in groups', () => {
    expect(birch.fingerprint).toHaveLength(64);
    expect(shortFingerprint(birch.fingerprint)).toBe('3f9c 1b7a 8e60 d452 5d18 c6f2 097b e3a4');
    expect(fingerprintGroups(birch.fingerprint)).toHaveLength(16);
    expect(fingerprintGroups(birch.fingerprint).join('')).toBe(birch.fingerprint);
  });

  it('calls a node without a name by the start of its id', () => {
    expect(birch.name).toBe('birch');
    expect(nameless.name).toBe('e21b7c90');
  });

  it('has none before the list is known', () => {
    expect(wishCards(null)).toEqual([]);
    expect(memberOf(null, 'x')).toBeNull();
  });

  it('tells new wishes from those that were there, another key under the same id too', () => {
    expect(newWishes([birch], [birch, nameless])).toEqual([nameless]);
    expect(newWishes([birch, nameless], [nameless])).toEqual([]);
    const other = { ...birch, fingerprint: nameless.fingerprint };
    expect(newWishes([birch], [other])).toEqual([other]);
  });
});

describe('moment', () => {
  const now = new Date('2026-03-05T18:00:00Z');

  it('is a time today, and has its date otherwise', () => {
    expect(moment('2026-03-05T17:42:10Z', now, 'UTC')).toBe('17:42');
    expect(moment('2026-03-04T09:15:00Z', now, 'UTC')).toBe('Mar 4, 2026, 09:15');
    expect(moment('2025-03-05T17:42:10Z', now, 'UTC')).toBe('Mar 5, 2025, 17:42');
  });

  it("goes by the reader's day", () => {
    expect(moment('2026-03-05T17:42:10Z', now, 'Asia/Tokyo')).toBe('02:42');
    expect(moment('2026-03-05T00:10:00Z', now, 'America/New_York')).toBe('Mar 4, 2026, 19:10');
  });

  it('passes on what is no time', () => {
    expect(moment('soon', now, 'UTC')).toBe('soon');
  });
});
