import { beforeEach, describe, expect, it } from 'vitest';
import { backoffMs } from './backoff';
import { HandTimers, settle } from '../testing/hand-timers';
import { Coalescer } from './coalesce';

describe('Coalescer', () => {
  let timers: HandTimers;
  let starts: number[];
  let finish: () => void;
  let coalescer: Coalescer;

  beforeEach(() => {
    timers = new HandTimers();
    starts = [];
    coalescer = new Coalescer(
      () => {
        starts.push(timers.nowMs);
        return new Promise<void>((resolve) => (finish = resolve));
      },
      250,
      timers,
    );
  });

  it('runs at once when idle, and once more for all that came meanwhile', async () => {
    coalescer.request();
    expect(starts).toEqual([0]);
    for (let i = 0; i < 50; i++) coalescer.request();
    finish();
    await settle();
    await timers.advance(249);
    expect(starts).toEqual([0]);
    await timers.advance(1);
    expect(starts).toEqual([0, 250]);
    finish();
    await settle();
    await timers.advance(5000);
    expect(starts).toEqual([0, 250]);
  });

  it('never runs twice at once, however long a run takes', async () => {
    coalescer.request();
    coalescer.request();
    await timers.advance(10_000);
    expect(starts).toEqual([0]);
    finish();
    await settle();
    expect(starts).toEqual([0, 10_000]);
  });

  it('forgets what was asked for when stopped', async () => {
    coalescer.request();
    coalescer.request();
    finish();
    await settle();
    coalescer.stop();
    await timers.advance(1000);
    expect(starts).toEqual([0]);
  });
});

describe('backoffMs', () => {
  it('doubles up to a ceiling and is shortened by a quarter at most', () => {
    expect([0, 1, 2, 3].map((attempt) => backoffMs(attempt, 0))).toEqual([500, 1000, 2000, 4000]);
    expect(backoffMs(1000, 0)).toBe(10_000);
    expect(backoffMs(0, 0.999)).toBeGreaterThanOrEqual(375);
  });
});
