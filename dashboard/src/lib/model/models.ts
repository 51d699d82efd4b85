// Models as the page lists them, and what a person can do with each.
import type { ClusterState, Model } from '../types';
import { bytes, count } from './format';
import { bestInstance } from './instances';

export interface ModelRow {
  id: string;
  description: string;
  facts: string;
  problem: string | null;
}

export function modelRow(model: Model): ModelRow {
  return {
    id: model.model_id,
    description: model.description,
    facts: facts(model),
    problem: model.problem,
  };
}

function facts(model: Model): string {
  const sizes = [bytes(model.total_bytes), count(model.layer_count, 'layer'), model.dtype, model.family];
  const copies = model.nodes.filter((copy) => copy.is_connected && copy.problem === null);
  // Nodes of one machine have one name: said once.
  const names = [...new Set(copies.map((copy) => copy.name))];
  return [...sizes, ...(names.length > 0 ? [`on ${names.join(', ')}`] : [])].join(' · ');
}

/** Models that a chat can use: those that are ready come first. */
export function chatModels(models: readonly Model[], state: ClusterState | null): Model[] {
  const isReady = (model: Model) => bestInstance(state, model.model_id)?.status === 'ready';
  return models
    .filter((model) => model.problem === null)
    .sort((one, other) => Number(isReady(other)) - Number(isReady(one)));
}

/** How the model is, in a few words. */
export function readiness(state: ClusterState | null, modelId: string): string {
  const instance = bestInstance(state, modelId);
  if (!instance) return 'not placed';
  if (instance.status === 'pending') return 'starting';
  if (instance.status !== 'loading') return instance.status;
  return `loading ${instance.loaded_layers} of ${instance.layer_count} layers`;
}

/** What a message that has no answer yet is waiting for. */
export function waitingFor(state: ClusterState | null, modelId: string): string {
  const instance = bestInstance(state, modelId);
  if (!instance) return `Placing ${modelId}…`;
  if (instance.status === 'ready') return 'Waiting for the first token…';
  return `Waiting for ${modelId}: ${readiness(state, modelId)}…`;
}
