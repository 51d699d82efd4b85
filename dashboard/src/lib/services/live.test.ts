import { beforeEach, describe, expect, it } from 'vitest';
import { HandTimers, settle } from '../testing/hand-timers';
import { RequestError } from '../model/problems';
import type { ClusterState } from '../types';
import { LiveState, type Connection, type LiveParts } from './live';

type Callbacks = Parameters<LiveParts['openEvents']>[0];

describe('LiveState', () => {
  let timers: HandTimers;
  let fetchedAtMs: number[];
  let isUp: boolean;
  let refusal: RequestError | null;
  let channels: (Callbacks & { isClosed: boolean })[];
  let connections: Connection[];
  let live: LiveState;

  const latest = () => connections.at(-1);
  const channel = () => {
    const last = channels.at(-1);
    if (!last) throw new Error('no event stream was opened');
    return last;
  };

  beforeEach(async () => {
    timers = new HandTimers();
    fetchedAtMs = [];
    isUp = true;
    refusal = null;
    channels = [];
    connections = [];
    live = new LiveState({
      fetchState: async () => {
        fetchedAtMs.push(timers.nowMs);
        if (!isUp) throw new Error('gone');
        if (refusal) throw refusal;
        return { index: fetchedAtMs.length } as ClusterState;
      },
      openEvents: (on) => {
        const opened = { ...on, isClosed: false };
        channels.push(opened);
        return { close: () => void (opened.isClosed = true) };
      },
      onState: () => undefined,
      onConnection: (connection) => connections.push(connection),
      timers,
      random: () => 0,
    });
    live.start();
    await settle();
  });

  it('fetches first, then listens, and fetches again for what came in between', async () => {
    expect(fetchedAtMs).toEqual([0]);
    expect(channels).toHaveLength(1);
    expect(latest()).toEqual({ status: 'connecting' });
    channel().open();
    expect(latest()).toEqual({ status: 'live' });
    await timers.advance(1000);
    expect(fetchedAtMs).toEqual([0, 250]);
  });

  it('fetches at most four times a second, however many notifications come', async () => {
    channel().open();
    for (let ms = 0; ms < 3000; ms += 5) {
      channel().notification();
      await timers.advance(5);
    }
    await timers.advance(1000);
    expect(fetchedAtMs.length).toBeGreaterThanOrEqual(12);
    expect(fetchedAtMs.length).toBeLessThanOrEqual(14);
  }, 20_000);

  it('opens a lost event stream again, waiting longer each time, while the node answers', async () => {
    channel().open();
    const openedAtMs: number[] = [];
    for (let loss = 0; loss < 4; loss++) {
      const startMs = timers.nowMs;
      const before = channels.length;
      channel().lost();
      expect(channel().isClosed).toBe(true);
      expect(latest()).toEqual({ status: 'catching-up' });
      while (channels.length === before) await timers.advance(50);
      openedAtMs.push(timers.nowMs - startMs);
    }
    expect(openedAtMs).toEqual([500, 1000, 2000, 4000]);
    channel().open();
    expect(latest()).toEqual({ status: 'live' });
  });

  it('says that the node is unreachable since when, tries with back-off, and comes back', async () => {
    channel().open();
    await timers.advance(1000);
    isUp = false;
    channel().lost();
    await settle();
    expect(latest()).toEqual({ status: 'unreachable', reason: 'gone', sinceMs: 1000, nextTryMs: 1500 });
    await timers.advance(500);
    expect(latest()).toEqual({ status: 'unreachable', reason: 'gone', sinceMs: 1000, nextTryMs: 2500 });
    expect(channels).toHaveLength(1);
    isUp = true;
    await timers.advance(1000);
    expect(channels).toHaveLength(2);
    channel().open();
    expect(latest()).toEqual({ status: 'live' });
  });

  it('tries at once when a person asks for it', async () => {
    isUp = false;
    live.refresh();
    await timers.advance(20_000);
    const before = fetchedAtMs.length;
    isUp = true;
    live.refresh();
    await settle();
    expect(fetchedAtMs).toHaveLength(before + 1);
    expect(latest()?.status).not.toBe('unreachable');
  });

  it('notices a node that falls silent without closing anything', async () => {
    channel().open();
    await timers.advance(300);
    isUp = false;
    await timers.advance(9_000);
    expect(latest()).toEqual({ status: 'live' });
    await timers.advance(1_500);
    expect(latest()?.status).toBe('unreachable');
    expect(channel().isClosed).toBe(true);
  });

  it('waits for a person where a key is needed, and begins anew with it', async () => {
    channel().open();
    refusal = new RequestError('Send an API key.', 401, 'key_missing');
    channel().lost();
    await timers.advance(300);
    expect(latest()).toEqual({ status: 'locked', reason: 'Send an API key.' });
    const before = fetchedAtMs.length;
    await timers.advance(120_000);
    expect(fetchedAtMs).toHaveLength(before);
    expect(timers.waiting).toBe(0);
    refusal = null;
    live.restart();
    expect(latest()).toEqual({ status: 'connecting' });
    await settle();
    expect(channels).toHaveLength(2);
    channel().open();
    expect(latest()).toEqual({ status: 'live' });
  });

  it('opens another stream when begun anew: the one before was opened with another key', async () => {
    channel().open();
    const earlier = channel();
    await timers.advance(300);
    live.restart();
    await timers.advance(300);
    expect(earlier.isClosed).toBe(true);
    expect(channels).toHaveLength(2);
    earlier.lost();
    await timers.advance(300);
    expect(channels).toHaveLength(2);
  });

  it('leaves nothing running when stopped', async () => {
    channel().open();
    const stale = channel();
    live.stop();
    stale.notification();
    stale.lost();
    await timers.advance(60_000);
    expect(fetchedAtMs).toEqual([0]);
    expect(stale.isClosed).toBe(true);
    expect(timers.waiting).toBe(0);
  });
});
