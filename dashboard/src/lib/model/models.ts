// Models as the page lists them, and what a person can do with each.
import type { ClusterState, Model } from '../types';
import { bytes, count } from './format';
import { bestInstance } from './instances';

export interface ModelRow {
  id: string;
  name: string;
  description: string;
  facts: string;
  problem: string | null;
  /** Names of connected nodes that can load it. */
  availableOn: string[];
}

export function modelRow(model: Model): ModelRow {
  return {
    id: model.model_id,
    name: model.name,
    description: model.description,
    facts: [bytes(model.total_bytes), count(model.layer_count, 'layer'), model.dtype, model.family].join(
      ' · ',
    ),
    problem: model.problem,
    availableOn: model.nodes
      .filter((copy) => copy.is_connected && copy.problem === null)
      .map((copy) => copy.name),
  };
}

/** Models that a chat can use: those that are ready come first. */
export function chatModels(models: readonly Model[], state: ClusterState | null): Model[] {
  const isReady = (model: Model) => bestInstance(state, model.model_id)?.status === 'ready';
  return models
    .filter((model) => model.problem === null)
    .sort((one, other) => Number(isReady(other)) - Number(isReady(one)));
}

/** What a first message to this model would meet, in a few words. */
export function readiness(state: ClusterState | null, modelId: string): string {
  const instance = bestInstance(state, modelId);
  if (!instance) return 'placed on first message';
  if (instance.status === 'loading') {
    return `loading, ${instance.loaded_layers} of ${instance.layer_count} layers`;
  }
  return instance.status === 'pending' ? 'starting' : instance.status;
}
