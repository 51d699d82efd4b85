// The cluster's routes that the page uses, one function each.
import type {
  ClusterState,
  Decided,
  InstanceDeleted,
  InstancePlaced,
  InstanceWish,
  Model,
  ModelList,
  NodeList,
  Preview,
  PreviewList,
} from '../types';
import { requestJson } from './http';

// A placement is answered when it is committed, which may take the solver's whole deadline and a retry.
const PLACEMENT_TIMEOUT_S = 60;

export function getState(): Promise<ClusterState> {
  return requestJson<ClusterState>('state', { timeoutS: 5 });
}

export async function getModels(): Promise<Model[]> {
  return (await requestJson<ModelList>('models')).models;
}

/** Ways to place the model, each with its plan or its refusal. */
export async function getPreviews(
  modelId: string,
  minNodes: number,
  signal: AbortSignal,
): Promise<Preview[]> {
  const query = new URLSearchParams({ model_id: modelId, min_nodes: String(minNodes) });
  const options = { signal, timeoutS: PLACEMENT_TIMEOUT_S };
  return (await requestJson<PreviewList>(`instance/previews?${query}`, options)).previews;
}

export function placeInstance(wish: InstanceWish): Promise<InstancePlaced> {
  return requestJson<InstancePlaced>('instance', {
    method: 'POST',
    body: wish,
    timeoutS: PLACEMENT_TIMEOUT_S,
  });
}

export function deleteInstance(instanceId: string): Promise<InstanceDeleted> {
  return requestJson<InstanceDeleted>(`instance/${encodeURIComponent(instanceId)}`, { method: 'DELETE' });
}

/** Members, and nodes that want to become some. */
export function getNodes(): Promise<NodeList> {
  return requestJson<NodeList>('nodes');
}

/** Let a node join, if it still has the key that was looked at. */
export function approveNode(nodeId: string, fingerprint: string): Promise<Decided> {
  return requestJson<Decided>(`nodes/${encodeURIComponent(nodeId)}/approve`, {
    method: 'POST',
    body: { fingerprint },
  });
}

export function declineNode(nodeId: string, reason: string): Promise<Decided> {
  return requestJson<Decided>(`nodes/${encodeURIComponent(nodeId)}/decline`, {
    method: 'POST',
    body: { reason },
  });
}

export function removeNode(nodeId: string, reason: string): Promise<Decided> {
  const query = new URLSearchParams({ reason });
  return requestJson<Decided>(`nodes/${encodeURIComponent(nodeId)}?${query}`, { method: 'DELETE' });
}
