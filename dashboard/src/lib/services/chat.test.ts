import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { RequestError } from '../model/problems';
import type { ChatChunk } from '../types';
import { streamChat } from './chat';

const WISH = { model: 'exo-tiny', messages: [{ role: 'user' as const, content: 'What is 12 + 30?' }] };

function answer(pieces: Uint8Array[], status = 200): Response {
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece);
      controller.close();
    },
  });
  return new Response(body, { status });
}

const encode = (text: string) => new TextEncoder().encode(text);
const chunk = (content: string) =>
  `data: ${JSON.stringify({ choices: [{ index: 0, delta: { content }, finish_reason: null }] })}\n\n`;

describe('streamChat', () => {
  let requests: { url: string; body: unknown }[];
  let reply: () => Promise<Response>;

  beforeEach(() => {
    requests = [];
    vi.stubGlobal('document', { baseURI: 'http://node.test/below/#/chat' });
    vi.stubGlobal('fetch', (url: string, init: RequestInit) => {
      requests.push({ url, body: JSON.parse(String(init.body)) });
      return reply();
    });
  });
  afterEach(() => vi.unstubAllGlobals());

  async function run(signal = new AbortController().signal): Promise<string[]> {
    const texts: string[] = [];
    const take = (value: ChatChunk) => void texts.push(value.choices[0]?.delta.content ?? '');
    await streamChat(WISH, take, signal);
    return texts;
  }

  it('asks for a stream with usage, below the path of the page', async () => {
    reply = () => Promise.resolve(answer([encode('data: [DONE]\n\n')]));
    await run();
    expect(requests).toEqual([
      {
        url: 'http://node.test/below/v1/chat/completions',
        body: { ...WISH, stream: true, stream_options: { include_usage: true } },
      },
    ]);
  });

  it('reads chunks that are cut anywhere, in the middle of a character too', async () => {
    const bytes = encode(`${chunk('größer 🙂')}${chunk(' als')}data: [DONE]\n\n`);
    for (let size = 1; size < 9; size++) {
      const pieces: Uint8Array[] = [];
      for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
      reply = () => Promise.resolve(answer(pieces));
      expect(await run()).toEqual(['größer 🙂', ' als']);
    }
  });

  it('tells a refusal in the words of the node', async () => {
    const body = {
      error: { message: "there is no model 'x'", type: 'e', param: null, code: 'model_not_found' },
    };
    reply = () => Promise.resolve(new Response(JSON.stringify(body), { status: 404 }));
    await expect(run()).rejects.toMatchObject({
      status: 404,
      code: 'model_not_found',
      message: "There is no model 'x'.",
    });
  });

  it('tells an error that comes in the middle of the stream', async () => {
    const error = {
      error: { message: 'the stage failed: killed', type: 'e', param: null, code: 'stage_failed' },
    };
    reply = () => Promise.resolve(answer([encode(chunk('4')), encode(`data: ${JSON.stringify(error)}\n\n`)]));
    await expect(run()).rejects.toThrow('The stage failed: killed.');
  });

  it('does not take a stream that breaks off for an answer', async () => {
    reply = () => Promise.resolve(answer([encode(chunk('4'))]));
    await expect(run()).rejects.toThrow('broke off');
  });

  it('says that the node cannot be reached', async () => {
    reply = () => Promise.reject(new TypeError('Failed to fetch'));
    await expect(run()).rejects.toBeInstanceOf(RequestError);
    await expect(run()).rejects.toThrow('cannot be reached');
  });

  it('ends with the own reason when stopped', async () => {
    const abort = new AbortController();
    abort.abort();
    reply = () => Promise.reject(abort.signal.reason as Error);
    await expect(run(abort.signal)).rejects.toBe(abort.signal.reason);
  });
});
