// Placing one model: its previews, the chosen one, and what came of it.
import { wordsOf } from '../model/problems';
import { getPreviews, placeInstance } from '../services/cluster';
import type { Instance, Preview } from '../types';

export class Placement {
  previews = $state.raw<Preview[] | null>(null);
  chosen = $state(0);
  minNodes = $state(1);
  isPlacing = $state(false);
  error = $state<string | null>(null);
  #abort = new AbortController();

  constructor(readonly modelId: string) {}

  get canPlace(): boolean {
    return !this.isPlacing && Boolean(this.previews?.[this.chosen]?.plan);
  }

  /** Ask for the ways to place it on at least `minNodes`; an earlier question that is still open is dropped. */
  async load(minNodes: number): Promise<void> {
    this.#abort.abort();
    const { signal } = (this.#abort = new AbortController());
    this.minNodes = minNodes;
    this.previews = null;
    this.error = null;
    try {
      this.previews = await getPreviews(this.modelId, minNodes, signal);
      const open = this.previews.findIndex((preview) => preview.plan !== null);
      this.chosen = Math.max(0, open);
    } catch (error) {
      if (!signal.aborted) this.error = wordsOf(error);
    }
  }

  /** Place as in the chosen preview; null when the node refused (then `error` says why). */
  async place(): Promise<Instance | null> {
    const preview = this.previews?.[this.chosen];
    if (!preview) return null;
    this.isPlacing = true;
    this.error = null;
    try {
      return await placeInstance(preview.request);
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
