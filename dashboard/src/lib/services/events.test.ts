import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { settle } from '../testing/hand-timers';
import { openEvents } from './events';
import { keepApiKey } from './key';

describe('openEvents', () => {
  let requests: { url: string; headers: Headers; signal: AbortSignal }[];
  let body: ReadableStreamDefaultController<Uint8Array>;
  let status: number;
  let told: string[];

  const send = async (text: string) => {
    body.enqueue(new TextEncoder().encode(text));
    await settle();
  };
  const listen = async () => {
    const note = (what: string) => () => void told.push(what);
    const channel = openEvents({ open: note('open'), notification: note('news'), lost: note('lost') });
    await settle();
    return channel;
  };

  beforeEach(() => {
    requests = [];
    told = [];
    status = 200;
    vi.stubGlobal('document', { baseURI: 'http://node.test/below/#/' });
    vi.stubGlobal('fetch', (url: string, init: { headers: Headers; signal: AbortSignal }) => {
      requests.push({ url, ...init });
      const stream = new ReadableStream<Uint8Array>({
        start(controller) {
          body = controller;
          init.signal.addEventListener('abort', () => controller.error(init.signal.reason));
        },
      });
      return Promise.resolve(new Response(status === 200 ? stream : '{}', { status }));
    });
  });
  afterEach(() => {
    keepApiKey(null);
    vi.unstubAllGlobals();
  });

  it('shows the key, and shows none where there is none', async () => {
    (await listen()).close();
    keepApiKey('exo-1a2b-ff');
    (await listen()).close();
    expect(requests.map(({ url }) => url)).toEqual(Array(2).fill('http://node.test/below/events'));
    expect(requests.map(({ headers }) => headers.get('authorization'))).toEqual([null, 'Bearer exo-1a2b-ff']);
  });

  it('tells of each event, whatever its name, and not of comments', async () => {
    await listen();
    await send(': connected\n\n');
    expect(told).toEqual(['open']);
    await send('event: decision\nid: 4\ndata: {}\n\nevent: telem');
    await send('etry\ndata: {}\n\n: keep-alive\n\n');
    expect(told).toEqual(['open', 'news', 'news']);
  });

  it('tells once when the stream ends', async () => {
    await listen();
    body.close();
    await settle();
    expect(told).toEqual(['open', 'lost']);
  });

  it('tells that there is none when the node refuses', async () => {
    status = 503;
    await listen();
    expect(told).toEqual(['lost']);
  });

  it('says nothing more when closed, and ends the request', async () => {
    const channel = await listen();
    channel.close();
    await settle();
    expect(requests[0]?.signal.aborted).toBe(true);
    expect(told).toEqual(['open']);
  });
});
