// The cluster's routes that the page uses, one function each.
import { backoffMs } from '../model/backoff';
import { RequestError } from '../model/problems';
import type {
  ClusterState,
  Decided,
  InstanceDeleted,
  InstancePlaced,
  InstanceWish,
  KnownDevice,
  KnownDeviceList,
  Model,
  ModelList,
  NodeList,
  Planned,
  PlanWish,
  Preview,
  PreviewList,
  Why,
} from '../types';
import { requestJson } from './http';

// A placement is answered when it is committed, which may take the solver's whole deadline and a retry.
const PLACEMENT_TIMEOUT_S = 60;
// An election takes about a second; half a second, one and two between the tries.
const DELETE_TRIES_MAX = 4;

const pause = (delayMs: number): Promise<void> => new Promise((done) => setTimeout(done, delayMs));

export function getState(): Promise<ClusterState> {
  return requestJson<ClusterState>('state', { timeoutS: 5 });
}

export async function getModels(): Promise<Model[]> {
  return (await requestJson<ModelList>('models')).models;
}

/** Ways to place the model, each with its plan or its refusal. */
export async function getPreviews(wish: InstanceWish, signal: AbortSignal): Promise<Preview[]> {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(wish)) {
    const values: unknown[] = Array.isArray(value) ? value : [value];
    for (const one of values) if (one !== null && one !== undefined) query.append(key, String(one));
  }
  const options = { signal, timeoutS: PLACEMENT_TIMEOUT_S };
  return (await requestJson<PreviewList>(`instance/previews?${query}`, options)).previews;
}

/** What placing would decide on the cluster as it would be, beside what it would decide now. */
export function planInstance(wish: PlanWish, signal: AbortSignal): Promise<Planned> {
  const options = { method: 'POST', body: wish, signal, timeoutS: PLACEMENT_TIMEOUT_S } as const;
  return requestJson<Planned>('instance/plan', options);
}

/** Devices whose figures are known by their names. */
export async function getKnownDevices(): Promise<KnownDevice[]> {
  return (await requestJson<KnownDeviceList>('devices/known')).devices;
}

export function placeInstance(wish: InstanceWish): Promise<InstancePlaced> {
  return requestJson<InstancePlaced>('instance', {
    method: 'POST',
    body: wish,
    timeoutS: PLACEMENT_TIMEOUT_S,
  });
}

/** Why an instance is where it is; with `decision`, by an earlier decision about it. */
export function getWhy(instanceId: string, decision: number | null, signal: AbortSignal): Promise<Why> {
  const query = decision === null ? '' : `?decision=${decision}`;
  const path = `instance/${encodeURIComponent(instanceId)}/why${query}`;
  return requestJson<Why>(path, { signal, timeoutS: PLACEMENT_TIMEOUT_S });
}

/**
 * Delete an instance, and ask again while a master is being elected: deleting twice does what deleting once does.
 * `wait` is how long to wait between two tries, for tests.
 */
export async function deleteInstance(instanceId: string, wait = pause): Promise<void> {
  const path = `instance/${encodeURIComponent(instanceId)}`;
  for (let attempt = 0; ; attempt += 1) {
    try {
      await requestJson<InstanceDeleted>(path, { method: 'DELETE' });
      return;
    } catch (error) {
      const status = error instanceof RequestError ? error.status : null;
      // The try before may have been carried out after all.
      if (status === 404 && attempt > 0) return;
      if (status !== 503 || attempt === DELETE_TRIES_MAX - 1) throw error;
    }
    await wait(backoffMs(attempt, Math.random()));
  }
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
