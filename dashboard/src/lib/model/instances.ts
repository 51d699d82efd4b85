// Instances as the page draws them: a ribbon of layers, cut into the stages that hold them.
import type { ClusterState, Instance, Plan, Stage, StagePhase } from '../types';
import type { Condition } from './devices';
import { hues, nodeNames, type PlanNode } from './nodes';
import { short } from './plans';

export interface StageBand {
  rank: number;
  nodeName: string;
  hue: number;
  isConnected: boolean;
  startLayer: number;
  /** Exclusive. */
  endLayer: number;
  memoryBytes: number;
  /** Null in a preview: nothing runs yet. */
  phase: StagePhase | null;
  /** Share of the stage's layers that are in memory, 0 to 1. */
  loaded: number;
  detail: string;
  reason: string | null;
}

export interface InstanceCard {
  id: string;
  modelId: string;
  status: Instance['status'];
  statusText: string;
  reason: string | null;
  /** Null where it is as it was placed. */
  moved: Condition | null;
  /** What the placement looks like in a line, such as `pipeline over 3 nodes, mlx, 4,096 tokens of context`. */
  summary: string;
  explanation: string;
  plan: Plan;
  bands: StageBand[];
  layerCount: number;
}

export function instanceCards(state: ClusterState): InstanceCard[] {
  return Object.values(state.instances)
    .sort(
      (one, other) =>
        one.model_id.localeCompare(other.model_id) || (one.instance_id < other.instance_id ? -1 : 1),
    )
    .map((instance) => ({
      id: instance.instance_id,
      modelId: instance.model_id,
      status: instance.status,
      statusText: statusText(instance),
      reason: instance.reason,
      moved:
        instance.moved_reason === null ? null : { tone: 'plain', words: `moved: ${instance.moved_reason}` },
      summary: planSummary(instance.plan) + speedSeen(instance),
      explanation: instance.plan.explanation,
      plan: instance.plan,
      bands: stageBands(instance.plan, state.topology.nodes, instance.stages),
      layerCount: instance.layer_count,
    }));
}

function speedSeen(instance: Instance): string {
  const seen = instance.measured_tokens_per_s;
  return seen === null ? '' : ` · one request alone was seen to get ${short(seen)} tokens/s`;
}

/** The plan's stages in order; with `stages`, how far each of them is. */
export function stageBands(
  plan: Plan,
  nodes: readonly PlanNode[],
  stages: readonly Stage[] = [],
): StageBand[] {
  const hueOf = hues(nodes);
  const nameOf = nodeNames(nodes);
  const connected = new Set(nodes.filter((node) => node.is_connected).map((node) => node.node_id));
  return plan.stages.map((planned) => {
    const stage = stages.find((candidate) => candidate.rank === planned.rank);
    return {
      rank: planned.rank,
      nodeName: nameOf.get(planned.node_id) ?? planned.node_id,
      hue: hueOf.get(planned.node_id) ?? 0,
      isConnected: connected.has(planned.node_id),
      startLayer: planned.start_layer,
      endLayer: planned.end_layer,
      memoryBytes: planned.memory_bytes,
      phase: stage?.phase ?? null,
      loaded: loadedShare(stage),
      detail: stage?.detail ?? '',
      reason: stage?.reason ?? null,
    };
  });
}

function loadedShare(stage: Stage | undefined): number {
  if (!stage) return 0;
  if (stage.phase === 'ready' || stage.phase === 'loaded') return 1;
  return stage.total_layers > 0 ? Math.min(1, stage.loaded_layers / stage.total_layers) : 0;
}

/** `layers 0–3`: counted from 0, as in the weights' files, the API and the command line; `endLayer` is exclusive. */
export function layerRange(range: { startLayer: number; endLayer: number }): string {
  const last = range.endLayer - 1;
  return last === range.startLayer ? `layer ${last}` : `layers ${range.startLayer}–${last}`;
}

function statusText(instance: Instance): string {
  if (instance.status !== 'loading') return instance.status;
  return `loading ${instance.loaded_layers} of ${instance.layer_count} layers`;
}

export function planSummary(plan: Plan): string {
  const nodeCount = new Set(plan.stages.map((stage) => stage.node_id)).size;
  const where = nodeCount === 1 ? 'on one node' : `${plan.sharding} over ${nodeCount} nodes`;
  const context = `${plan.context_length.toLocaleString('en')} tokens of context`;
  return [where, plan.engine, context].join(' · ');
}

/** How an instance of this model is, best first; null when there is none. */
export function bestInstance(state: ClusterState | null, modelId: string): Instance | null {
  const order = ['ready', 'loading', 'pending', 'failed'];
  return (
    Object.values(state?.instances ?? {})
      .filter((instance) => instance.model_id === modelId)
      .sort((one, other) => order.indexOf(one.status) - order.indexOf(other.status))[0] ?? null
  );
}
