// One chat: its turns, and the answer that is arriving.
import { conversation, ended, newReply, withChunk, type Reply, type Turn } from '../model/chat';
import { wordsOf } from '../model/problems';
import { streamChat } from '../services/chat';
import type { ChatChunk } from '../types';

class Chat {
  turns = $state.raw<Turn[]>([]);
  modelId = $state('');
  draft = $state('');
  #abort: AbortController | null = null;
  #nextId = 1;

  get isAnswering(): boolean {
    const status = this.turns.at(-1)?.reply.status;
    return status === 'waiting' || status === 'streaming';
  }

  async send(question: string, modelId: string): Promise<void> {
    const messages = conversation(this.turns, question);
    const abort = (this.#abort = new AbortController());
    const turn: Turn = { id: this.#nextId++, question, modelId, reply: newReply(performance.now()) };
    this.turns = [...this.turns, turn];
    const update = (change: (reply: Reply) => Reply) => this.#update(turn.id, change);
    try {
      const onChunk = (chunk: ChatChunk) => update((reply) => withChunk(reply, chunk, performance.now()));
      await streamChat({ model: modelId, messages }, onChunk, abort.signal);
      update((reply) => ended(reply, 'done'));
    } catch (error) {
      update((reply) =>
        abort.signal.aborted ? ended(reply, 'stopped') : ended(reply, 'failed', wordsOf(error)),
      );
    }
  }

  /** Ask the last question again, in place of its answer. */
  async retry(modelId: string): Promise<void> {
    const last = this.turns.at(-1);
    if (!last || this.isAnswering) return;
    this.turns = this.turns.slice(0, -1);
    await this.send(last.question, modelId);
  }

  stop(): void {
    this.#abort?.abort();
  }

  clear(): void {
    this.stop();
    this.turns = [];
  }

  #update(id: number, change: (reply: Reply) => Reply): void {
    this.turns = this.turns.map((turn) => (turn.id === id ? { ...turn, reply: change(turn.reply) } : turn));
  }
}

export const chat = new Chat();
