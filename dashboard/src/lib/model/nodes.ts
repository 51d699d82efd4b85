// What the page shows of a node and its devices, out of the cluster's state.
import type { ClusterState, Device, DeviceState, Node, StagePhase } from '../types';
import { standing, type Standing } from './agreement';
import { bytes, count } from './format';

export interface MemoryBar {
  label: string;
  usedBytes: number;
  totalBytes: number;
}

export interface DeviceRow {
  id: string;
  name: string;
  kind: 'CPU' | 'GPU';
  backend: string;
  utilizationPercent: number | null;
  temperatureC: number | null;
  isThrottling: boolean;
  health: DeviceState['health'] | 'unknown';
  healthReason: string | null;
}

export interface NodeCard {
  id: string;
  name: string;
  hue: number;
  platform: string;
  version: string;
  /** Where other nodes reach it. */
  clusterAddress: string;
  apiAddress: string;
  standing: Standing;
  isAnswering: boolean;
  isConnected: boolean;
  isWorker: boolean;
  leftReason: string | null;
  /** Names of other nodes on the same machine: their memory is the same memory. */
  sharesMachineWith: string[];
  /** Null until the first telemetry, and while the node is away: what it was is not what it is. */
  memory: MemoryBar[] | null;
  devices: DeviceRow[];
  /** What is placed here. */
  stages: PlacedStage[];
}

export interface PlacedStage {
  instanceId: string;
  modelId: string;
  startLayer: number;
  /** Exclusive. */
  endLayer: number;
  phase: StagePhase;
}

export const HUE_COUNT = 6;

/** Each node's colour number, by its place in the cluster's list. */
export function hues(nodes: readonly Node[]): Map<string, number> {
  return new Map(nodes.map((node, place) => [node.node_id, place % HUE_COUNT]));
}

export function nodeCards(state: ClusterState): NodeCard[] {
  const { nodes } = state.topology;
  const hueOf = hues(nodes);
  const nameOf = nodeNames(nodes);
  return nodes.map((node) => ({
    id: node.node_id,
    name: nameOf.get(node.node_id) ?? node.node_id,
    hue: hueOf.get(node.node_id) ?? 0,
    platform: node.platform,
    version: node.exo_version,
    clusterAddress: address(node.cluster_address),
    apiAddress: address(node.api_address),
    standing: standing(state, node.node_id),
    isAnswering: node.node_id === state.node_id,
    isConnected: node.is_connected,
    isWorker: node.is_worker,
    leftReason: node.left_reason,
    sharesMachineWith: nodes
      .filter((other) => other.host_id === node.host_id && other.node_id !== node.node_id)
      .map((other) => nameOf.get(other.node_id) ?? other.node_id),
    memory: node.is_connected ? memoryBars(node) : null,
    devices: node.devices.map((device) =>
      deviceRow(device, node.is_connected ? state.gpu_device_state[device.device_id] : undefined),
    ),
    stages: placedStages(state, node.node_id),
  }));
}

function placedStages(state: ClusterState, nodeId: string): PlacedStage[] {
  return Object.values(state.instances).flatMap((instance) =>
    instance.plan.stages
      .filter((planned) => planned.node_id === nodeId)
      .map((planned) => ({
        instanceId: instance.instance_id,
        modelId: instance.model_id,
        startLayer: planned.start_layer,
        endLayer: planned.end_layer,
        phase: instance.stages.find((stage) => stage.rank === planned.rank)?.phase ?? 'pending',
      })),
  );
}

/** Names for people: nodes of equal name (three on one machine) are told apart by the start of their id. */
export function nodeNames(nodes: readonly Node[]): Map<string, string> {
  const times = new Map<string, number>();
  for (const node of nodes) times.set(node.name, (times.get(node.name) ?? 0) + 1);
  return new Map(
    nodes.map((node) => [
      node.node_id,
      (times.get(node.name) ?? 0) > 1 ? `${node.name} ${node.node_id.slice(0, 4)}` : node.name,
    ]),
  );
}

function address({ host, port }: Node['api_address']): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

function memoryBars(node: Node): MemoryBar[] | null {
  const memory = node.node_profile?.memory;
  if (!memory) return null;
  const bars = [
    { label: 'RAM', usedBytes: memory.ram_total - memory.ram_available, totalBytes: memory.ram_total },
  ];
  if (memory.gpu_vram_total > 0) {
    bars.push({ label: 'VRAM', usedBytes: memory.gpu_vram_used, totalBytes: memory.gpu_vram_total });
  }
  return bars;
}

function deviceRow(device: Device, state: DeviceState | undefined): DeviceRow {
  return {
    id: device.device_id,
    name: device.name,
    kind: device.backend === 'cpu' ? 'CPU' : 'GPU',
    backend: device.backend,
    utilizationPercent: state?.compute_utilization_percent ?? null,
    temperatureC: state?.thermal_temperature_c ?? null,
    isThrottling: state?.is_thermal_throttling ?? false,
    health: state?.health ?? 'unknown',
    healthReason: state?.health_reason ?? null,
  };
}

/** The machines together, in a line. */
export function topologyNote(state: ClusterState): string {
  const { device_count, memory_total_bytes, mean_latency_ms } = state.topology.metrics;
  const parts = [count(device_count, 'device'), `${bytes(memory_total_bytes)} of device memory`];
  if (mean_latency_ms !== null) parts.push(`${Number(mean_latency_ms.toPrecision(2))} ms between nodes`);
  return parts.join(' · ');
}
