// Errors in words: whatever an answer's body looks like, a person gets one sentence.
import type { OpenAIError, Problem } from '../types';

/** Raised when a request was answered with an error, or not at all (`status` 0). */
export class RequestError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly code: string | null = null,
  ) {
    super(message);
    this.name = 'RequestError';
  }
}

export function unreachable(): RequestError {
  return new RequestError('The node cannot be reached. Check that exo is still running there.', 0);
}

export function timedOut(seconds: number): RequestError {
  return new RequestError(`The node did not answer within ${seconds} s.`, 0);
}

/** Reads Problem Details and OpenAI's errors; anything else is told by its status. */
export function fromAnswer(status: number, body: unknown): RequestError {
  if (isProblem(body)) {
    const fields = (body.errors ?? []).map((error) => `${error.field}: ${error.message}`).join('; ');
    return new RequestError(sentence(fields ? `${body.detail} (${fields})` : body.detail), status, body.code);
  }
  if (isOpenAIError(body)) return new RequestError(sentence(body.error.message), status, body.error.code);
  return new RequestError(`The node answered with status ${status}.`, status);
}

export function isOpenAIError(body: unknown): body is OpenAIError {
  return isRecord(body) && isRecord(body['error']) && typeof body['error']['message'] === 'string';
}

function isProblem(body: unknown): body is Problem {
  return isRecord(body) && typeof body['detail'] === 'string';
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

/** A capital first letter and a full stop, as the page's other sentences have; names keep their own spelling. */
export function sentence(text: string): string {
  const trimmed = text.trim();
  if (trimmed === '') return trimmed;
  const beginsWithWord = /^[a-z]+[ ,:]/.test(trimmed);
  const start = beginsWithWord ? trimmed[0]?.toUpperCase() + trimmed.slice(1) : trimmed;
  return /[.!?]$/.test(start) ? start : `${start}.`;
}

export function wordsOf(error: unknown): string {
  return error instanceof Error && error.message ? error.message : 'Something unexpected went wrong.';
}
