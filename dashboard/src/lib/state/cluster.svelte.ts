// The cluster as this page last saw it. Raw state: answers replace it whole, so nothing needs deep tracking.
import { browserTimers } from '../services/timers';
import { getModels, getState } from '../services/cluster';
import { openEvents } from '../services/events';
import { LiveState, type Connection } from '../services/live';
import type { ClusterState, Model } from '../types';

class Cluster {
  state = $state.raw<ClusterState | null>(null);
  connection = $state.raw<Connection>({ status: 'connecting' });
  models = $state.raw<Model[] | null>(null);
  #modelsAt = '';
  #live: LiveState | null = null;

  start(): void {
    this.#live = new LiveState({
      fetchState: getState,
      openEvents,
      onState: (state) => this.#take(state),
      onConnection: (connection) => (this.connection = connection),
      timers: browserTimers,
      random: Math.random,
    });
    this.#live.start();
  }

  stop(): void {
    this.#live?.stop();
  }

  refresh(): void {
    this.#live?.refresh();
  }

  #take(state: ClusterState): void {
    this.state = state;
    // Models change by decisions only, and a restarted node may count from the start again.
    const at = `${state.cluster_id} ${state.term} ${state.index}`;
    if (at !== this.#modelsAt) void this.#fetchModels(at);
  }

  async #fetchModels(at: string): Promise<void> {
    this.#modelsAt = at;
    try {
      this.models = await getModels();
    } catch {
      // The next state asks again; when the node is gone, the banner says so.
      this.#modelsAt = '';
    }
  }
}

export const cluster = new Cluster();
