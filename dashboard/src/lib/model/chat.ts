// A chat as a value: messages, and an answer that grows chunk by chunk with its speed.
import type { ChatChunk } from '../types';

export type ReplyStatus = 'waiting' | 'streaming' | 'done' | 'stopped' | 'failed';

export interface Reply {
  status: ReplyStatus;
  text: string;
  tokenCount: number;
  sentMs: number;
  firstTokenMs: number | null;
  lastTokenMs: number | null;
  finishReason: string | null;
  /** As the node measured it, known at the end. */
  nodeTokensPerS: number | null;
  error: string | null;
}

export interface Turn {
  id: number;
  question: string;
  modelId: string;
  reply: Reply;
}

export interface ChatMessage {
  role: 'user' | 'assistant';
  content: string;
}

export function newReply(sentMs: number): Reply {
  return {
    status: 'waiting',
    text: '',
    tokenCount: 0,
    sentMs,
    firstTokenMs: null,
    lastTokenMs: null,
    finishReason: null,
    nodeTokensPerS: null,
    error: null,
  };
}

/** Fold one chunk into the answer; `nowMs` is when it arrived. */
export function withChunk(reply: Reply, chunk: ChatChunk, nowMs: number): Reply {
  const choice = chunk.choices[0];
  const next = { ...reply };
  if (choice) {
    // A token may complete no text (half a character); it counts all the same.
    const isToken = choice.delta.content !== undefined;
    next.text += choice.delta.content ?? '';
    next.finishReason = choice.finish_reason ?? next.finishReason;
    if (isToken) {
      next.status = 'streaming';
      next.tokenCount += 1;
      next.firstTokenMs ??= nowMs;
      next.lastTokenMs = nowMs;
    }
  }
  if (chunk.usage) next.tokenCount = chunk.usage.completion_tokens;
  if (chunk.exo) next.nodeTokensPerS = chunk.exo.tokens_per_s;
  return next;
}

export function ended(
  reply: Reply,
  status: 'done' | 'stopped' | 'failed',
  error: string | null = null,
): Reply {
  return { ...reply, status, error };
}

export function timeToFirstTokenMs(reply: Reply): number | null {
  return reply.firstTokenMs === null ? null : reply.firstTokenMs - reply.sentMs;
}

/** Tokens per second after the first: the node's own figure once it is known, before that what arrived here. */
export function tokensPerS(reply: Reply): number | null {
  if (reply.nodeTokensPerS !== null) return reply.nodeTokensPerS;
  if (reply.firstTokenMs === null || reply.lastTokenMs === null) return null;
  const elapsedMs = reply.lastTokenMs - reply.firstTokenMs;
  return elapsedMs > 0 && reply.tokenCount > 1 ? ((reply.tokenCount - 1) / elapsedMs) * 1000 : null;
}

/** What the model is told: all turns that have an answer, then the question. */
export function conversation(turns: readonly Turn[], question: string): ChatMessage[] {
  const earlier = turns
    .filter((turn) => turn.reply.text !== '' && turn.reply.status !== 'failed')
    .flatMap((turn): ChatMessage[] => [
      { role: 'user', content: turn.question },
      { role: 'assistant', content: turn.reply.text },
    ]);
  return [...earlier, { role: 'user', content: question }];
}
