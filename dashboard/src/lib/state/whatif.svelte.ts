// What a person imagines about the cluster, and what placement answers to it.
import { wordsOf } from '../model/problems';
import { isChanged, planWish, type Change } from '../model/whatif';
import { getKnownDevices, planInstance } from '../services/cluster';
import type { InstanceWish, KnownDevice, Planned, WishedMachine } from '../types';

export class WhatIf {
  without = $state.raw<string[]>([]);
  instead = $state.raw<string[]>([]);
  machines = $state.raw<WishedMachine[]>([]);
  known = $state.raw<KnownDevice[]>([]);
  answer = $state.raw<Planned | null>(null);
  isAsking = $state(false);
  error = $state<string | null>(null);
  #abort = new AbortController();

  get change(): Change {
    return { without: this.without, instead: this.instead, machines: this.machines };
  }

  /** Fetch the names that may be chosen, once. Without them any name can still be written: the node knows them. */
  async learn(): Promise<void> {
    if (this.known.length > 0) return;
    try {
      this.known = await getKnownDevices();
    } catch (error) {
      this.error = wordsOf(error);
    }
  }

  /** Ask what would come of the change; an earlier question that is still open is dropped. */
  async ask(request: InstanceWish, change: Change): Promise<void> {
    this.#abort.abort();
    const { signal } = (this.#abort = new AbortController());
    this.error = null;
    this.isAsking = isChanged(change);
    if (!this.isAsking) {
      this.answer = null;
      return;
    }
    try {
      this.answer = await planInstance(planWish(request, change), signal);
    } catch (error) {
      if (signal.aborted) return;
      this.answer = null;
      this.error = wordsOf(error);
    }
    this.isAsking = false;
  }

  close(): void {
    this.#abort.abort();
  }
}
