import { describe, expect, it } from 'vitest';
import type { ChatChunk } from '../types';
import {
  conversation,
  ended,
  newReply,
  timeToFirstTokenMs,
  tokensPerS,
  withChunk,
  type Reply,
  type Turn,
} from './chat';
import { fromAnswer, sentence, wordsOf } from './problems';
import { hrefOf, routeOf } from './routes';

function chunk(content: string | null, more: Partial<ChatChunk> = {}): ChatChunk {
  const delta = content === null ? {} : { content };
  const choices: ChatChunk['choices'] = [{ index: 0, delta, logprobs: null, finish_reason: null }];
  return { id: 'x', object: 'chat.completion.chunk', created: 0, model: 'exo-tiny', choices, ...more };
}

describe('an answer', () => {
  it('grows token by token and counts from the first on', () => {
    let reply = newReply(1000);
    expect(tokensPerS(reply)).toBeNull();
    expect(timeToFirstTokenMs(reply)).toBeNull();
    reply = withChunk(reply, chunk('4'), 1030);
    expect(tokensPerS(reply)).toBeNull();
    reply = withChunk(reply, chunk(''), 1040);
    reply = withChunk(reply, chunk('2'), 1050);
    expect(reply).toMatchObject({ text: '42', tokenCount: 3, status: 'streaming' });
    expect(timeToFirstTokenMs(reply)).toBe(30);
    expect(tokensPerS(reply)).toBe(100);
  });

  it('does not divide by nothing when all tokens arrive at once', () => {
    const reply = withChunk(withChunk(newReply(0), chunk('4'), 20), chunk('2'), 20);
    expect(tokensPerS(reply)).toBeNull();
  });

  it('takes the figures of the node once they are there', () => {
    let reply = withChunk(newReply(0), chunk('42'), 20);
    const exo = { instance_id: 'i', time_to_first_token_s: 0.01, tokens_per_s: 57.25 };
    reply = withChunk(reply, chunk(null, { exo }), 30);
    const usage = { prompt_tokens: 9, completion_tokens: 7, total_tokens: 16 };
    reply = withChunk(reply, chunk(null, { choices: [], usage }), 31);
    expect(tokensPerS(reply)).toBe(57.25);
    expect(reply.tokenCount).toBe(7);
  });

  it('leaves the value before it as it was', () => {
    const before = newReply(0);
    withChunk(before, chunk('4'), 1);
    expect(before).toEqual(newReply(0));
  });
});

describe('a conversation', () => {
  const turn = (question: string, reply: Reply): Turn => ({ id: 1, question, modelId: 'exo-tiny', reply });

  it('tells the model what was said, without what failed', () => {
    const answered = ended(withChunk(newReply(0), chunk('42'), 1), 'done');
    const stopped = ended(withChunk(newReply(0), chunk('1, 2'), 1), 'stopped');
    const failed = ended(withChunk(newReply(0), chunk('oops'), 1), 'failed', 'it broke');
    expect(conversation([turn('a', answered), turn('b', failed), turn('c', stopped)], 'd')).toEqual([
      { role: 'user', content: 'a' },
      { role: 'assistant', content: '42' },
      { role: 'user', content: 'c' },
      { role: 'assistant', content: '1, 2' },
      { role: 'user', content: 'd' },
    ]);
  });
});

describe('errors in words', () => {
  it('reads Problem Details with the fields that are wrong', () => {
    const errors = [{ field: 'min_nodes', message: 'must be at least 1' }];
    const problem = { detail: 'the request cannot be read', status: 422, code: 'invalid', errors };
    expect(fromAnswer(422, problem).message).toBe(
      'The request cannot be read (min_nodes: must be at least 1).',
    );
  });

  it('tells anything else by its status', () => {
    for (const body of [null, 'text', [], {}, { detail: [1] }, { error: 'x' }]) {
      expect(fromAnswer(502, body).message).toBe('The node answered with status 502.');
    }
    expect(wordsOf('not an error')).not.toBe('');
  });

  it('keeps the spelling of names', () => {
    expect(sentence('exo-tiny needs 2 MiB')).toBe('exo-tiny needs 2 MiB.');
    expect(sentence('no master; try again?')).toBe('No master; try again?');
  });
});

describe('routes', () => {
  it('round-trip, and the cluster is what an unknown address shows', () => {
    expect(routeOf(hrefOf('chat'))).toBe('chat');
    expect(routeOf(hrefOf('cluster'))).toBe('cluster');
    expect(routeOf('#/nowhere')).toBe('cluster');
    expect(routeOf('')).toBe('cluster');
  });
});
