// Placing one model: what is asked for, its previews, the chosen one, and what came of it.
import { wordsOf } from '../model/problems';
import { getPreviews, placeInstance } from '../services/cluster';
import type { Instance, InstanceWish, Preview, Remedy } from '../types';

/** Something that was given up so that the model fits, and what was asked for before. */
interface GivenUp {
  words: string;
  before: InstanceWish;
}

export class Placement {
  previews = $state.raw<Preview[] | null>(null);
  chosen = $state(0);
  wish = $state.raw<InstanceWish>({ model_id: '', min_nodes: 1 });
  givenUp = $state.raw<GivenUp[]>([]);
  isPlacing = $state(false);
  error = $state<string | null>(null);
  #abort = new AbortController();

  constructor(modelId: string) {
    this.wish = { model_id: modelId, min_nodes: 1 };
  }

  get canPlace(): boolean {
    return !this.isPlacing && Boolean(this.previews?.[this.chosen]?.plan);
  }

  /** What the chosen way asks for; null while the ways are worked out. */
  get request(): InstanceWish | null {
    return this.previews?.[this.chosen]?.request ?? null;
  }

  /** Ask for the ways to place it as wished; an earlier question that is still open is dropped. */
  async load(wish: InstanceWish): Promise<void> {
    this.#abort.abort();
    const { signal } = (this.#abort = new AbortController());
    this.wish = wish;
    this.previews = null;
    this.error = null;
    try {
      this.previews = await getPreviews(wish, signal);
      const open = this.previews.findIndex((preview) => preview.plan !== null);
      this.chosen = Math.max(0, open);
    } catch (error) {
      if (!signal.aborted) this.error = wordsOf(error);
    }
  }

  /** Ask for what the remedy says instead. */
  giveUp(remedy: Remedy): Promise<void> {
    this.givenUp = [...this.givenUp, { words: remedy.words, before: this.wish }];
    return this.load(remedy.request);
  }

  /** Ask again for what was asked for before the last remedy. */
  undo(): Promise<void> {
    const last = this.givenUp.at(-1);
    this.givenUp = this.givenUp.slice(0, -1);
    return this.load(last?.before ?? this.wish);
  }

  /** Place as in the chosen way, without some nodes; null when the node refused (then `error` says why). */
  async place(without: readonly string[] = []): Promise<Instance | null> {
    const { request } = this;
    if (!request) return null;
    this.isPlacing = true;
    this.error = null;
    try {
      const exclude = [...new Set([...(request.exclude ?? []), ...without])];
      return await placeInstance(without.length > 0 ? { ...request, exclude } : request);
    } catch (error) {
      this.error = wordsOf(error);
      return null;
    } finally {
      this.isPlacing = false;
    }
  }

  close(): void {
    this.#abort.abort();
  }
}
