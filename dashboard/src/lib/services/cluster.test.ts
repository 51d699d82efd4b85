import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { deleteInstance } from './cluster';

describe('deleteInstance', () => {
  let answers: number[];
  let asked: string[];
  let waited: number[];

  const wait = (delayMs: number): Promise<void> => {
    waited.push(delayMs);
    return Promise.resolve();
  };

  beforeEach(() => {
    asked = [];
    waited = [];
    vi.stubGlobal('document', { baseURI: 'http://node.test/' });
    vi.stubGlobal('fetch', (url: string, init: RequestInit) => {
      asked.push(`${init.method} ${url}`);
      const body = JSON.stringify({ error: { message: 'no', code: 'x' } });
      return Promise.resolve(new Response(body, { status: answers.shift() ?? 500 }));
    });
  });
  afterEach(() => vi.unstubAllGlobals());

  it('asks again while there is no master', async () => {
    answers = [503, 503, 200];
    await deleteInstance('a/b', wait);
    expect(asked).toEqual(Array(3).fill('DELETE http://node.test/instance/a%2Fb'));
    expect(waited).toHaveLength(2);
    expect(waited[1]).toBeGreaterThan(waited[0] ?? 0);
  });

  it('is done when the try before was carried out after all', async () => {
    answers = [503, 404];
    await deleteInstance('x', wait);
    expect(asked).toHaveLength(2);
  });

  it('says so when there was nothing to delete, and gives up in the end', async () => {
    answers = [404];
    await expect(deleteInstance('x', wait)).rejects.toMatchObject({ status: 404 });
    answers = [503, 503, 503, 503, 200];
    await expect(deleteInstance('x', wait)).rejects.toMatchObject({ status: 503 });
    expect(answers).toEqual([200]);
  });
});
