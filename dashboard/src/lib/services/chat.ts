// Streams one chat answer: POST /v1/chat/completions, read as server-sent events while it arrives.
import { fromAnswer, isOpenAIError, RequestError, unreachable } from '../model/problems';
import type { ChatChunk, ChatWish } from '../types';
import { send } from './http';
import { messages } from './stream';

/**
 * Send the wish and call `onChunk` for each chunk of the answer, in order; returns after `[DONE]`.
 *
 * Throws a RequestError when the node refuses or the answer breaks off, and the signal's reason on a stop.
 */
export async function streamChat(
  wish: ChatWish,
  onChunk: (chunk: ChatChunk) => void,
  signal: AbortSignal,
): Promise<void> {
  const body: ChatWish = { ...wish, stream: true, stream_options: { include_usage: true } };
  let isDone = false;
  try {
    const response = await send('v1/chat/completions', { method: 'POST', body }, signal);
    for await (const { data } of messages(response)) {
      if (data === '[DONE]') isDone = true;
      else onChunk(chunkOf(data));
    }
  } catch (error) {
    if (error instanceof RequestError || signal.aborted) throw error;
    throw unreachable();
  }
  if (!isDone) throw new RequestError('The answer broke off before its end. Send the message again.', 0);
}

function chunkOf(data: string): ChatChunk {
  let value: unknown;
  try {
    value = JSON.parse(data);
  } catch {
    throw new RequestError('The node sent something that is no chat answer.', 0);
  }
  if (isOpenAIError(value)) throw fromAnswer(500, value);
  return value as ChatChunk;
}
