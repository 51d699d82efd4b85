// One way to ask the node for JSON: with a deadline, and with every failure in words.
import { fromAnswer, RequestError, timedOut, unreachable } from '../model/problems';
import { apiKey } from './key';

export interface RequestOptions {
  method?: 'GET' | 'POST' | 'DELETE';
  body?: unknown;
  timeoutS?: number;
  signal?: AbortSignal;
}

/** The address of an API path: relative, so that the page also works below a proxy's path. */
export function apiUrl(path: string): string {
  return new URL(path, document.baseURI.split('#')[0]).href;
}

/**
 * Send a request and read the JSON answer.
 *
 * Throws a RequestError when the node refuses, is silent or cannot be reached, and the signal's own
 * reason when the caller gave up.
 */
export async function requestJson<Answer>(path: string, options: RequestOptions = {}): Promise<Answer> {
  const timeoutS = options.timeoutS ?? 10;
  const deadline = AbortSignal.timeout(timeoutS * 1000);
  const signal = options.signal ? AbortSignal.any([options.signal, deadline]) : deadline;
  try {
    const response = await send(path, options, signal);
    return (await response.json()) as Answer;
  } catch (error) {
    if (error instanceof RequestError || options.signal?.aborted) throw error;
    throw deadline.aborted ? timedOut(timeoutS) : unreachable();
  }
}

/** Send a request; an answer that is not 2xx is thrown as a RequestError, its body in words. */
export async function send(path: string, options: RequestOptions, signal: AbortSignal): Promise<Response> {
  const headers = new Headers();
  const init: RequestInit = { method: options.method ?? 'GET', signal, cache: 'no-store', headers };
  if (options.body !== undefined) {
    init.body = JSON.stringify(options.body);
    headers.set('content-type', 'application/json');
  }
  const key = apiKey();
  if (key !== null) headers.set('authorization', `Bearer ${key}`);
  const response = await fetch(apiUrl(path), init);
  if (response.ok) return response;
  const body: unknown = await response.json().catch(() => null);
  throw fromAnswer(response.status, body);
}
