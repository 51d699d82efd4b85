import { describe, expect, it } from 'vitest';
import { SseParser, type SseMessage } from './sse';

const STREAM =
  '\uFEFF: a comment\r\nevent: state\r\ndata: one\r\ndata:two\r\n\r\nid: 7\ndata: {"a": "ä🙂"}\n\ndata\n\ndata: [DONE]\r\r';
const EXPECTED: SseMessage[] = [
  { event: 'state', data: 'one\ntwo' },
  { event: 'message', data: '{"a": "ä🙂"}' },
  { event: 'message', data: '' },
  { event: 'message', data: '[DONE]' },
];

describe('SseParser', () => {
  it('reads a stream given at once', () => {
    expect(new SseParser().push(STREAM)).toEqual(EXPECTED);
  });

  it('gives the same messages wherever the stream is cut in two', () => {
    for (let cut = 0; cut <= STREAM.length; cut++) {
      const parser = new SseParser();
      const messages = [...parser.push(STREAM.slice(0, cut)), ...parser.push(STREAM.slice(cut))];
      expect(messages, `cut at ${cut}`).toEqual(EXPECTED);
    }
  });

  it('gives the same messages one UTF-16 unit at a time', () => {
    const parser = new SseParser();
    expect(STREAM.split('').flatMap((unit) => parser.push(unit))).toEqual(EXPECTED);
  });

  it('says nothing for an event without data, and forgets its name', () => {
    expect(new SseParser().push('event: gone\n\ndata: x\n\n')).toEqual([{ event: 'message', data: 'x' }]);
  });

  it('keeps an unfinished message to itself', () => {
    const parser = new SseParser();
    expect(parser.push('data: half')).toEqual([]);
    expect(parser.push('\n')).toEqual([]);
    expect(parser.push('\n')).toEqual([{ event: 'message', data: 'half' }]);
  });
});
