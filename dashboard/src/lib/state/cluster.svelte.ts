// The cluster as this page last saw it. Raw state: answers replace it whole, so nothing needs deep tracking.
import { recorded, type LoadHistories } from '../model/load';
import { browserTimers } from '../services/timers';
import { getModels, getNodes, getState } from '../services/cluster';
import { openEvents } from '../services/events';
import { LiveState, type Connection } from '../services/live';
import type { ClusterState, Model, NodeList } from '../types';

class Cluster {
  state = $state.raw<ClusterState | null>(null);
  connection = $state.raw<Connection>({ status: 'connecting' });
  /** How busy each device was while this page looked. */
  loads = $state.raw<LoadHistories>(new Map());
  models = $state.raw<Model[] | null>(null);
  nodeList = $state.raw<NodeList | null>(null);
  #detailsAt = '';
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

  /** Another key is used from now on: what was seen with the one before is dropped. */
  restart(): void {
    this.state = this.models = this.nodeList = null;
    this.loads = new Map();
    this.#detailsAt = '';
    this.#live?.restart();
  }

  #take(state: ClusterState): void {
    this.loads = recorded(this.loads, state, browserTimers.now());
    this.state = state;
    // These change by decisions only, and a restarted node may count from the start again.
    const at = `${state.cluster_id} ${state.term} ${state.index}`;
    if (at !== this.#detailsAt) void this.#fetchDetails(at);
  }

  async #fetchDetails(at: string): Promise<void> {
    this.#detailsAt = at;
    const isCurrent = () => this.#detailsAt === at;
    const take = async <T>(asked: Promise<T>, keep: (answer: T) => void) => {
      const answer = await asked;
      if (isCurrent()) keep(answer);
    };
    try {
      await Promise.all([
        take(getModels(), (models) => (this.models = models)),
        take(getNodes(), (nodeList) => (this.nodeList = nodeList)),
      ]);
    } catch {
      // The next state asks again; when the node is gone, the banner says so.
      if (isCurrent()) this.#detailsAt = '';
    }
  }
}

export const cluster = new Cluster();
